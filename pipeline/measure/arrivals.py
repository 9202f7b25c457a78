"""When an open loop sends: a schedule fixed before the first request. Pure."""

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

Arrival = Literal["poisson", "constant"]


def schedule(arrival: Arrival, rate_per_s: float, requests: int, seed: int) -> list[float]:
    """Return the seconds from the start at which requests are due: exponential gaps (a Poisson process), or equal ones.

    The first is due at 0. ValueError where the rate is not positive.
    """
    if not rate_per_s > 0:
        raise ValueError("a rate is positive")
    if arrival == "constant":
        return [number / rate_per_s for number in range(requests)]
    source = random.Random(seed)
    gaps = [source.expovariate(rate_per_s) for _ in range(max(0, requests - 1))]
    return [0.0, *accumulate(gaps)] if requests else []


def overloaded(latencies_ms: Sequence[float]) -> bool:
    """Tell whether a server fell behind: latency rises with the order of arrival, and its last third's median doubles the first's.

    Rises: Kendall's S above its one-sided 95 % normal bound (Mann 1945, Kendall 1975). Never below 9 requests.
    """
    n = len(latencies_ms)
    if n < 9:
        return False
    s = sum((later > earlier) - (later < earlier) for at, earlier in enumerate(latencies_ms) for later in latencies_ms[at + 1 :])
    deviation = (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    third = n // 3
    first, last = sorted(latencies_ms[:third])[third // 2], sorted(latencies_ms[-third:])[third // 2]
    return s > 1.645 * deviation and last > 2 * first
