"""Two runs against each other: ratios with intervals, tests, verdicts. Pure; plain Python; A is the reference, B the other.

A figure of B is better or worse than that of A when the difference is all of this, else it is the same:

1. beyond chance within the runs. By the stamps: a two-sided percentile bootstrap of the ratio (Efron 1979), for medians also the
   Mann-Whitney test. Shares case by case: McNemar's exact test. Else by the figures' own bounds: MOVER (Zou & Donner 2008), its
   distance to "no difference" over its half-width towards it taken for a normal deviate.
2. beyond the noise between starts. A and B are single starts with values x (logarithms, or as they are, see `Kind`), a calibration of
   k other starts gave the standard deviation s. If starts are normal, (x_B − x_A) / (s √2) follows Student's t with k − 1 degrees of
   freedom: x_B − x_A has variance σ² + σ², and s estimates σ from other starts. So a pair differs when |x_B − x_A| exceeds
   t(0.975, k − 1) · s · √2. This is the prediction interval for a new value, t · s · √(1 + 1/k) (Hahn & Meeker, Statistical
   Intervals, ch. 4), with the variance 1 of the other run in place of 1/k, that of the calibration's mean: B is held against A,
   not against the mean. Were A and B means of a and b starts, the factor would be √(1/a + 1/b). Without a calibration s is the
   `Kind`'s own, and t a normal deviate.
3. more than `Kind` says matters, both in its unit and relative to the smaller value.
4. beyond chance among all figures that decide: p is the largest of the p-values of 1 and 2, and Holm's step-down correction (1979)
   keeps the chance that any of them is called different for nothing below 5 %. A share of 100 % in both runs, or of 0 %, does not
   count among them, for given that all answers are alike no test could tell (Tarone 1990). What does not decide is not corrected.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist, stdev
from typing import Literal

from pipeline.measure.classification import mcnemar_p
from pipeline.measure.directions import Better, Kind
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import CONFIDENCE

Word = Literal["better", "worse", "same", "not comparable"]
RESAMPLES = 2000  # so p is 0.001 at least, which Holm's correction calls different among up to 50 figures
ALPHA = 1 - CONFIDENCE
ONE_SIDED, TWO_SIDED = NormalDist().inv_cdf(CONFIDENCE), NormalDist().inv_cdf(1 - ALPHA / 2)  # deviates that bounds stand for


@dataclass(frozen=True)
class Noise:
    """How far a figure moves from start to start: the standard deviation of `starts` starts; None: nobody measured it.

    It is one of logarithms where figures are compared by their ratio.
    """

    deviation: float
    starts: int | None
    logarithmic: bool

    def p(self, distance: float) -> float:
        """Return the two-sided p that two starts lie so far apart."""
        if distance == 0:
            return 1.0
        if self.deviation == 0:
            return 0.0
        deviate = distance / (self.deviation * math.sqrt(2))
        return normal_p(deviate) if self.starts is None else student_p(deviate, self.starts - 1)

    @cached_property
    def reach(self) -> float:
        """Return how far apart 95 % of pairs of starts lie at most."""
        deviate = TWO_SIDED if self.starts is None else student_quantile(1 - ALPHA / 2, self.starts - 1)
        return deviate * self.deviation * math.sqrt(2)


@dataclass(frozen=True)
class Estimate:
    """B / A with its 95 % interval, None where there is none; p of so much by chance within the runs, None where nothing tells; by what."""

    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    method: str


@dataclass(frozen=True)
class Compared:
    """A figure's verdict, the estimate behind it, the words for it, and the p that decided: of a figure that decides, after Holm."""

    verdict: Word
    estimate: Estimate | None
    reason: str
    p: float | None = None


def normal_p(deviate: float) -> float:
    """Return the two-sided p of a normal deviate."""
    return 2 * NormalDist().cdf(-abs(deviate))


def student_p(t: float, df: int) -> float:
    """Return the two-sided p of Student's t with whole degrees of freedom (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(df))
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1 - within))


def student_quantile(p: float, df: int) -> float:
    """Return the p-quantile, p > 0.5, of Student's t, by bisection of its distribution."""
    low, high = 0.0, 1.0
    while student_p(high, df) / 2 > 1 - p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) / 2 > 1 - p else (low, middle)
    return high


def assumed_noise(kind: Kind) -> Noise | None:
    """Return the noise of figures of that kind where nobody measured it; None of what is counted."""
    return Noise(kind.noise, None, kind.by == "ratio") if kind.noise else None


def measured_noise(values: Sequence[float], kind: Kind) -> Noise | None:
    """Return the noise of these starts; None of fewer than two, or where one has no logarithm."""
    by_ratio = kind.by == "ratio"
    if len(values) < 2 or (by_ratio and min(values) <= 0):
        return None
    return Noise(stdev(map(math.log, values) if by_ratio else values), len(values), by_ratio)


def distance(a: float, b: float, kind: Kind) -> float:
    """Return how far apart two values are on the scale that their kind is compared by; infinite where only one has a logarithm."""
    if kind.by == "difference":
        return abs(b - a)
    return 0.0 if a == b else abs(math.log(b / a)) if a > 0 and b > 0 else math.inf


def matters(a: float, b: float, kind: Kind) -> bool:
    """Tell whether the difference is above both floors of the kind."""
    return abs(b - a) > max(kind.absolute, kind.relative * min(abs(a), abs(b)))


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Return the p-values as Holm's step-down correction leaves them: the rank-th smallest of m times m − rank + 1, never falling."""
    adjusted, least = {}, 0.0
    for rank_, (name, p) in enumerate(sorted(ps.items(), key=lambda entry: entry[1])):
        least = max(least, min(1.0, (len(ps) - rank_) * p))
        adjusted[name] = least
    return adjusted


