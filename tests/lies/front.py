"""A proxy before the fake server that changes one thing of what goes by.

A `Twist` is that one thing. Its streams are lists of events: what it yields together goes out in one write. As vLLM does, the
proxy adds token ids and running counts of tokens to the chunks of those who ask for them (`return_token_ids`,
`stream_options.continuous_usage_stats`), whatever the fake behind it can do.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.plain_http import HttpHandler, HttpServer
from tests.fakes.tokens import split, token_id

Event = dict[str, Any]  # of a stream; DONE is the last one
DONE: Event = {"done": True}
UPSTREAM_S = 60.0
# The headers that say how long a body is.
CHUNKED, UNTIL_CLOSED = "Transfer-Encoding: chunked", "Connection: close"
CHUNKED_THEN_CLOSED = f"{CHUNKED}\r\n{UNTIL_CLOSED}"


class Twist:
    """What a proxy changes; this one changes nothing. `number` counts the requests from 0."""

    preface = b""  # before the answer's head
    length = CHUNKED  # of a streamed body
    line_end = "\n"
    has_last_line = True  # the blank one

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def request(self, front: "Front", number: int, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Return the request that goes on; None hangs up."""
        return payload

    def stream(self, front: "Front", number: int, events: Iterator[Event]) -> Iterator[list[Event]]:
        """Yield the events, together what goes out at once."""
        for event in events:
            yield [event]

    def whole(self, front: "Front", number: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer in one piece."""
        return answer

    def page(self, front: "Front", path: str, text: str) -> str:
        """Return the answer to GET."""
        return text


class Front:
    """A proxy on a port of its own before a fake server; requests in flight and their number are counted."""

    def __init__(self, fake: FakeVllm, twist: Twist, port: int = 0) -> None:
        self.fake = fake
        self.twist = twist
        self.began_s: float | None = None  # the first request
        self.in_flight = 0
        self.numbered = 0
        self.payloads: dict[int, dict[str, Any]] = {}  # as they came
        self.http = FrontServer(("127.0.0.1", port), FrontHandler)
        self.http.front = self
        self.base_url = f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def running_s(self) -> float:
        """Return the seconds since the first request."""
        return 0.0 if self.began_s is None else time.monotonic() - self.began_s

    def __enter__(self) -> "Front":
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()


class FrontServer(HttpServer):
    front: Front


class FrontHandler(HttpHandler):
    server: FrontServer
    answering = False

    def setup(self) -> None:
        super().setup()
        fake = self.server.front.fake
        self.upstream = http.client.HTTPConnection(fake.host, fake.port, timeout=UPSTREAM_S)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def do_GET(self) -> None:
        front = self.server.front
        self.upstream.request("GET", self.path)
        response = self.upstream.getresponse()
        self.reply(response.status, front.twist.page(front, self.path, response.read().decode()))

    def do_POST(self) -> None:
        front, twist = self.server.front, self.server.front.twist
        with twist.lock:
            number = front.numbered
            front.numbered += 1
            front.payloads[number] = plain(json.loads(self.body))
            front.began_s = front.began_s or time.monotonic()
            front.in_flight += 1
            self.answering = True
        try:
            payload = twist.request(front, number, front.payloads[number])
            if payload is None:
                self.close_connection = True
                return
            self.upstream.request("POST", self.path, json.dumps(payload))
            response = self.upstream.getresponse()
            self.wfile.write(twist.preface)
            if response.status == 200 and payload.get("stream"):
                self.stream(number, response)
            elif response.status == 200:
                self.reply(200, json.dumps(twist.whole(front, number, json.loads(response.read()))))
            else:
                self.reply(response.status, response.read().decode())
        finally:
            self.leave()
            front.payloads.pop(number, None)

    def leave(self) -> None:
        """Count the request as answered, once; before its last byte, because the next one may follow at once."""
        with self.server.front.twist.lock:
            self.server.front.in_flight -= self.answering
            self.answering = False

    def reply(self, status: int, text: str) -> None:
        data = text.encode()
        self.leave()
        self.begin(status, "application/json", f"Content-Length: {len(data)}")
        self.wfile.write(data)

    def stream(self, number: int, response: http.client.HTTPResponse) -> None:
        front, twist = self.server.front, self.server.front.twist
        asked = front.payloads[number]
        chunked = CHUNKED in twist.length
        self.close_connection = UNTIL_CLOSED in twist.length
        self.begin(200, "text/event-stream; charset=utf-8", twist.length)
        counted = 0
        for together in twist.stream(front, number, with_ids(read_events(response), asked)):
            lines = []
            for event in together:
                counted += sum(len(choice.get("token_ids") or []) for choice in event.get("choices", []))
                lines.append(self.line(event, asked, counted))
            self.write("".join(lines).encode(), chunked)
        self.leave()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def line(self, event: Event, asked: dict[str, Any], counted: int) -> str:
        """Return an event as it goes over the wire, with ids and counts only where they were asked for."""
        twist = self.server.front.twist
        if event is DONE:
            return "data: [DONE]" + (1 + twist.has_last_line) * twist.line_end
        if not asked.get("return_token_ids"):
            choices = [{key: value for key, value in choice.items() if key != "token_ids"} for choice in event.get("choices", [])]
            event = {key: value for key, value in event.items() if key != "prompt_token_ids"} | ({"choices": choices} if choices else {})
        if (asked.get("stream_options") or {}).get("continuous_usage_stats") and event.get("choices"):
            event = event | {"usage": {"prompt_tokens": prompt_tokens(asked), "completion_tokens": counted}}
        return f"data: {json.dumps(event)}{2 * twist.line_end}"

    def write(self, data: bytes, chunked: bool) -> None:
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n" if chunked else data)


def plain(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the request with each message's content as one text, which some clients send in parts."""
    for message in payload["messages"]:
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
    return payload


def read_events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Yield the fake's events as they come."""
    for line in response:
        if line.startswith(b"data: "):
            yield DONE if line[6:].strip() == b"[DONE]" else json.loads(line[6:])


def with_ids(events: Iterator[Event], asked: dict[str, Any]) -> Iterator[Event]:
    """Yield the events with the ids of their tokens, and the prompt's with the first, as vLLM sends them."""
    for position, event in enumerate(events):
        if event is not DONE and position == 0:
            event.setdefault("prompt_token_ids", [token_id(message["content"]) for message in asked["messages"]])
        for choice in event.get("choices", []):
            if not choice.get("token_ids"):
                choice["token_ids"] = [token_id(piece) for piece in split(choice["delta"].get("content") or "")]
        yield event


def prompt_tokens(asked: dict[str, Any]) -> int:
    """Return the fake's count of a prompt's tokens."""
    return 1 + sum(len(split(message["content"])) for message in asked["messages"])


def visible(event: Event) -> bool:
    """Tell whether the event carries text of the answer."""
    return any(choice["delta"].get("content") for choice in event.get("choices", []))
