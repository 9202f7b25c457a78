"""The lying servers: what each changes of a true answer, as a twist of the proxy."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.tokens import split
from tests.lies.front import CHUNKED, DONE, Event, Front, Twist, visible

Payload = dict[str, Any]


# Speed.


class Flushes(Twist):
    """Holds tokens back and sends `count` of them at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        held: list[Event] = []
        for event in events:
            if visible(event):
                held.append(event)
                if len(held) < self.count:
                    continue
                yield held
                held = []
            else:
                yield [*held, event]
                held = []


class Hides(Twist):
    """Generates tokens that no text shows, in front of the others or after them, in empty chunks or in no chunk."""

    def __init__(self, leading: int = 0, trailing: int = 0, in_chunks: bool = False) -> None:
        super().__init__()
        self.leading, self.trailing, self.in_chunks = leading, trailing, in_chunks

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        asked = front.payloads[number]
        wanted = asked.get("max_tokens") or asked["max_completion_tokens"]
        if wanted <= self.leading + self.trailing:
            yield from super().stream(front, number, events)  # an answer without any text would be noticed
            return
        shown, seen = wanted - self.trailing, 0
        for event in events:
            seen += visible(event)
            if visible(event) and not self.leading < seen <= shown:
                choice = event["choices"][0]
                choice["delta"] = {"content": ""}
                if not self.in_chunks:
                    if not choice["finish_reason"]:
                        continue
                    choice["token_ids"] = []
            yield [event]


class BlankFirst(Twist):
    """Sends a blank at once, before the model has read the prompt.

    With `told` the blank has the id of a token, which the last chunk lacks, and the engine's own histogram shows the true TTFT.
    """

    def __init__(self, told: bool = False) -> None:
        super().__init__()
        self.told, self.count, self.total_s = told, 0, 0.0

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        began, first = time.monotonic(), True
        blank = {"index": 0, "delta": {"content": " "}, "finish_reason": None, "token_ids": [7] if self.told else []}
        yield [{"object": "chat.completion.chunk", "choices": [blank]}]
        for event in events:
            if first and visible(event):
                first = False
                with self.lock:
                    self.count, self.total_s = self.count + 1, self.total_s + time.monotonic() - began
            if self.told and visible(event) and event["choices"][0]["finish_reason"]:
                event["choices"][0]["token_ids"] = []
            yield [event]

    def page(self, front: Front, path: str, text: str) -> str:
        if path != "/metrics" or not self.told:
            return text
        name = "vllm:time_to_first_token_seconds"
        return f"{text}# TYPE {name} histogram\n{name}_sum {self.total_s}\n{name}_count {float(self.count)}\n"


class Pauses(Twist):
    """Waits before each token where `when` says so of the proxy and the request's number."""

    def __init__(self, seconds: float, when: Callable[[Front, int], bool]) -> None:
        super().__init__()
        self.seconds, self.when = seconds, when

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        for event in events:
            if visible(event) and self.when(front, number):
                time.sleep(self.seconds)
            yield [event]


class Queues(Twist):
    """Serves one request at a time, each for `seconds`, in the order in which they come."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.free_s = seconds, 0.0

    def request(self, front: Front, number: int, payload: Payload) -> Payload:
        with self.lock:
            self.free_s = served_s = max(self.free_s, time.monotonic()) + self.seconds
        time.sleep(max(0.0, served_s - time.monotonic()))
        return payload


# Counts.


class Counts(Twist):
    """Says another usage than the true one; None leaves it out."""

    def __init__(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        super().__init__()
        self.change = change

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        for event in events:
            if event.get("usage"):
                event["usage"] = self.change(event["usage"])
            yield [event]


class Metrics(Twist):
    """Shows other metrics: `change` gets the proxy, a sample's name and its value, and returns the lines of samples in its place."""

    def __init__(self, change: Callable[[Front, str, float], list[str]]) -> None:
        super().__init__()
        self.change = change

    def page(self, front: Front, path: str, text: str) -> str:
        if path != "/metrics":
            return text
        lines = []
        for line in text.splitlines():
            if line.startswith("#"):
                continue  # so that a renamed sample needs no renamed comment
            name, _, value = line.rpartition(" ")
            lines += self.change(front, name, float(value))
        return "\n".join(lines) + "\n"


