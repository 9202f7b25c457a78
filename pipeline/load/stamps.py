"""Raw stamps of answers on disk, and the latencies computed from them."""

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from pipeline.client.answer import Answer
from pipeline.measure.latency import e2e_ms, gaps_ms, tpot_ms, ttft_ms
from pipeline.message import _

GZIP_LEVEL = 4  # much faster than 9, and only a few percent larger


def raw_line(phase: str, answer: Answer, began_ns: int) -> dict[str, Any]:
    """Return one answer's stamps in ns: `scheduled` from the run's start, `sent` from `scheduled`, each chunk from the previous.

    `first` and `answer` are the indices of the first chunk with text and of the first of the answer proper. `chunk_tokens` is
    how many tokens each chunk carried: one number if all carried the same, null if the server did not say.
    """
    carried = answer.chunk_tokens
    return {
        "phase": phase,
        "scheduled": answer.scheduled_ns - began_ns,
        "sent": answer.sent_ns - answer.scheduled_ns,
        "first_byte": answer.first_byte_ns - answer.sent_ns if answer.ok else None,
        "chunks": [at - before for before, at in zip([answer.sent_ns, *answer.chunk_ns], answer.chunk_ns, strict=False)],
        "first": answer.chunk_ns.index(answer.first_ns) if answer.chunk_ns else None,
        "answer": answer.chunk_ns.index(answer.answer_ns) if answer.answer_ns else None,
        "chunk_tokens": carried[0] if carried and len(set(carried)) == 1 else carried,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "error": answer.error,
        **({"replaced": answer.replaced} if answer.replaced else {}),
    }


def compressed(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the lines as a compressed file of JSON lines."""
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), GZIP_LEVEL, mtime=0)


def raw_answer(line: Mapping[str, Any]) -> Answer:
    """Return the answer that `raw_line` wrote, also in an older version, without its text; its times count from the run's start."""
    sent = line["scheduled"] + line["sent"]
    chunk_ns = list(accumulate(line["chunks"], initial=sent))[1:]
    carried = line.get("chunk_tokens")
    begins = line.get("answer", 0 if chunk_ns else None)
    return Answer(
        sent_ns=sent,
        first_ns=chunk_ns[line.get("first") or 0] if chunk_ns else 0,
        last_ns=chunk_ns[-1] if chunk_ns else 0,
        chunk_ns=chunk_ns,
        prompt_tokens=line["prompt_tokens"],
        cached_tokens=line["cached_tokens"],
        tokens=line["tokens"],
        error=line["error"],
        scheduled_ns=line["scheduled"],
        first_byte_ns=sent + line["first_byte"] if line["first_byte"] is not None else 0,
        chunk_tokens=[carried] * len(chunk_ns) if isinstance(carried, int) else carried,
        answer_ns=0 if begins is None else chunk_ns[begins],
        replaced=line.get("replaced", 0),
    )


def first_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TTFT of each successful answer."""
    return [ttft_ms(answer.sent_ns, answer.first_ns) for answer in answers if answer.ok]


def first_byte_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the time to the first byte of each successful answer's body."""
    return [ttft_ms(answer.sent_ns, answer.first_byte_ns) for answer in answers if answer.ok]


def first_due_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TTFT of each successful answer from its scheduled send."""
    return [ttft_ms(answer.scheduled_ns, answer.first_ns) for answer in answers if answer.ok]


def whole_due_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the E2E latency of each successful answer from its scheduled send."""
    return [e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in answers if answer.ok]


def answer_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TTFAT of each successful answer that is not all reasoning."""
    return [ttft_ms(answer.sent_ns, answer.answer_ns) for answer in answers if answer.ok and answer.answer_ns]


def whole_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the E2E latency of each successful answer."""
    return [e2e_ms(answer.sent_ns, answer.last_ns) for answer in answers if answer.ok]


def per_token_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TPOT of each successful answer that has tokens after its first text."""
    return [pace for answer in answers if answer.ok and (pace := pace_ms(answer)) is not None]


def pace_ms(answer: Answer) -> float | None:
    """Return the TPOT of one answer; None if no token came after its first text."""
    return tpot_ms(answer.first_ns, answer.chunk_ns, answer.tokens_by_chunk)


def between_ms(answers: Sequence[Answer]) -> list[float]:
    """Return every gap between two chunks of a successful answer."""
    return [gap for gaps in gaps_of(answers) for gap in gaps]


def gaps_of(answers: Sequence[Answer]) -> list[list[float]]:
    """Return the gaps between the chunks of each successful answer."""
    return [gaps_ms(answer.chunk_ns) for answer in answers if answer.ok]


# Figures of requests sent one at a time: the phase of each, and the values behind its percentiles.
COLD, WARM, ALONE = "TTFT, cold prefix cache c1", "TTFT, warm prefix cache c1", "decode c1"
Values = Callable[[Sequence[Answer]], list[float]]
TIMES: dict[str, tuple[str, Values]] = {
    "ttft_ms": (COLD, first_ms),
    "ttft_warm_ms": (WARM, first_ms),
    "ttfat_ms": (COLD, answer_ms),
    "first_byte_ms": (COLD, first_byte_ms),
    "tpot_ms": (ALONE, per_token_ms),
    "itl_ms": (ALONE, between_ms),
    "decode_tok_s": (ALONE, lambda answers: [1000 / value for value in per_token_ms(answers)]),
    "e2e_ms": (ALONE, whole_ms),
}


NO_GAP = _("no answer has two tokens apart in time")
