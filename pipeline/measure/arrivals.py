"""Arrival schedule of an open loop, fixed before the first request, and the test for overload. Pure."""

import math
import random
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, combinations
from statistics import median
from typing import Literal

Arrival = Literal["poisson", "constant"]
MOST_BLOCKS = 40
CHANCE = 0.002
RISE = 0.1  # seconds of latency per second of arrivals: requests arrive 11 % faster than they are answered
Point = tuple[float, float]


def schedule(arrival: Arrival, rate_per_s: float, requests: int, seed: int) -> list[float]:
    """Return the due times in seconds from the start, at equal gaps or as a Poisson process with exactly this mean rate.

    The first request is due at 0, the last at (requests − 1) / rate. The gaps of the Poisson process are exponential ones scaled
    to that sum: given the number of arrivals and the time of the last one, a Poisson process's other arrivals are the order
    statistics of uniform times (Ross, Introduction to Probability Models, theorem 5.2), and that is what such sums are (Devroye,
    Non-Uniform Random Variate Generation, V.2.2). Left to chance, 16 arrivals come at 0.6 to 1.7 times the rate asked for.
    Raises ValueError if the rate is not positive.
    """
    if not rate_per_s > 0:
        raise ValueError("a rate is positive")
    if arrival == "constant" or requests < 2:
        return [number / rate_per_s for number in range(requests)]
    source = random.Random(seed)
    sums = list(accumulate(source.expovariate(1) for _ in range(requests - 1)))
    return [0.0, *((requests - 1) / rate_per_s * (one / sums[-1]) for one in sums)]


def came_per_s(sent_s: Sequence[float]) -> float | None:
    """Return the rate at which requests came, (n − 1) / (last send − first send); None without two sends apart in time."""
    if len(sent_s) < 2 or max(sent_s) <= min(sent_s):
        return None
    return (len(sent_s) - 1) / (max(sent_s) - min(sent_s))


def overloaded(due_s: Sequence[float], latencies_ms: Sequence[float], rise: float = RISE) -> bool:
    """Tell whether the server falls behind: latency rises in order of arrival, by more than `rise` seconds per second of arrivals.

    Where requests arrive at a rate λ above the rate µ at which they are answered, latency rises by 1 − µ/λ per second. The slope
    is Theil and Sen's, over the medians of at most 40 blocks of successive requests. The rise must also be beyond chance: under
    exchangeable latencies, Kendall's S is as large in at most 0.2 % of the cases by its exact distribution (Kendall 1975; ties make
    that rarer), which takes at least 6 blocks. Requests due within the first median latency are left out: they found an emptier server.
    """
    if not latencies_ms:
        return False
    full_s = due_s[0] + median(latencies_ms) / 1000
    points = [point for point in zip(due_s, latencies_ms, strict=True) if point[0] >= full_s]
    pairs = list(combinations(block_medians(points), 2))
    s = sum((after[1] > before[1]) - (after[1] < before[1]) for before, after in pairs)
    if chance_of(s, len(pairs)) > CHANCE:
        return False
    slopes = [(after[1] - before[1]) / 1000 / (after[0] - before[0]) for before, after in pairs if after[0] > before[0]]
    return bool(slopes) and median(slopes) > rise


def block_medians(points: Sequence[Point]) -> list[Point]:
    """Return the medians of x and of y of at most 40 blocks of successive points, equally large; what is left over at the end goes."""
    size = math.ceil(len(points) / MOST_BLOCKS)
    blocks = [points[start : start + size] for start in range(0, len(points) - size + 1, size or 1)] if points else []
    return [(median(x for x, _ in block), median(y for _, y in block)) for block in blocks]


def chance_of(s: int, pairs: int) -> float:
    """Return the probability that Kendall's S, the rising pairs − the falling ones, is at least `s` if every order is as likely."""
    most = (pairs - s) // 2  # falling pairs, the inversions of a permutation
    return inversions((1 + math.isqrt(1 + 8 * pairs)) // 2)[most] if pairs else 1.0


@cache
def inversions(n: int) -> tuple[float, ...]:
    """Return the shares of the permutations of n values with at most 0, 1, 2 … inversions (Kendall 1975, 5.2)."""
    shares = [1.0]
    for placed in range(2, n + 1):
        longer = [0.0] * (len(shares) + placed - 1)
        for count, share in enumerate(shares):
            for more in range(placed):
                longer[count + more] += share / placed
        shares = longer
    return tuple(accumulate(shares))