def renamed(name: str) -> Metrics:
    """Return metrics in which one is called otherwise, as by another version."""
    return Metrics(lambda _front, sample, value: [f"{sample.replace(name, name + '_v2')} {value}"])


def kv_gauges(*shares: float) -> Metrics:
    """Return metrics with the KV cache's use of each engine."""
    name = "vllm:kv_cache_usage_perc"
    gauges = [f'{name}{{engine="{engine}"}} {share}' for engine, share in enumerate(shares)]
    return Metrics(lambda _front, sample, value: gauges if sample.startswith(name) else [f"{sample} {value}"])


class Restarts(Metrics):
    """Counts from 0 again after request number `at`, as after a restart, with or without another start time of the process."""

    def __init__(self, at: int, new_start: bool = True) -> None:
        super().__init__(self.since)
        self.at, self.new_start = at, new_start
        self.last: dict[str, float] = {}

    def since(self, front: Front, name: str, value: float) -> list[str]:
        """Return the sample as the newer process counts it, and, beside the first one, when that process started."""
        over = front.numbered > self.at
        if not over:
            self.last[name] = value
        shown = value - self.last.get(name, 0.0) if over and "_total" in name else value
        starts = [f"process_start_time_seconds {2e9 if over and self.new_start else 1e9}"] if "requests_running" in name else []
        return [f"{name} {shown}", *starts]


# Identity.


class Swaps(Twist):
    """Serves another model after request number `at`."""

    def __init__(self, at: int, **card: Any) -> None:
        super().__init__()
        self.at, self.card = at, card

    def page(self, front: Front, path: str, text: str) -> str:
        if path != "/v1/models" or front.numbered <= self.at:
            return text
        models = json.loads(text)
        models["data"][0] |= self.card
        return json.dumps(models)