@dataclass(frozen=True)
class Pair:
    """A figure of both runs that can be compared: its values, the estimate of their ratio, and the noise, None where there is none."""

    a: float
    b: float
    better: Better
    kind: Kind
    estimate: Estimate
    noise: Noise | None

    @property
    def noise_p(self) -> float | None:
        """Return the p that two starts lie so far apart; None where nothing tells."""
        return self.noise.p(distance(self.a, self.b, self.kind)) if self.noise else None

    @property
    def p(self) -> float | None:
        """Return the largest p of the tests that there are; None without any."""
        return max((p for p in (self.estimate.p, self.noise_p) if p is not None), default=None)

    @property
    def can_differ(self) -> bool:
        """Tell whether its tests could come out either way: not where all answers of both runs are right, or all are wrong."""
        return self.noise is not None or not self.a == self.b in (0, 100)

    def verdict(self, p: float | None) -> Compared:
        """Return the verdict where `p`, corrected or not, decides."""
        if p is None:
            return Compared("not comparable", self.estimate, "neither bounds nor noise tell what is chance")
        if p > ALPHA:
            by_chance, by_noise = (found is not None and found > ALPHA for found in (self.estimate.p, self.noise_p))
            reason = "within chance" if by_chance else "within the noise" if by_noise else "within chance, among so many figures"
            return Compared("same", self.estimate, reason, p)
        if not matters(self.a, self.b, self.kind):
            return Compared("same", self.estimate, "too small to matter", p)
        return Compared("better" if (self.b > self.a) == (self.better == "higher") else "worse", self.estimate, "", p)


def by_samples(a: Sequence[float], b: Sequence[float], q: float, seed: int = 0) -> Estimate:
    """Return the ratio of two q-quantiles with its percentile bootstrap interval (Efron 1979), each side resampled by itself.

    p is twice the share of resampled ratios on the far side of 1; of a median the p of the Mann-Whitney test where that is larger.
    ValueError without values; values must be positive.
    """
    first, second = sorted(a), sorted(b)
    if not first or not second or first[0] <= 0 or second[0] <= 0:
        raise ValueError("a ratio needs positive values on both sides")
    source = random.Random(seed)
    ratios = sorted(resampled(second, q, source) / resampled(first, q, source) for _ in range(RESAMPLES))
    low, high = ratios[int(ALPHA / 2 * RESAMPLES)], ratios[math.ceil((1 - ALPHA / 2) * RESAMPLES) - 1]
    beyond = min(bisect_right(ratios, 1), RESAMPLES - bisect_left(ratios, 1))
    p = min(1.0, 2 * (1 + beyond) / (1 + RESAMPLES))
    ratio = second[rank(len(second), q) - 1] / first[rank(len(first), q) - 1]
    if q != 0.5:
        return Estimate(ratio, low, high, p, "bootstrap")
    of_ranks = mann_whitney_p(first, second)
    return Estimate(ratio, low, high, max(p, of_ranks), f"bootstrap; Mann-Whitney p = {of_ranks:.2g}")


def rank(n: int, q: float) -> int:
    """Return the nearest-rank position of the q-quantile, counted from 1."""
    return max(1, math.ceil(q * n))


def resampled(ordered: Sequence[float], q: float, source: random.Random) -> float:
    """Return the q-quantile of one resample with replacement, without drawing it.

    Each draw is the ceil(n U)-th smallest value for a uniform U, which keeps the order, so the k-th smallest draw comes from
    the k-th smallest of n uniforms, and that is Beta(k, n − k + 1) (David & Nagaraja, Order Statistics, 2.1).
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
    return Estimate(ratio, None, None, p, f"McNemar p = {p:.2g}, {len(pairs)} cases")


def by_bounds(a: Figure, b: Figure, deviate: float = TWO_SIDED) -> Estimate | None:
    """Return the ratio with its interval by the two figures' own bounds; None where one has no value, or only half its bounds.

    MOVER (Zou & Donner 2008): the distances from value to bound, of the logarithms, add up as the sides of a right angle; where
    a zero has no logarithm, those of the values do, for the difference. `deviate` is the normal deviate of the bounds: 1.96 of
    two-sided 95 %, 1.64 of one-sided. Without bounds nothing tells what is chance, and p is None, unless the values are equal.
    """
    if a.value is None or b.value is None or min(a.value, b.value) < 0:
        return None
    ratio = b.value / a.value if a.value else None if b.value else 1.0
    bounds = (a.low, a.high, b.low, b.high)
    if all(bound is None for bound in bounds):
        return Estimate(ratio, None, None, 1.0 if a.value == b.value else None, "values, without bounds")
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    wider = TWO_SIDED / deviate
    if ratio and min(a.low, b.low) > 0:
        centre, (la, va, ha), (lb, vb, hb) = math.log(ratio), logs(a.low, a.value, a.high), logs(b.low, b.value, b.high)
        down, up = wider * math.hypot(vb - lb, ha - va), wider * math.hypot(hb - vb, va - la)
        return Estimate(ratio, math.exp(centre - down), math.exp(centre + up), bounds_p(centre, down, up), "bounds")
    down, up = wider * math.hypot(b.value - b.low, a.high - a.value), wider * math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(ratio, None, None, bounds_p(b.value - a.value, down, up), "bounds")


def bounds_p(centre: float, down: float, up: float) -> float:
    """Return the two-sided p of no difference: its distance from `centre`, whose two-sided 95 % interval reaches so far down and up."""
    reach = down if centre > 0 else up
    return 1.0 if centre == 0 else normal_p(TWO_SIDED * centre / reach) if reach else 0.0


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
