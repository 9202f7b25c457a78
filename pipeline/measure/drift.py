"""How a series moves: its slope with a confidence interval, its range, and whether its end lies above its beginning. Pure; plain Python.

Samples in time are not independent, and memory that was taken often stays taken. So the interval resamples what the series
gained from one part of it to the next, in blocks, and not its levels around a line: one step counts as one event, which might
as well not have happened, and a rise that goes on is in every block.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, combinations, pairwise
from statistics import fmean, median, median_low

from pipeline.measure.statistics import CONFIDENCE, RESAMPLES

MOST_CELLS = 60
FEWEST_CHANGES = 9  # of which a bound is made
Point = tuple[float, float]


@dataclass(frozen=True)
class Slope:
    """Rise per unit of x with its 95 % interval, None where n is too small for one.

    The interval holds `resolution`, on both sides. `span` is how far the longest series reaches in x. `halves` is what was gained
    in the first half of each series, and in the second, summed over the series.
    """

    value: float
    low: float | None
    high: float | None
    resolution: float
    span: float
    halves: tuple[float, float]


def cells(points: Sequence[Point], most: int) -> list[Point]:
    """Return the points in at most so many parts of equal count: the lower medians of x and y of each."""
    n, count = len(points), min(len(points), most)
    parts = [points[index * n // count : (index + 1) * n // count] for index in range(count)]
    return [(median_low(x for x, _ in part), median_low(y for _, y in part)) for part in parts]


def slope_of(series: Sequence[Sequence[Point]], quantum: float, seed: int = 0) -> Slope | None:
    """Return the Theil–Sen slope of the series, the interval of what they gained; None without two points apart in x.

    The changes between neighbouring cells are drawn anew in moving blocks (Künsch 1989) that run on from the end of a series at
    its beginning, so that each change is drawn equally often (Politis and Romano 1992), with 1000 seeded resamples and the
    length of `block_length`. The 2.5 % and 97.5 % quantiles of what they gain, over what they take in x, are the interval.

    A series that grows in steps of one `quantum` shows nothing of a growth until the next step: with k steps seen in a time T the
    growth is above (k − 1) · quantum / T and below (k + 1) · quantum / T, so the bounds are as much wider. No sample can tell more.
    """
    total = sum(map(len, series))
    kept = [cells(one, max(2, MOST_CELLS * len(one) // total)) for one in series if one]
    value = theil_sen(*kept)
    if value is None:
        return None
    kept = [one for one in kept if one[-1][0] > one[0][0]]
    span = max(one[-1][0] - one[0][0] for one in series if one)
    changes = [[(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(one)] for one in kept]
    halves = [half_rises(one) for one in kept]
    risen = (sum(first for first, _ in halves), sum(second for _, second in halves))
    if sum(map(len, changes)) < FEWEST_CHANGES:
        return Slope(value, None, None, quantum / span, span, risen)
    low, high = rates(changes, seed)
    edge = quantum / span
    return Slope(value, min(low, value) - edge, max(high, value) + edge, edge, span, risen)


def theil_sen(*series: Sequence[Point]) -> float | None:
    """Return the median of the slopes of all pairs of points, each of one series (Sen 1968); None without two points apart in x."""
    pairs = (pair for one in series for pair in combinations(one, 2))
    slopes = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs if after[0] != before[0]]
    return median(slopes) if slopes else None


def half_rises(points: Sequence[Point]) -> Point:
    """Return what a series gained until the middle of its time, and from there to its end."""
    middle_x = (points[0][0] + points[-1][0]) / 2
    middle = min(points, key=lambda point: abs(point[0] - middle_x))[1]
    return middle - points[0][1], points[-1][1] - middle


def rates(changes: Sequence[Sequence[Point]], seed: int) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the gain per x of as many changes, drawn in blocks, each of one series."""
    every = list(chain(*changes))
    length = min(block_length([gained for _, gained in every]), *map(len, changes))
    whole, rest = divmod(len(every), length)
    blocks: list[Point] = []
    ends: list[Point] = []
    for one in changes:
        ring = [*one, *one[: length - 1]]
        took, gained = ([0.0, *accumulate(values)] for values in zip(*ring, strict=True))
        blocks += [(took[at + length] - took[at], gained[at + length] - gained[at]) for at in range(len(one))]
        ends += [(took[at + rest] - took[at], gained[at + rest] - gained[at]) for at in range(len(one))]
    source = random.Random(seed)
    draws = ((*source.choices(blocks, k=whole), source.choice(ends)) for _ in range(RESAMPLES))
    drawn = sorted(math.fsum(gained for _, gained in draw) / math.fsum(took for took, _ in draw) for draw in draws)
    tail = (1 - CONFIDENCE) / 2
    return drawn[int(tail * RESAMPLES)], drawn[math.ceil((1 - tail) * RESAMPLES) - 1]


def block_length(values: Sequence[float]) -> int:
    """Return the length of the blocks that a series is resampled in, from its autocorrelations (Politis and White 2004).

    The spectrum at 0 comes from the flat-top lag window (Politis and Romano 1995), up to the lag after which the
    autocorrelations are chance, with the correction of Patton, Politis and White (2009). At most a third of the series and
    3 √n. Noise around a level makes changes that take each other back: the spectrum at 0 is next to nothing, the blocks long.
    """
    n, mean = len(values), fmean(values)
    apart = [value - mean for value in values]
    most = max(1, min(math.ceil(3 * math.sqrt(n)), n // 3))
    covariances = [sum(a * b for a, b in zip(apart, apart[lag:], strict=False)) / n for lag in range(n)]
    if covariances[0] <= 1e-18 * (1 + mean * mean):
        return 1  # all are alike
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    last = min(math.ceil(math.sqrt(n)) + run, n - 1)
    by_chance = 2 * math.sqrt(math.log10(n) / n) * covariances[0]
    lag = next((lag for lag in range(last) if all(abs(each) < by_chance for each in covariances[lag + 1 : lag + 1 + run])), last)
    width = min(2 * max(lag, 1), last)
    weights = [min(1.0, 2 * (1 - at / width)) for at in range(1, width + 1)]
    terms = list(zip(range(1, width + 1), weights, covariances[1:], strict=False))
    spectrum = covariances[0] + 2 * sum(weight * covariance for _, weight, covariance in terms)
    if spectrum <= 0:
        return most
    bend = 2 * sum(weight * at * covariance for at, weight, covariance in terms)
    return max(1, min(most, math.ceil(math.cbrt(2 * bend**2 / (4 / 3 * spectrum**2) * n))))


def telling_span(slope: Slope, limit: float) -> float | None:
    """Return how long a series must reach, if it goes on as it does, for its interval to leave `limit` out; None where it never will.

    What the resampling adds to the interval shrinks with the root of the time, the resolution with the time itself.
    """
    if slope.low is None or slope.high is None:
        return None
    gap = abs(limit - slope.value)
    wide = (slope.high - slope.value if slope.value <= limit else slope.value - slope.low) - slope.resolution
    if not gap:
        return None
    if not slope.resolution:
        return slope.span * (wide / gap) ** 2
    root = (math.sqrt(wide**2 + 4 * gap * slope.resolution) - wide) / (2 * slope.resolution)
    return slope.span / root**2


def decile_change(values: Sequence[float]) -> float:
    """Return the median of the last tenth of the values − that of the first; raise ValueError without values."""
    tenth = max(1, len(values) // 10)
    return median(values[-tenth:]) - median(values[:tenth])
