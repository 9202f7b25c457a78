"""Comparison of two runs: ratios with confidence intervals, tests, verdicts. A is the reference. Pure, plain Python."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from pipeline.measure.classification import mcnemar_p
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import CONFIDENCE

Better = Literal["higher", "lower"]
Word = Literal["better", "worse", "same", "not comparable"]
RESAMPLES = 2000
ALPHA = 1 - CONFIDENCE
DEFAULT_NOISE = 0.1
LOWER_UNITS = ("ms", "s", "MiB")
HIGHER_UNITS = ("tok/s", "requests/s")
LOWER_SHARES = ("truncated", "repair_rate")
NO_DIRECTION = ("majority_baseline", "constraint_", "d5_other_seed")  # a property of the suite, a difference between arms, a control


@dataclass(frozen=True)
class Noise:
    """Relative run-to-run variation of a figure, and whether it was measured or is a default."""

    relative: float
    measured: bool


@dataclass(frozen=True)
class Estimate:
    """B / A with its 95 % interval (None without one), whether the difference is significant, and the method that decided it."""

    ratio: float | None
    low: float | None
    high: float | None
    differs: bool
    method: str


@dataclass(frozen=True)
class Compared:
    """Verdict on one figure, the estimate behind it, and the reason."""

    verdict: Word
    estimate: Estimate | None
    reason: str


def better_when(name: str, unit: str) -> Better | None:
    """Return which direction of a figure is better, or None if neither is."""
    if name.startswith(NO_DIRECTION):
        return None
    if unit in LOWER_UNITS or name.endswith(LOWER_SHARES):
        return "lower"
    return "higher" if unit in HIGHER_UNITS or unit == "%" else None


def default_noise(name: str, unit: str) -> Noise:
    """Return the noise to assume without a measurement: 10 %, but none for shares of answers, which are counted, not timed."""
    timed = unit != "%" or "goodput" in name
    return Noise(DEFAULT_NOISE if timed else 0.0, measured=False)


def verdict(better: Better | None, estimate: Estimate, noise: Noise) -> Compared:
    """Return better or worse if B differs significantly and by more than the noise, else same; not comparable without a direction."""
    if better is None:
        return Compared("not comparable", estimate, "neither direction is better")
    if not estimate.differs:
        return Compared("same", estimate, "within chance")
    if not exceeds_noise(estimate.ratio, noise.relative):
        return Compared("same", estimate, "within the noise")
    more = estimate.ratio is None or estimate.ratio > 1
    return Compared("better" if more == (better == "higher") else "worse", estimate, "")


def exceeds_noise(ratio: float | None, noise: float) -> bool:
    """Tell whether a ratio is further from 1 than the noise, in either direction; None, the ratio to a reference of 0, always is."""
    return ratio is None or max(ratio, 1 / ratio if ratio > 0 else math.inf) > 1 + noise


def by_samples(a: Sequence[float], b: Sequence[float], q: float, seed: int = 0) -> Estimate:
    """Return the ratio of two q-quantiles with its percentile bootstrap interval (Efron 1979), each side resampled on its own.

    A median differs if the interval excludes 1 and the Mann-Whitney test agrees; another quantile if the interval excludes 1.
    Raises ValueError without values, or if one is not positive.
    """
    first, second = sorted(a), sorted(b)
    if not first or not second or first[0] <= 0 or second[0] <= 0:
        raise ValueError("a ratio needs positive values on both sides")
    source = random.Random(seed)
    ratios = sorted(resample_quantile(second, q, source) / resample_quantile(first, q, source) for _ in range(RESAMPLES))
    low, high = ratios[int(ALPHA / 2 * RESAMPLES)], ratios[math.ceil((1 - ALPHA / 2) * RESAMPLES) - 1]
    excludes_one = not low <= 1 <= high
    ratio = second[rank(len(second), q) - 1] / first[rank(len(first), q) - 1]
    if q != 0.5:
        return Estimate(ratio, low, high, excludes_one, "bootstrap")
    p = mann_whitney_p(first, second)
    return Estimate(ratio, low, high, excludes_one and p < ALPHA, f"bootstrap; Mann-Whitney p = {p:.2g}")


def rank(n: int, q: float) -> int:
    """Return the nearest-rank position of the q-quantile, counted from 1."""
    return max(1, math.ceil(q * n))


def resample_quantile(ordered: Sequence[float], q: float, source: random.Random) -> float:
    """Return the q-quantile of one resample with replacement, without drawing the resample.

    Each draw is the ceil(n U)-th smallest value for a uniform U. That keeps the order, so the k-th smallest draw comes from the
    k-th smallest of n uniforms, which is distributed as Beta(k, n − k + 1) (David & Nagaraja, Order Statistics, 2.1).
    """
    n = len(ordered)
    k = rank(n, q)
    return ordered[max(1, math.ceil(n * source.betavariate(k, n - k + 1))) - 1]


def mann_whitney_u(a: Sequence[float], b: Sequence[float]) -> float:
    """Return U: the number of pairs in which the value from `a` is larger, with ties counted as half."""
    ranks, at = {}, 0
    for value, count in sorted(Counter([*a, *b]).items()):
        ranks[value] = at + (count + 1) / 2
        at += count
    return sum(ranks[value] for value in a) - len(a) * (len(a) + 1) / 2


def mann_whitney_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p of the Mann-Whitney test, by the normal approximation with corrections for ties and continuity."""
    n, m = len(a), len(b)
    total = n + m
    ties = sum(count**3 - count for count in Counter([*a, *b]).values())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1))) if total > 1 else 0.0
    if variance <= 0:
        return 1.0
    distance = max(0.0, abs(mann_whitney_u(a, b) - n * m / 2) - 0.5)
    return min(1.0, 2 * NormalDist().cdf(-distance / math.sqrt(variance)))


