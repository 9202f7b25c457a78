"""The load generator: streamed chat completions, each block of bytes stamped on arrival and parsed afterwards."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.client.sse import SseParser

BLOCK_BYTES = 1 << 16
LOOK_S = 0.25
AFTER_FAILURE_S = 0.1  # a server that is about to end refuses thousands a second
PATH = "/v1/chat/completions"


class Lenient(BaseModel):
    """Base of the parts of a streamed chunk that we rely on; the rest is left alone."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class CachedTokens(Lenient):
    cached_tokens: int | None = None


class StreamUsage(Lenient):
    """The server's own token counts, in the last chunk."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class Delta(Lenient):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class StreamChoice(Lenient):
    delta: Delta = Delta()
    finish_reason: str | None = None


class StreamChunk(Lenient):
    """One event of a streamed chat completion."""

    choices: list[StreamChoice] = []
    usage: StreamUsage | None = None
    error: Any = None


@dataclass(frozen=True)
class Raw:
    """A response as it came: when it was sent (ns), status, stamped blocks, and what broke it."""

    sent_ns: int
    status: int
    blocks: list[tuple[int, bytes]]
    error: str


@dataclass(frozen=True)
class Answer:
    """A streamed answer. Times are perf_counter nanoseconds; `tokens` is the server's own count; `error` is empty on success."""

    sent_ns: int
    first_ns: int = 0
    last_ns: int = 0
    chunk_ns: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(frozen=True)
class Target:
    """The server that requests go to, and whether it lives."""

    base_url: str
    alive: Callable[[], bool] = lambda: True
    api_key: str | None = field(default=None, repr=False)


def send(target: Target, payload: dict[str, Any], timeout_s: float, opened: Callable[[socket.socket], None] = lambda _: None) -> Raw:
    """Send one request and stamp what comes back; never raises for the network's sake. `opened` is told the connection."""
    import http.client  # brings ssl and email along, 25 ms that an unchanged run does without

    address = urlsplit(target.base_url)
    body = json.dumps(payload).encode()
    headers = {"Content-Type": "application/json"}
    if target.api_key is not None:
        headers["Authorization"] = f"Bearer {target.api_key}"
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=timeout_s)
    blocks: list[tuple[int, bytes]] = []
    status = 0
    sent = time.perf_counter_ns()
    try:
        connection.connect()
        opened(connection.sock)
        connection.request("POST", address.path + PATH, body, headers)
        response = connection.getresponse()
        status = response.status
        while block := response.read1(BLOCK_BYTES):
            blocks.append((time.perf_counter_ns(), block))
    except (OSError, http.client.HTTPException) as error:
        return Raw(sent, status, blocks, f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    return Raw(sent, status, blocks, "")


def read(raw: Raw) -> Answer:
    """Return the answer in `raw`. HTTP errors, error events, a cut-off stream and one without content are failures.

    The role chunk, empty chunks and the usage chunk neither begin nor extend the answer.
    """
    if raw.error:
        return Answer(raw.sent_ns, error=raw.error)
    if raw.status != 200:
        said = b"".join(block for _, block in raw.blocks).decode("utf-8", errors="replace")
        return Answer(raw.sent_ns, error=f"HTTP {raw.status}: {said[:200]}")
    parser = SseParser()
    text: list[str] = []
    stamps: list[int] = []
    finish_reason: str | None = None
    usage: StreamUsage | None = None
    done = False
    for at, block in raw.blocks:
        for event in parser.feed(block):
            if event == "[DONE]":
                done = True
                continue
            try:
                chunk = StreamChunk.model_validate_json(event)
            except ValidationError as error:
                return Answer(raw.sent_ns, error=f"unreadable event ({error.errors()[0]['msg']}): {event[:80]!r}")
            if chunk.error is not None:
                return Answer(raw.sent_ns, error=f"error event: {json.dumps(chunk.error)[:200]}")
            usage = chunk.usage or usage
            for choice in chunk.choices:
                finish_reason = choice.finish_reason or finish_reason
                piece = choice.delta.content or choice.delta.reasoning or choice.delta.reasoning_content
                if piece or choice.delta.tool_calls:
                    stamps.append(at)
                    text.append(piece or "")
    if not done:
        return Answer(raw.sent_ns, error="cut off before [DONE]")
    if not stamps:
        return Answer(raw.sent_ns, error="no content")
    if usage is None:
        return Answer(raw.sent_ns, error="no usage chunk")
    details = usage.prompt_tokens_details
    return Answer(
        raw.sent_ns,
        stamps[0],
        stamps[-1],
        stamps,
        "".join(text),
        finish_reason,
        usage.prompt_tokens,
        (details.cached_tokens if details else None) or 0,
        usage.completion_tokens,
    )


def closed_loop(
    target: Target,
    payloads: Iterable[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    keep_going: Callable[[], bool] = lambda: True,
) -> tuple[list[Answer], float]:
    """Send `payloads` with `concurrency` in flight until all are answered; return (answers in order, wall seconds).

    `keep_going` is asked before each send; what is not sent has no answer. Parsing happens after the last byte. When the
    target dies, what is in flight is cut off and counts as failed, and nothing more is sent.
    """
    waiting = iter(enumerate(payloads))
    lock = threading.Lock()
    raws: dict[int, Raw] = {}
    open_sockets: dict[int, socket.socket] = {}
    ending = threading.Event()

    def work(worker: int) -> None:
        while keep_going() and not ending.is_set():
            with lock:
                index, payload = next(waiting, (-1, None))
            if payload is None:
                return
            raws[index] = send(target, payload, timeout_s, lambda opened: open_sockets.update({worker: opened}))
            if raws[index].error or raws[index].status >= 500:
                ending.wait(AFTER_FAILURE_S)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(concurrency)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_S)
                if not ending.is_set() and not target.alive():
                    ending.set()
                    cut(open_sockets.values())
    except BaseException:  # Ctrl-C: the server lets running requests end, and nobody waits for these any more
        ending.set()
        cut(open_sockets.values())
        raise
    wall_s = time.perf_counter() - began
    return [read(raws[index]) for index in sorted(raws)], wall_s


def cut(sockets: Iterable[socket.socket]) -> None:
    """Break these connections off, whoever waits on them."""
    for connection in list(sockets):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def streamed(model: str, messages: Iterable[dict[str, str]], max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return the payload of a greedy streamed request with the usage chunk on."""
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        # Temperature 0 still applies the model's generation_config, and some models ship a penalty there.
        "repetition_penalty": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
