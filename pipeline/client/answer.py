"""Parsing of responses: from the stamped blocks of a body to text, stamps and counts. Nothing here waits."""

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Annotated, Any

import msgspec

from pipeline.client.sse import SseParser, plain_events

Blocks = list[tuple[int, bytes]]
Count = Annotated[int, msgspec.Meta(ge=0)]


# msgspec structs, because one is decoded for each token, and pydantic models cost five times as much.
class CachedTokens(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None


class Usage(msgspec.Struct, gc=False):
    """The server's own token counts."""

    prompt_tokens: Count
    completion_tokens: Count
    prompt_tokens_details: CachedTokens | None = None


class ToolFunction(msgspec.Struct, gc=False):
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A tool call, or a part of the one of that index."""

    index: int | None = None
    function: ToolFunction | None = None


class Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of a streamed chunk (`delta`) or of a unary answer (`message`), with its token ids if they were asked for."""

    index: int = 0  # in the server's order, which the decoder is fastest with
    delta: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    message: Delta | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a streamed chat completion, or a whole unary one; fields that we do not use are ignored.

    An older vLLM reports an error as `"object": "error"`, mostly with a `message`, in place of `error`.
    """

    object: str | None = None  # in the server's order
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    message: Any = None


DONE = b"[DONE]"
UNREADABLE = (msgspec.DecodeError, RecursionError)
BROKEN_OFF = ("abort", "error")  # the finish reasons of an answer that the server gave up
THINK, THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class RawAnswer:
    """A response as received: when it was due and sent (ns), its status, the stamped blocks of its body, and any error.

    `replaced` counts the idle connections that the server had closed before this request was sent.
    """

    sent_ns: int
    status: int
    blocks: Blocks
    error: str
    scheduled_ns: int = 0
    streamed: bool = True
    replaced: int = 0


@dataclass(frozen=True)
class Answer:
    """A parsed answer. Times are perf_counter nanoseconds; `tokens` is the server's own count; `error` is empty on success.

    `scheduled_ns` is when the request was due: by the schedule in an open loop, else when it was sent. `first_ns` is the stamp
    of the first chunk with content, reasoning or a tool call; `answer_ns` that of the first chunk of the answer proper, and 0
    if all of it is reasoning. `chunk_ns` are the stamps of the chunks with any of these or with tokens, and `chunk_tokens` how
    many tokens each carried, None if the server does not say. A unary answer is one chunk, stamped when it was complete.
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
    chunk_tokens: list[int] | None = None
    reasoning: str = ""
    answer_ns: int = 0
    replaced: int = 0

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def contradicts_itself(self) -> bool:
        """Tell whether `tokens` is not what the chunks carried, or is 0 beside content."""
        return self.ok and (self.tokens == 0 or (self.chunk_tokens is not None and self.tokens != sum(self.chunk_tokens)))

    @property
    def tokens_by_chunk(self) -> list[float]:
        """Return the tokens of each chunk; spread evenly where the server does not tell."""
        if self.chunk_tokens is None:
            return [self.tokens / len(self.chunk_ns) for _ in self.chunk_ns]
        return [float(tokens) for tokens in self.chunk_tokens]


def read_answer(raw: RawAnswer) -> Answer:
    """Return the answer in `raw`, streamed or unary, both read the same.

    HTTP errors, error events, an answer that the server gave up, one without content or usage, one of several choices, and a
    stream that ends with neither a finish reason nor [DONE] are failures. The role chunk, chunks that are empty and carry no
    token, and the usage chunk neither begin nor extend the answer. Text before the first token, where the server tells tokens, does
    not begin it either.
    """
    if raw.error:
        return failed(raw, raw.error)
    if raw.status != 200:
        return failed(raw, f"HTTP {raw.status}: {body_of(raw)[:200].decode('utf-8', errors='replace')}")
    return read_stream(raw) if raw.streamed else read_unary(raw)


def failed(raw: RawAnswer, error: str) -> Answer:
    """Return a failed answer with the error."""
    return Answer(raw.sent_ns, error=error, scheduled_ns=raw.scheduled_ns, replaced=raw.replaced)


def body_of(raw: RawAnswer) -> bytes:
    """Return the whole body."""
    return b"".join(block for _, block in raw.blocks)


def read_stream(raw: RawAnswer) -> Answer:
    """Return the answer from a stream of events."""
    events, at, plain = stamped_events(raw.blocks)
    done = DONE in events[-1:]
    if done:
        del events[-1], at[-1]
    if DONE in events:  # not at the end alone
        done = True
        at = [stamp for stamp, event in zip(at, events, strict=True) if event != DONE]
        events = [event for event in events if event != DONE]
    try:
        chunks = decoder().decode_lines(b"\n".join(events)) if plain else [decoder().decode(event) for event in events]
    except UNREADABLE:
        chunks = []
    if len(chunks) != len(events):  # the decoder skips empty events
        return failed(raw, next(trouble for event in events if (trouble := unreadable("event", event))))
    return assembled(raw, at, chunks, done)


def read_unary(raw: RawAnswer) -> Answer:
    """Return the answer from a unary response."""
    body = body_of(raw)
    try:
        chunk = decoder().decode(body)
    except UNREADABLE:
        return failed(raw, unreadable("answer", body))
    return assembled(raw, [raw.blocks[-1][0]], [chunk], done=True)


def stamped_events(blocks: Blocks) -> tuple[list[bytes], list[int], bool]:
    """Return the data of each complete event, the stamp of the block that completes it, and whether each event is one line."""
    body = b"".join(block for _, block in blocks)
    events = plain_events(body)
    if events is None:
        parser = SseParser()
        pairs = [(event, at) for at, block in blocks for event in parser.feed(block)]
        # The last event may lack its blank line; half of one is none.
        pairs += [(event, blocks[-1][0]) for event in parser.end() if event == DONE or not unreadable("event", event)]
        return [event for event, _ in pairs], [at for _, at in pairs], False
    # Each event has "data: " before it and an empty line after it.
    ends = [end + 8 * number for number, end in enumerate(accumulate(map(len, events)), 1)]
    stamps: list[int] = []
    reached = 0
    for at, block in blocks:
        reached += len(block)
        stamps += [at] * (bisect_right(ends, reached, len(stamps)) - len(stamps))
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


def trouble_in(chunk: Chunk) -> str:
    """Return the error in a chunk that has not exactly one choice; empty if it has none."""
    if chunk.error is not None:
        return f"error from the server: {json.dumps(chunk.error)[:200]}"
    if not chunk.choices and (chunk.object == "error" or chunk.message is not None):
        return f"error from the server: {json.dumps(chunk.message or 'without a message')[:200]}"
    return "several choices in one answer" if len(chunk.choices) > 1 else ""


def assembled(raw: RawAnswer, at: list[int], chunks: list[Chunk], done: bool) -> Answer:
    """Return the answer of these chunks, or why they are none; `done` tells whether the server said that it was whole."""
    # This loop and the decoder are what a token costs the client, so it does nothing that can wait until there is reasoning.
    stamps: list[int] = []
    carried: list[int] = []
    content: list[str] = []
    reasoning: list[str] = []
    calls: list[tuple[int, list[ToolCall]]] = []
    first_ns = content_ns = 0
    finish_reason: str | None = None
    usage: Usage | None = None
    tells_tokens = False
    for stamp, chunk in zip(at, chunks, strict=True):
        choices = chunk.choices
        if chunk.usage is not None:
            usage = chunk.usage
        if len(choices) != 1 or chunk.error is not None:
            if trouble := trouble_in(chunk):
                return failed(raw, trouble)
            continue
        choice = choices[0]
        if choice.index:
            return failed(raw, "several choices in one answer")
        if choice.finish_reason is not None:
            finish_reason = choice.finish_reason
        holds = False
        delta = choice.delta or choice.message
        if delta is not None:
            if delta.content:
                content.append(delta.content)
                content_ns = content_ns or stamp
                holds = True
            if delta.reasoning or delta.reasoning_content:
                reasoning.append(delta.reasoning or delta.reasoning_content or "")
                holds = True
            if delta.tool_calls:
                calls.append((stamp, delta.tool_calls))
                holds = True
        ids = choice.token_ids
        if ids is not None:
            tells_tokens = True
        if holds:
            first_ns = first_ns or stamp
        elif not ids:
            continue
        stamps.append(stamp)
        carried.append(len(ids) if ids else 0)
    if trouble := unfinished(finish_reason, done, bool(first_ns), usage):
        return failed(raw, trouble)
    assert usage is not None
    if tells_tokens and not carried[0]:  # text that no token stands for was not generated
        first_ns = next((stamp for stamp, tokens in zip(stamps, carried, strict=True) if tokens), first_ns)
    thought, text, begin = thought_apart("".join(content), "".join(reasoning))
    begins = [stamp_at(at, chunks, begin) if begin else content_ns] if text else []
    begins += [stamp for stamp, _ in calls[:1]]
    details = usage.prompt_tokens_details
    return Answer(
        sent_ns=raw.sent_ns,
        first_ns=first_ns,
        last_ns=stamps[-1],
        chunk_ns=stamps,
        text=text + arguments_of(calls),
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=(details.cached_tokens if details else None) or 0,
        tokens=usage.completion_tokens,
        scheduled_ns=raw.scheduled_ns,
        first_byte_ns=raw.blocks[0][0],
        chunk_tokens=carried if tells_tokens else None,
        reasoning=thought,
        answer_ns=max(min(begins), first_ns) if begins else 0,
        replaced=raw.replaced,
    )


def unfinished(finish_reason: str | None, done: bool, begun: bool, usage: Usage | None) -> str:
    """Return why an answer that ended so is none; empty when it is one."""
    if finish_reason in BROKEN_OFF:
        return f"finish_reason: {finish_reason}"
    if not done and finish_reason is None:
        return "cut off before [DONE]"
    if not begun:
        return "no content"
    return "no usage chunk" if usage is None else ""


def thought_apart(content: str, reasoning: str) -> tuple[str, str, int]:
    """Return (reasoning, answer, where in `content` the answer begins).

    Reasoning is what the server tells apart, and `<think>…</think>` at the begin of the content; white space that follows it
    belongs to neither. One that is never closed leaves no answer. The opening tag is missing where the chat template ends with it.
    """
    answer = content
    begin = content.lstrip()
    if begin.startswith(THINK) or (not reasoning and ends_thought(content)):
        thought, _, answer = begin.removeprefix(THINK).partition(THOUGHT)
        reasoning += thought
    elif not reasoning:
        return "", content, 0
    answer = answer.lstrip()
    return reasoning.strip(), answer, len(content) - len(answer)


def ends_thought(content: str) -> bool:
    """Tell whether a tag in the content closes what it does not open; in JSON a tag is no more than text."""
    before, tag, _ = content.partition(THOUGHT)
    if not tag or THINK in before:
        return False
    try:
        msgspec.json.decode(content)
    except UNREADABLE:
        return True
    return False


def stamp_at(at: list[int], chunks: list[Chunk], position: int) -> int:
    """Return the stamp of the chunk that holds the character at `position` of the content."""
    end = 0
    for stamp, chunk in zip(at, chunks, strict=True):
        delta = chunk.choices[0].delta or chunk.choices[0].message if chunk.choices else None
        end += len(delta.content or "") if delta else 0
        if position < end:
            return stamp
    raise ValueError("no character there")


def arguments_of(calls: list[tuple[int, list[ToolCall]]]) -> str:
    """Return the arguments of the tool calls, of which a stream sends parts, one call after the other."""
    found: dict[int, str] = {}
    for _, parts in calls:
        for number, part in enumerate(parts):
            index = number if part.index is None else part.index
            found[index] = found.get(index, "") + ((part.function.arguments if part.function else None) or "")
    return "".join(found[index] for index in sorted(found))