def by_pairs(pairs: Sequence[tuple[bool, bool]]) -> Estimate:
    """Return the ratio of the shares correct in B and in A, from (right in A, right in B) per case, with McNemar's exact test.

    Raises ValueError without cases.
    """
    if not pairs:
        raise ValueError("no cases in common")
    only_a, only_b = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    right_a, right_b = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    p = mcnemar_p(only_a, only_b)
    ratio = right_b / right_a if right_a else None if right_b else 1.0
    return Estimate(ratio, None, None, p < ALPHA, f"McNemar p = {p:.2g}, {len(pairs)} cases")


def by_bounds(a: Figure, b: Figure) -> Estimate | None:
    """Return the ratio with an interval from the figures' own bounds; None if a value is missing or negative, or only some bounds exist.

    MOVER (Zou & Donner 2008) combines the distances from value to bound, on the log scale, as a root sum of squares. Where a
    zero has no logarithm, it does so for the difference of the values, and the ratio has no interval. Figures without bounds
    differ if they are not equal.
    """
    if a.value is None or b.value is None or min(a.value, b.value) < 0:
        return None
    ratio = b.value / a.value if a.value else None if b.value else 1.0
    bounds = (a.low, a.high, b.low, b.high)
    if all(bound is None for bound in bounds):
        return Estimate(ratio, None, None, a.value != b.value, "values, without bounds")
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    if ratio and min(a.low, b.low) > 0:
        centre, (la, va, ha), (lb, vb, hb) = math.log(ratio), logs(a.low, a.value, a.high), logs(b.low, b.value, b.high)
        least, most = math.exp(centre - math.hypot(vb - lb, ha - va)), math.exp(centre + math.hypot(hb - vb, va - la))
        return Estimate(ratio, least, most, not least <= 1 <= most, "bounds")
    low = b.value - a.value - math.hypot(b.value - b.low, a.high - a.value)
    high = b.value - a.value + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(ratio, None, None, not low <= 0 <= high, "bounds")


def logs(*values: float) -> tuple[float, ...]:
    """Return the natural logarithms."""
    return tuple(math.log(value) for value in values)


@dataclass(frozen=True)
class Spread:
    """Variation among equal runs: (largest − smallest) / median, and standard deviation / mean."""

    n: int
    relative_range: float
    variation: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return the run-to-run spread, or None for fewer than two values or if one is not positive."""
    if len(values) < 2 or min(values) <= 0:
        return None
    ordered, n = sorted(values), len(values)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return Spread(n, (ordered[-1] - ordered[0]) / median, deviation / mean)


def exit_code(verdicts: Sequence[Word]) -> int:
    """Return 1 if a figure is worse, 2 if nothing could be compared, else 0."""
    if "worse" in verdicts:
        return 1
    return 0 if any(word != "not comparable" for word in verdicts) else 2
