"""Answers: from stamped blocks of a response's body to text, stamps and counts. Nothing here waits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.client.sse import SseParser

Blocks = list[tuple[int, bytes]]


class Lenient(BaseModel):
    """Base of the parts of an answer that we rely on; the rest is left alone."""

    model_config = ConfigDict(extra="ignore", defer_build=True)


class CachedTokens(Lenient):
    cached_tokens: int | None = None


class Usage(Lenient):
    """The server's own token counts."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class Delta(Lenient):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(Lenient):
    """One choice of a streamed chunk (`delta`) or of an unary answer (`message`)."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Chunk(Lenient):
    """One event of a streamed chat completion, or the whole of an unary one."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class Raw:
    """A response as it came: when it was due and was sent (ns), status, stamped blocks of its body, and what broke it."""

    sent_ns: int
    status: int
    blocks: Blocks
    error: str
    scheduled_ns: int = 0
    streamed: bool = True


@dataclass(frozen=True)
class Answer:
    """An answer. Times are perf_counter nanoseconds; `tokens` is the server's own count; `error` is empty on success.

    `scheduled_ns` is when the request was due: in an open loop by the schedule, else when it was sent. An unary answer is
    one chunk, stamped when it was whole.
    """

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
    scheduled_ns: int = 0
    first_byte_ns: int = 0

    @property
    def ok(self) -> bool:
        return not self.error


def read(raw: Raw) -> Answer:
    """Return the answer in `raw`. HTTP errors, error events, a cut-off stream and one without content are failures.

    The role chunk, empty chunks and the usage chunk neither begin nor extend the answer.
    """
    if raw.error:
        return failed(raw, raw.error)
    if raw.status != 200:
        return failed(raw, f"HTTP {raw.status}: {body_of(raw)[:200].decode('utf-8', errors='replace')}")
    return read_stream(raw) if raw.streamed else read_unary(raw)


def failed(raw: Raw, error: str) -> Answer:
    """Return the answer that says why there is none."""
    return Answer(raw.sent_ns, error=error, scheduled_ns=raw.scheduled_ns)


def body_of(raw: Raw) -> bytes:
    """Return the whole body."""
    return b"".join(block for _, block in raw.blocks)


def read_stream(raw: Raw) -> Answer:
    """Return the answer in a stream of events."""
    parser = SseParser()
    text: list[str] = []
    stamps: list[int] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    done = False
    for at, block in raw.blocks:
        for event in parser.feed(block):
            if event == b"[DONE]":
                done = True
                continue
            try:
                chunk = Chunk.model_validate_json(event)
            except ValidationError as error:
                return failed(raw, f"unreadable event ({error.errors()[0]['msg']}): {event[:80].decode('utf-8', errors='replace')!r}")
            if chunk.error is not None:
                return failed(raw, f"error event: {json.dumps(chunk.error)[:200]}")
            usage = chunk.usage or usage
            for choice in chunk.choices:
                finish_reason = choice.finish_reason or finish_reason
                piece = content_of(choice.delta)
                if piece is not None:
                    stamps.append(at)
                    text.append(piece)
    if not done:
        return failed(raw, "cut off before [DONE]")
    return whole(raw, stamps, "".join(text), finish_reason, usage)


def read_unary(raw: Raw) -> Answer:
    """Return the answer that came in one piece."""
    body = body_of(raw)
    try:
        chunk = Chunk.model_validate_json(body)
    except ValidationError as error:
        return failed(raw, f"unreadable answer ({error.errors()[0]['msg']}): {body[:80].decode('utf-8', errors='replace')!r}")
    if chunk.error is not None:
        return failed(raw, f"error: {json.dumps(chunk.error)[:200]}")
    pieces = [piece for choice in chunk.choices if (piece := content_of(choice.message)) is not None]
    finish_reason = chunk.choices[0].finish_reason if chunk.choices else None
    return whole(raw, [raw.blocks[-1][0]] if pieces else [], "".join(pieces), finish_reason, chunk.usage)


def content_of(delta: Delta | None) -> str | None:
    """Return the text of this part, empty for a tool call; None where it holds nothing of the answer."""
    if delta is None:
        return None
    piece = delta.content or delta.reasoning or delta.reasoning_content
    return piece or ("" if delta.tool_calls else None)


def whole(raw: Raw, stamps: Sequence[int], text: str, finish_reason: str | None, usage: Usage | None) -> Answer:
    """Return the answer of these parts, or why they are none."""
    if not stamps:
        return failed(raw, "no content")
    if usage is None:
        return failed(raw, "no usage chunk")
    details = usage.prompt_tokens_details
    return Answer(
        sent_ns=raw.sent_ns,
        first_ns=stamps[0],
        last_ns=stamps[-1],
        chunk_ns=list(stamps),
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens if details else None) or 0,
        tokens=usage.completion_tokens,
        scheduled_ns=raw.scheduled_ns,
        first_byte_ns=raw.blocks[0][0],
    )
