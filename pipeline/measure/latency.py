"""Latency and throughput of streamed answers. Pure: stamps in, milliseconds and tokens per second out."""

from collections.abc import Sequence
from itertools import pairwise

NS_PER_MS = 1e6
# One flush may come in several reads. No server makes a token for one request in so short a time: that were 4000 tok/s.
SAME_ARRIVAL_NS = 250_000


def ttft_ms(sent_ns: int, first_ns: int) -> float:
    """Return time to first token: first chunk with content, reasoning or a tool call − request send."""
    return (first_ns - sent_ns) / NS_PER_MS


def tpot_ms(first_ns: int, chunk_ns: Sequence[int], chunk_tokens: Sequence[float]) -> float | None:
    """Return time per output token: (t_last − t_first) / tokens that arrived after t_first; None where none did.

    t_first is the first chunk with text, t_last the last chunk with a token, with text or without. What arrives before the
    first text or together with it was made before, and shows no pace: a proxy that sends 32 chunks at once makes nothing faster.
    """
    after = arrived_after_first(first_ns, chunk_ns, chunk_tokens)
    tokens = sum(count for _, count in after)
    return (after[-1][0] - first_ns) / tokens / NS_PER_MS if tokens else None


def arrived_after_first(first_ns: int, chunk_ns: Sequence[int], chunk_tokens: Sequence[float]) -> list[tuple[int, float]]:
    """Return (stamp, tokens) of each chunk with tokens that came later than the first text, and not with it."""
    after = [(at, tokens) for at, tokens in zip(chunk_ns, chunk_tokens, strict=True) if tokens and at > first_ns]
    reached_ns = first_ns
    for number, (at, _) in enumerate(after):
        if at - reached_ns > SAME_ARRIVAL_NS:
            return after[number:]
        reached_ns = at
    return []


def e2e_ms(sent_ns: int, last_ns: int) -> float:
    """Return end-to-end latency: last content or token − request send; the usage chunk does not extend it."""
    return (last_ns - sent_ns) / NS_PER_MS


def gaps_ms(chunk_ns: Sequence[int]) -> list[float]:
    """Return the inter-token latencies of one answer: the gaps between its chunks, each of which may hold several tokens."""
    return [(after - before) / NS_PER_MS for before, after in pairwise(chunk_ns)]


def steady_tok_s(answers: Sequence[tuple[int, Sequence[int], Sequence[float]]], concurrency: int) -> float | None:
    """Return the throughput of a closed loop while it was full, from (sent ns, chunk ns, tokens of each chunk) of each answer.

    The loop is full from the send that fills it until the last send, after which it drains. Returns None if there is no such
    time.
    """
    sends = sorted(sent for sent, _, _ in answers)
    if len(sends) <= concurrency or sends[-1] == sends[concurrency - 1]:
        return None
    begin, end = sends[concurrency - 1], sends[-1]
    inside = sum(count for _, chunks, tokens in answers for at, count in zip(chunks, tokens, strict=True) if begin < at <= end)
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
