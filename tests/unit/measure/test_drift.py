"""Theil–Sen against brute force and its laws, and what it makes of a leak, a sawtooth and a flat line."""

import random
from itertools import combinations, pairwise
from statistics import median

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.measure.drift import MOST_POINTS, Point, decile_change, theil_sen, thin

# Whole numbers: sums and differences are exact, so that laws hold exactly.
SERIES = st.lists(st.integers(-1000, 1000), min_size=2, max_size=60).map(lambda ys: [(float(x), float(y)) for x, y in enumerate(ys)])


def brute(points: list[Point]) -> float:
    return median((d - b) / (c - a) for (a, b), (c, d) in combinations(points, 2))


@given(SERIES)
def test_slope_is_the_median_of_all_pairwise_slopes_and_its_interval_contains_it(points: list[Point]) -> None:
    slope = theil_sen(points)
    assert slope is not None
    assert slope.value == brute(points)
    assert (slope.low is None) == (slope.high is None)
    assert slope.low is None or slope.high is None or slope.low <= slope.value <= slope.high


@given(SERIES, st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_slope_does_not_depend_on_where_the_series_lies(points: list[Point], right: int, up: int) -> None:
    assert theil_sen([(x + right, y + up) for x, y in points]) == theil_sen(points)


@given(SERIES, SERIES)
def test_slope_of_two_series_is_the_median_of_the_pairs_within_each(first: list[Point], second: list[Point]) -> None:
    slope = theil_sen(first, second)
    assert slope is not None
    assert slope.value == median((d - b) / (c - a) for points in (first, second) for (a, b), (c, d) in combinations(points, 2))
    assert slope.low is None or slope.high is None or slope.low <= slope.value <= slope.high


@given(SERIES)
def test_an_empty_series_beside_it_changes_no_slope(points: list[Point]) -> None:
    assert theil_sen(points, []) == theil_sen(points)
    assert theil_sen([], []) is None


def test_a_step_between_two_series_is_no_slope_and_a_rise_within_each_is() -> None:
    low, high = ([(float(x + shift), float(level)) for x in range(100)] for shift, level in ((0, 10), (100, 90)))
    flat, rising = theil_sen(low, high), theil_sen([(x, y + x) for x, y in low], [(x, y - 300 + x) for x, y in high])
    assert flat is not None
    assert rising is not None
    assert (flat.value, flat.low, flat.high) == (0, 0, 0)
    assert (rising.value, rising.low) == (1, 1)


@given(SERIES, st.sampled_from([-4.0, -0.5, 0.25, 2.0, 1024.0]))
def test_slope_scales_with_the_values(points: list[Point], factor: float) -> None:
    slope, scaled = theil_sen(points), theil_sen([(x, factor * y) for x, y in points])
    assert slope is not None
    assert scaled is not None
    assert scaled.value == factor * slope.value
    if slope.low is not None and slope.high is not None:
        assert (scaled.low, scaled.high) == tuple(sorted((factor * slope.low, factor * slope.high)))


@given(st.integers(-50, 50), st.integers(20, 60), st.randoms(use_true_random=False))
def test_slope_is_not_moved_by_outliers_of_less_than_29_percent(rise: int, n: int, source: random.Random) -> None:
    """Pairs of good points are the majority while (1 − share)² > 1/2."""
    bad = set(source.sample(range(n), int(0.28 * n)))
    points = [(float(x), float(rise * x + (source.randint(-(10**9), 10**9) if x in bad else 0))) for x in range(n)]
    slope = theil_sen(points)
    assert slope is not None
    assert slope.value == rise


@given(SERIES, st.randoms(use_true_random=False))
def test_interval_reversed_in_time_is_the_same_with_the_other_sign(points: list[Point], source: random.Random) -> None:
    slope, back = theil_sen(points), theil_sen([(-x, y) for x, y in reversed(points)])
    assert slope is not None
    assert back is not None
    assert back.value == -slope.value
    if slope.low is not None and slope.high is not None:
        assert (back.low, back.high) == (-slope.high, -slope.low)


def test_known_interval() -> None:
    """Ten points, no ties: the variance is 10 · 9 · 25 / 18 = 125, so the bounds are the 11th and the 35th of 45 slopes, one wider."""
    ys = [3, 1, 4, 15, 9, 26, 5, 35, 8, 97]
    slopes = sorted((d - b) / (c - a) for (a, b), (c, d) in combinations(list(enumerate(ys)), 2))
    slope = theil_sen([(float(x), float(y)) for x, y in enumerate(ys)])
    assert slope is not None
    assert (slope.low, slope.high) == (slopes[10], slopes[34])


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_no_two_moments_no_slope(points: list[Point]) -> None:
    assert theil_sen(points) is None


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_points_for_an_interval(n: int) -> None:
    slope = theil_sen([(float(x), float(x)) for x in range(n)])
    assert slope is not None
    assert (slope.value, slope.low, slope.high) == (1, None, None)


def test_a_leak_in_noise_is_found_and_a_sawtooth_is_none() -> None:
    source = random.Random(0)
    noise = [source.gauss(0, 5) for _ in range(1200)]
    leak = theil_sen([(x / 3600, 4000 + 0.05 * x + noise[x]) for x in range(1200)])
    assert leak is not None
    assert leak.low is not None
    assert leak.high is not None
    assert 0 < leak.low < 180 < leak.high, "0.05 MiB a second are 180 an hour"
    sawtooth = theil_sen([(x / 3600, 4000 + x % 40 + noise[x]) for x in range(1200)])
    assert sawtooth is not None
    assert sawtooth.low is not None
    assert sawtooth.high is not None
    assert sawtooth.low <= 0 <= sawtooth.high


def test_a_constant_has_slope_zero_and_no_doubt() -> None:
    slope = theil_sen([(float(x), 7.0) for x in range(100)])
    assert slope is not None
    assert (slope.value, slope.low, slope.high) == (0, 0, 0)


@given(st.integers(1, 5000), st.integers(2, 700))
def test_thinned_keeps_ends_order_and_even_distances(n: int, most: int) -> None:
    kept = thin(range(n), most)
    assert len(kept) == min(n, most)
    assert (kept[0], kept[-1]) == (0, n - 1)
    steps = {after - before for before, after in pairwise(kept)}
    assert not steps or max(steps) - min(steps) <= 1
    assert 0 not in steps


def test_a_long_series_is_thinned_before_its_pairs_are_made() -> None:
    """A day at five a second would be 93 billion pairs."""
    slope = theil_sen([(float(x), 2.0 * x) for x in range(432_000)])
    assert slope is not None
    assert slope.value == 2
    assert MOST_POINTS <= 1000


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200), st.integers(-100, 100))
def test_decile_change_is_none_of_a_level_and_the_step_of_a_step(values: list[int], step: int) -> None:
    assume(len(values) >= 2)
    assert decile_change([5.0] * len(values)) == 0
    half = len(values) // 2
    assert decile_change([0.0] * half + [float(step)] * (len(values) - half)) == step
    assert decile_change(values) == -decile_change(values[::-1])