class SaysYes(Twist):
    """Says that all is well, whatever it is asked."""

    def page(self, front: Front, path: str, text: str) -> str:
        return json.dumps({"status": "ok"})

    def whole(self, front: Front, number: int, answer: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok"}


# Answers.


class Samples(Twist):
    """Answers as a model does: with a temperature the answer follows from the seed too. `marks` says from what it follows really."""

    def __init__(self, marks: Callable[[Payload], str] | None = None) -> None:
        super().__init__()
        self.marks = marks or self.true_marks

    @staticmethod
    def true_marks(payload: Payload) -> str:
        return f" ({payload.get('seed')})" if payload.get("temperature") else ""

    def request(self, front: Front, number: int, payload: Payload) -> Payload | None:
        *before, last = payload["messages"]
        return {**payload, "messages": [*before, {**last, "content": last["content"] + self.marks(payload)}]}


class Drops(Samples):
    """Loses fields of the request, or changes them."""

    def __init__(self, *fields: str, **changed: Any) -> None:
        super().__init__()
        self.fields, self.changed = fields, changed

    def request(self, front: Front, number: int, payload: Payload) -> Payload | None:
        kept = {key: value for key, value in payload.items() if key not in self.fields}
        return super().request(front, number, kept | self.changed)


def at_random(_payload: Payload) -> str:
    """Return a mark that never comes again."""
    return f" ({secrets.token_hex(4)})"


class Remembers(Samples):
    """Answers at random, and from memory what it was asked before: the same request, or the same prompt where `by_prompt`."""

    def __init__(self, by_prompt: bool) -> None:
        super().__init__(at_random)
        self.by_prompt = by_prompt
        self.memory: dict[str, dict[str, Any]] = {}

    def whole(self, front: Front, number: int, answer: dict[str, Any]) -> dict[str, Any]:
        asked = front.payloads[number]
        return self.memory.setdefault(json.dumps(asked["messages"] if self.by_prompt else asked, sort_keys=True), answer)


class Exchanges(Samples):
    """Gives a request the answer to another one that is in flight."""

    def request(self, front: Front, number: int, payload: Payload) -> Payload | None:
        with self.lock:
            others = [other for at, other in front.payloads.items() if at != number]
        return super().request(front, number, {**payload, "messages": others[-1]["messages"]} if others else payload)


class Thinks(Twist):
    """Thinks before it answers, as `draft` says for the last message: in a field of its own, or in the text, between marks."""

    def __init__(self, draft: Callable[[str], str], parser: str | None = None) -> None:
        super().__init__()
        self.draft, self.parser = draft, parser

    def thought(self, front: Front, number: int) -> dict[str, str]:
        """Return the delta of the thought."""
        thought = self.draft(front.payloads[number]["messages"][-1]["content"])
        return {self.parser: thought} if self.parser else {"content": f"<think>\n{thought}\n</think>\n\n"}

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        delta = self.thought(front, number)
        ids = list(range(len(split(next(iter(delta.values()))))))
        thought = {"index": 0, "delta": delta, "finish_reason": None, "token_ids": ids}
        pending: list[Event] = [{"object": "chat.completion.chunk", "choices": [thought]}]
        for event in events:
            if event.get("usage"):
                event["usage"]["completion_tokens"] += len(ids)
            yield [*pending, event] if visible(event) else [event]
            pending = [] if visible(event) else pending


# The wire.


class HangsUp(Twist):
    """Closes the connection in place of each fifth answer."""

    def request(self, front: Front, number: int, payload: Payload) -> Payload | None:
        return None if number % 5 == 4 else payload


class Spoils(Twist):
    """Changes the stream of each fourth request by `change`, which gets its events without the last."""

    def __init__(self, change: Callable[[list[Event]], list[Event]]) -> None:
        super().__init__()
        self.change = change

    def stream(self, front: Front, number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        if number % 4 != 3:
            yield from super().stream(front, number, events)
            return
        for event in self.change(list(events)):
            yield [event]


def old_error(events: list[Event]) -> list[Event]:
    """Return a stream with the older form of an error in its middle, and an end as if all were well."""
    error = {"object": "error", "message": "the engine died", "type": "InternalServerError", "param": None, "code": 500}
    return [*events[:4], error, *events[4:]]


def new_error(events: list[Event]) -> list[Event]:
    """Return a stream with an error in its middle, and an end as if all were well."""
    return [*events[:4], {"error": {"message": "the engine died", "code": 500}}, *events[4:]]


def abort(events: list[Event]) -> list[Event]:
    """Return a stream whose request was aborted by the server."""
    for event in events:
        for choice in event.get("choices", []):
            choice["finish_reason"] = choice["finish_reason"] and "abort"
    return events


def only_usage(events: list[Event]) -> list[Event]:
    """Return a stream without the answer."""
    return [event for event in events if not event.get("choices")]


def cut_off(events: list[Event]) -> list[Event]:
    """Return a stream that ends well-formed in the middle of the answer."""
    return events[:5]


def no_end(events: list[Event]) -> list[Event]:
    """Return a stream that lacks its finish reason and [DONE], and nothing else."""
    for event in events:
        for choice in event.get("choices", []):
            choice["finish_reason"] = None
    return [event for event in events if event is not DONE]


class Wire(Twist):
    """An answer that is unusual on the wire, and true."""

    def __init__(self, preface: bytes = b"", length: str = CHUNKED, line_end: str = "\n", has_last_line: bool = True) -> None:
        super().__init__()
        self.preface, self.length = preface, length
        self.line_end, self.has_last_line = line_end, has_last_line


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
