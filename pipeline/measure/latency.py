"""Latency of streamed answers. Pure: stamps in, milliseconds out."""

NS_PER_MS = 1e6


def ttft_ms(sent_ns: int, first_ns: int) -> float:
    """Return time to first token: first chunk with content − request send."""
    return (first_ns - sent_ns) / NS_PER_MS


def tpot_ms(first_ns: int, last_ns: int, tokens: int) -> float:
    """Return time per output token: (t_last − t_first) / (tokens − 1); ValueError below two tokens."""
    if tokens < 2:
        raise ValueError("TPOT needs at least two output tokens")
    return (last_ns - first_ns) / (tokens - 1) / NS_PER_MS


def e2e_ms(sent_ns: int, last_ns: int) -> float:
    """Return end-to-end latency: last content − request send; the usage chunk does not extend it."""
    return (last_ns - sent_ns) / NS_PER_MS
