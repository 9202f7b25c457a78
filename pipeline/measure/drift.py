"""Trend of a series: its slope with a confidence interval, and the change from its first to its last tenth. Pure, plain Python."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median
from typing import TypeVar

from pipeline.measure.statistics import CONFIDENCE

MOST_POINTS = 600  # their 180,000 pairs take a tenth of a second
Point = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Slope:
    """Rise per unit of x with its 95 % interval; the bounds are None if n is too small."""

    value: float
    low: float | None
    high: float | None


def thin(items: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """Return at most `most` of the items, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def theil_sen(*series: Sequence[Point]) -> Slope | None:
    """Return the median slope over all pairs of thinned points of the same series; None unless two points differ in x.

    The bounds are order statistics of these slopes, by Kendall's normal approximation with its correction for ties (Sen 1968),
    with the variance summed over the series (Hirsch and Slack 1982). The method treats the points as independent, which samples
    of a slow process are not: thinning helps, but the interval of a wandering series is still too narrow.
    """
    points = sum(len(one) for one in series)
    kept = [thin(one, max(2, MOST_POINTS * len(one) // points)) for one in series if one]
    pairs = (pair for one in kept for pair in combinations(one, 2))
    slopes = sorted((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs if after[0] != before[0])
    if not slopes:
        return None
    count = len(slopes)
    spread = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2) * math.sqrt(sum(map(variance, kept)))
    low, high = math.floor((count - spread) / 2) - 1, math.ceil((count + spread) / 2)
    enough = low >= 0 and high < count
    middle = median(slopes)
    # If all values are tied, the two order statistics are the neighbours of the median.
    return Slope(middle, min(slopes[low], middle), max(slopes[high], middle)) if enough else Slope(middle, None, None)


def variance(points: Sequence[Point]) -> float:
    """Return the variance of Kendall's S for points without a trend."""
    n = len(points)
    tied = sum(count * (count - 1) * (2 * count + 5) for count in Counter(y for _, y in points).values())
    return (n * (n - 1) * (2 * n + 5) - tied) / 18


def decile_change(values: Sequence[float]) -> float:
    """Return the median of the last tenth of the values − that of the first; raise ValueError without values."""
    tenth = max(1, len(values) // 10)
    return median(values[-tenth:]) - median(values[:tenth])
