"""Parsing of responses: from the stamped blocks of a body to text, stamps and counts. Nothing here waits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from pipeline.client.sse import SseParser, plain_events

Blocks = list[tuple[int, bytes]]


# msgspec structs, because one is decoded for each token, and pydantic models cost five times as much.
class CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """The server's own token counts."""

    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a streamed chunk (`delta`) or of a unary answer (`message`)."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a streamed chat completion, or a whole unary one; fields that we do not use are ignored."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


DONE = b"[DONE]"
UNREADABLE = (msgspec.DecodeError, RecursionError)


@dataclass(frozen=True)
class RawAnswer:
    """A response as received: when it was due and sent (ns), its status, the stamped blocks of its body, and any error."""

    sent_ns: int
    status: int
    blocks: Blocks
    error: str
    scheduled_ns: int = 0
    streamed: bool = True


@dataclass(frozen=True)
class Answer:
    """A parsed answer. Times are perf_counter nanoseconds; `tokens` is the server's own count; `error` is empty on success.

    `scheduled_ns` is when the request was due: by the schedule in an open loop, else when it was sent. A unary answer is one
    chunk, stamped when it was complete.
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


def read_answer(raw: RawAnswer) -> Answer:
    """Return the answer in `raw`. HTTP errors, error events, a cut-off stream and one without content are failures.

    The role chunk, empty chunks and the usage chunk neither begin nor extend the answer.
    """
    if raw.error:
        return failed(raw, raw.error)
    if raw.status != 200:
        return failed(raw, f"HTTP {raw.status}: {body_of(raw)[:200].decode('utf-8', errors='replace')}")
    return read_stream(raw) if raw.streamed else read_unary(raw)


def failed(raw: RawAnswer, error: str) -> Answer:
    """Return a failed answer with the error."""
    return Answer(raw.sent_ns, error=error, scheduled_ns=raw.scheduled_ns)


def body_of(raw: RawAnswer) -> bytes:
    """Return the whole body."""
    return b"".join(block for _, block in raw.blocks)


def read_stream(raw: RawAnswer) -> Answer:
    """Return the answer from a stream of events."""
    text: list[str] = []
    stamps: list[int] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    events, at, plain = stamped_events(raw.blocks)
    done = DONE in events
    if done:
        at = [stamp for stamp, event in zip(at, events, strict=True) if event != DONE]
        events = [event for event in events if event != DONE]
    try:
        chunks = decoder().decode_lines(b"\n".join(events)) if plain else [decoder().decode(event) for event in events]
    except UNREADABLE:
        chunks = []
    if len(chunks) != len(events):  # the decoder skips empty events
        return failed(raw, next(trouble for event in events if (trouble := unreadable("event", event))))
    for stamp, chunk in zip(at, chunks, strict=True):
        if chunk.error is not None:
            return failed(raw, f"error event: {json.dumps(chunk.error)[:200]}")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish_reason = choice.finish_reason or finish_reason
            delta = choice.delta
            piece = (delta.content or piece_of(delta)) if delta is not None else None
            if piece is not None:
                stamps.append(stamp)
                text.append(piece)
    if not done:
        return failed(raw, "cut off before [DONE]")
    return whole_answer(raw, stamps, "".join(text), finish_reason, usage)


def stamped_events(blocks: Blocks) -> tuple[list[bytes], list[int], bool]:
    """Return the data of each complete event, the stamp of the block that completes it, and whether each event is one line."""
    body = b"".join(block for _, block in blocks)
    events = plain_events(body)
    if events is None:
        parser = SseParser()
        pairs = [(event, at) for at, block in blocks for event in parser.feed(block)]
        return [event for event, _ in pairs], [at for _, at in pairs], False
    stamps = []
    reached = end = 0
    remaining = iter(blocks)
    at = 0
    for event in events:
        end += len(event) + 8  # "data: " before, an empty line after
        while reached < end:
            at, block = next(remaining)
            reached += len(block)
        stamps.append(at)
    return events, stamps, True


@cache
def decoder() -> "msgspec.json.Decoder[Chunk]":
    return msgspec.json.Decoder(Chunk)


def unreadable(what: str, text: bytes) -> str:
    """Return why `text` is not a chunk, or "" if it is."""
    try:
        decoder().decode(text)
    except UNREADABLE as error:
        return f"unreadable {what} ({error}): {text[:80].decode('utf-8', errors='replace')!r}"
    return ""


def read_unary(raw: RawAnswer) -> Answer:
    """Return the answer from a unary response."""
    body = body_of(raw)
    try:
        chunk = decoder().decode(body)
    except UNREADABLE:
        return failed(raw, unreadable("answer", body))
    if chunk.error is not None:
        return failed(raw, f"error: {json.dumps(chunk.error)[:200]}")
    pieces = [piece for choice in chunk.choices if choice.message and (piece := piece_of(choice.message)) is not None]
    finish_reason = chunk.choices[0].finish_reason if chunk.choices else None
    return whole_answer(raw, [raw.blocks[-1][0]] if pieces else [], "".join(pieces), finish_reason, chunk.usage)


def piece_of(delta: Delta) -> str | None:
    """Return the text of this part, "" for a tool call, or None if it holds nothing of the answer."""
    piece = delta.content or delta.reasoning or delta.reasoning_content
    return piece or ("" if delta.tool_calls else None)


def whole_answer(raw: RawAnswer, stamps: Sequence[int], text: str, finish_reason: str | None, usage: Usage | None) -> Answer:
    """Return the answer made of these parts, or a failed one if content or usage is missing."""
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
