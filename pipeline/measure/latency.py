"""Latency and throughput of streamed answers. Pure: stamps in, milliseconds and tokens per second out."""

from collections.abc import Sequence
from itertools import pairwise

NS_PER_MS = 1e6


def ttft_ms(sent_ns: int, first_ns: int) -> float:
    """Return time to first token: first chunk with content − request send."""
    return (first_ns - sent_ns) / NS_PER_MS


def tpot_ms(first_ns: int, last_ns: int, tokens: int) -> float:
    """Return time per output token: (t_last − t_first) / (tokens − 1); raise ValueError below two tokens."""
    if tokens < 2:
        raise ValueError("TPOT needs at least two output tokens")
    return (last_ns - first_ns) / (tokens - 1) / NS_PER_MS


def e2e_ms(sent_ns: int, last_ns: int) -> float:
    """Return end-to-end latency: last content − request send; the usage chunk does not extend it."""
    return (last_ns - sent_ns) / NS_PER_MS


def gaps_ms(chunk_ns: Sequence[int]) -> list[float]:
    """Return the inter-token latencies of one answer: the gaps between its chunks, each of which may hold several tokens."""
    return [(after - before) / NS_PER_MS for before, after in pairwise(chunk_ns)]


def steady_tok_s(answers: Sequence[tuple[int, Sequence[int], int]], concurrency: int) -> float | None:
    """Return the throughput of a closed loop while it was full, from (sent ns, chunk ns, tokens) of each answer.

    The loop is full from the send that fills it until the last send, after which it drains. An answer's tokens are spread
    evenly over its chunks. Returns None if there is no such time.
    """
    sends = sorted(sent for sent, _, _ in answers)
    if len(sends) <= concurrency or sends[-1] == sends[concurrency - 1]:
        return None
    begin, end = sends[concurrency - 1], sends[-1]
    inside = sum(tokens * sum(begin < at <= end for at in chunks) / len(chunks) for _, chunks, tokens in answers if chunks)
    return inside / (end - begin) * 1e9


def most_in_flight(spans: Sequence[tuple[int, int]]) -> int:
    """Return the largest number of (begin, end) spans that overlap at any time."""
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def meets_limits(ttft: float, tpot: float | None, e2e: float, limits: tuple[float | None, float | None, float | None]) -> bool:
    """Tell whether a request meets every limit (TTFT, TPOT, E2E in ms; None means no limit); an answer of one token has no TPOT."""
    return all(limit is None or value is None or value < limit for value, limit in zip((ttft, tpot, e2e), limits, strict=True))
