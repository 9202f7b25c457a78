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
    """Return one answer's stamps in ns: `scheduled` from the run's start, `sent` from `scheduled`, each chunk from the previous."""
    return {
        "phase": phase,
        "scheduled": answer.scheduled_ns - began_ns,
        "sent": answer.sent_ns - answer.scheduled_ns,
        "first_byte": answer.first_byte_ns - answer.sent_ns if answer.ok else None,
        "chunks": [at - before for before, at in zip([answer.sent_ns, *answer.chunk_ns], answer.chunk_ns, strict=False)],
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "error": answer.error,
    }


def compressed(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the lines as a compressed file of JSON lines."""
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), GZIP_LEVEL, mtime=0)


def raw_answer(line: Mapping[str, Any]) -> Answer:
    """Return the answer that `raw_line` wrote, without its text; its times count from the run's start."""
    sent = line["scheduled"] + line["sent"]
    chunk_ns = list(accumulate(line["chunks"], initial=sent))[1:]
    return Answer(
        sent_ns=sent,
        first_ns=chunk_ns[0] if chunk_ns else 0,
        last_ns=chunk_ns[-1] if chunk_ns else 0,
        chunk_ns=chunk_ns,
        prompt_tokens=line["prompt_tokens"],
        cached_tokens=line["cached_tokens"],
        tokens=line["tokens"],
        error=line["error"],
        scheduled_ns=line["scheduled"],
        first_byte_ns=sent + line["first_byte"] if line["first_byte"] is not None else 0,
    )


def first_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TTFT of each successful answer."""
    return [ttft_ms(answer.sent_ns, answer.first_ns) for answer in answers if answer.ok]


def whole_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the E2E latency of each successful answer."""
    return [e2e_ms(answer.sent_ns, answer.last_ns) for answer in answers if answer.ok]


def per_token_ms(answers: Sequence[Answer]) -> list[float]:
    """Return the TPOT of each successful answer with at least two tokens."""
    return [tpot_ms(answer.first_ns, answer.last_ns, answer.tokens) for answer in answers if answer.ok and answer.tokens > 1]


def between_ms(answers: Sequence[Answer]) -> list[float]:
    """Return every gap between two chunks of a successful answer."""
    return [gap for answer in answers if answer.ok for gap in gaps_ms(answer.chunk_ns)]


# Figures of requests sent one at a time: the phase of each, and the values behind its percentiles.
COLD, WARM, ALONE = "TTFT, cold prefix cache c1", "TTFT, warm prefix cache c1", "decode c1"
Values = Callable[[Sequence[Answer]], list[float]]
TIMES: dict[str, tuple[str, Values]] = {
    "ttft_ms": (COLD, first_ms),
    "ttft_warm_ms": (WARM, first_ms),
    "first_byte_ms": (COLD, lambda answers: [ttft_ms(answer.sent_ns, answer.first_byte_ns) for answer in answers if answer.ok]),
    "tpot_ms": (ALONE, per_token_ms),
    "itl_ms": (ALONE, between_ms),
    "decode_tok_s": (ALONE, lambda answers: [1000 / value for value in per_token_ms(answers) if value > 0]),
    "e2e_ms": (ALONE, whole_ms),
}


NO_GAP = _("no answer has two tokens apart in time")
