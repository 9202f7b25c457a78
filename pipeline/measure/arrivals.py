"""Arrival schedule of an open loop, fixed before the first request, and the test for overload. Pure."""

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Arrival = Literal["poisson", "constant"]


def schedule(arrival: Arrival, rate_per_s: float, requests: int, seed: int) -> list[float]:
    """Return the due times in seconds from the start, with exponential gaps (a Poisson process) or equal ones.

    The first request is due at 0. Raises ValueError if the rate is not positive.
    """
    if not rate_per_s > 0:
        raise ValueError("a rate is positive")
    if arrival == "constant":
        return [number / rate_per_s for number in range(requests)]
    source = random.Random(seed)
    gaps = [source.expovariate(rate_per_s) for _ in range(max(0, requests - 1))]
    return [0.0, *accumulate(gaps)] if requests else []


def overloaded(latencies_ms: Sequence[float]) -> bool:
    """Tell whether latency rises in order of arrival and its median in the last third is over twice that in the first.

    It rises if Kendall's S exceeds its one-sided 95 % normal bound (Mann 1945, Kendall 1975). Always false below 9 requests.
    """
    n = len(latencies_ms)
    if n < 9:
        return False
    s = sum((later > earlier) - (later < earlier) for at, earlier in enumerate(latencies_ms) for later in latencies_ms[at + 1 :])
    deviation = (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    third = n // 3
    first, last = sorted(latencies_ms[:third])[third // 2], sorted(latencies_ms[-third:])[third // 2]
    return s > 1.645 * deviation and last > 2 * first
