"""Percentiles and shares with their confidence bounds. Pure, distribution-free, plain Python."""

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import TypeVar

from pipeline.measure.figures import Figure, not_measured
from pipeline.message import _

CONFIDENCE = 0.95
RESAMPLES = 1000
LEAST_CLUSTERS = 10  # of fewer, resamples tell too little of how much they differ
NO_SUCCESS = _("no request succeeded")
NO_REQUEST = _("no request was sent")
T = TypeVar("T")


def percentile_figure(values: Sequence[float], q: float, unit: str, reason: str = NO_SUCCESS, failed: int = 0) -> Figure:
    """Return the q-quantile (nearest rank) with one-sided 95 % order-statistic bounds.

    The upper bound is the smallest order statistic x(u) with P(Bin(n, q) < u) ≥ 0.95, the lower bound the largest x(l) with
    P(Bin(n, q) ≥ l) ≥ 0.95 (David & Nagaraja, Order Statistics, 7.1). A bound is None if n is too small for it: p95 has an
    upper bound from n = 59. `failed` counts the requests that gave no value.
    """
    if not values:
        return not_measured(unit, reason)
    ordered = sorted(values)
    n = len(ordered)
    cumulative = binomial_cumulative(n, q)
    upper = next((u for u in range(1, n + 1) if cumulative[u - 1] >= CONFIDENCE), None)
    lower = next((low for low in range(n, 0, -1) if 1 - cumulative[low - 1] >= CONFIDENCE), None)
    return Figure(
        value=quantile(ordered, q),
        unit=unit,
        n=n,
        low=ordered[lower - 1] if lower else None,
        high=ordered[upper - 1] if upper else None,
        failed=failed,
    )


def clustered_percentile_figure(
    clusters: Sequence[Sequence[float]], q: float, unit: str, reason: str = NO_SUCCESS, failed: int = 0
) -> Figure:
    """Return the q-quantile (nearest rank) of all values, whose n is the clusters: values of one cluster are alike.

    One-sided 95 % percentile bounds of 1000 seeded resamples of whole clusters (Davison & Hinkley, Bootstrap Methods, 3.8);
    none below ten clusters. `failed` counts the clusters that gave no value.
    """
    groups = [sorted(cluster) for cluster in clusters if cluster]
    if not groups:
        return not_measured(unit, reason)
    ordered = sorted(value for group in groups for value in group)
    low = high = None
    if len(groups) >= LEAST_CLUSTERS:
        # Most resamples look at the same values, so how many of each group are not above them is counted once.
        below = cache(lambda index: [bisect_right(group, ordered[index]) for group in groups])
        source = random.Random(0)
        draws = (Counter(source.choices(range(len(groups)), k=len(groups))) for _ in range(RESAMPLES))
        found = sorted(ordered[weighted_rank(below, len(ordered), draw, q)] for draw in draws)
        low, high = found[int((1 - CONFIDENCE) * RESAMPLES)], found[math.ceil(CONFIDENCE * RESAMPLES) - 1]
    return Figure(value=quantile(ordered, q), unit=unit, n=len(groups), low=low, high=high, failed=failed)


def weighted_rank(below: Callable[[int], Sequence[int]], count: int, times: Mapping[int, int], q: float) -> int:
    """Return the index, among `count` ordered values, of the q-quantile of groups that count so many `times` each.

    `below` returns how many values of each group are not above the value at an index.
    """

    def reached(index: int) -> int:
        counts = below(index)
        return sum(counts[group] * number for group, number in times.items())

    rank = max(1, math.ceil(q * reached(count - 1)))
    return bisect_left(range(count), rank, key=reached)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by nearest rank; raise ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def least_for_bound(q: float) -> int:
    """Return the least n for which the q-quantile has an upper bound: 1 − q^n ≥ 95 %, 59 for p95 and 299 for p99."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(q))


def binomial_cumulative(n: int, p: float) -> list[float]:
    """Return P(Bin(n, p) ≤ k) for k = 0 … n; terms beyond 12 standard deviations, under 1e-20 in all, are left out."""
    reach = 12 * (math.sqrt(n * p * (1 - p)) + 1)
    first, last = max(0, math.floor(n * p - reach)), min(n, math.ceil(n * p + reach))
    total, result = 0.0, [0.0] * first
    for k in range(first, last + 1):
        log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        total += math.exp(log_term)
        result.append(min(total, 1.0))
    return result + [min(total, 1.0)] * (n - last)


def share_figure(successes: int, n: int) -> Figure:
    """Return successes / n in percent with the two-sided 95 % Wilson interval (Wilson 1927)."""
    if n == 0:
        return not_measured("%", NO_REQUEST)
    low, high = wilson(successes, n)
    return Figure(value=100 * successes / n, unit="%", n=n, low=100 * low, high=100 * high)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share, within [0, 1]."""
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # With no successes or only successes, the bound is exactly 0 or 1, which floating point narrowly misses.
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0


def bootstrap_figure(items: Sequence[T], statistic: Callable[[Sequence[T]], float], unit: str, seed: int = 0) -> Figure:
    """Return statistic(items) with the two-sided 95 % percentile bootstrap interval of 1000 seeded resamples (Efron 1979).

    Identical items give no bounds: resampling them shows no spread, however few they are.
    """
    if not items:
        return not_measured(unit, NO_REQUEST)
    source = random.Random(seed)
    values = sorted(statistic(source.choices(items, k=len(items))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    if values[0] == values[-1]:
        return Figure(value=values[0], unit=unit, n=len(items))
    low, high = values[int(tail * RESAMPLES)], values[math.ceil((1 - tail) * RESAMPLES) - 1]
    return Figure(value=statistic(items), unit=unit, n=len(items), low=low, high=high)
