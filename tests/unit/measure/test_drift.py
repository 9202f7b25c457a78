"""Theil–Sen and its laws; the interval of a drift against simulated series whose drift is known."""

import math
import random
from collections.abc import Callable
from itertools import combinations, pairwise
from statistics import median

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.measure.drift import MOST_CELLS, Point, Slope, block_length, cells, decile_change, slope_of, telling_span, theil_sen

# Whole numbers: sums and differences are exact, so that laws hold exactly.
SERIES = st.lists(st.integers(-1000, 1000), min_size=2, max_size=60).map(lambda ys: [(float(x), float(y)) for x, y in enumerate(ys)])
SECONDS, PER_S = 240, 5
N = SECONDS * PER_S
BUDGET = 224 / 86400  # MiB a second, as shipped
SEEDS = 100


def brute(points: list[Point]) -> float:
    return median((d - b) / (c - a) for (a, b), (c, d) in combinations(points, 2))


def slope(*series: list[Point], quantum: float = 0.0) -> tuple[float, float, float]:
    """Return value and bounds."""
    found = slope_of(series, quantum)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high


@given(SERIES)
def test_slope_is_the_median_of_all_pairwise_slopes_and_its_interval_contains_it(points: list[Point]) -> None:
    assert theil_sen(points) == brute(points)
    found = slope_of([points], 0.0)
    assert found is not None
    assert found.value == brute(points)
    assert (found.low is None) == (found.high is None) == (len(points) < 10)
    assert found.low is None or found.high is None or found.low <= found.value <= found.high


@given(SERIES, st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_slope_does_not_depend_on_where_the_series_lies(points: list[Point], right: int, up: int) -> None:
    assert slope_of([[(x + right, y + up) for x, y in points]], 2.0) == slope_of([points], 2.0)


@given(SERIES, SERIES)
def test_slope_of_two_series_is_the_median_of_the_pairs_within_each(first: list[Point], second: list[Point]) -> None:
    assert theil_sen(first, second) == median((d - b) / (c - a) for points in (first, second) for (a, b), (c, d) in combinations(points, 2))


@given(SERIES)
def test_an_empty_series_beside_it_changes_no_slope(points: list[Point]) -> None:
    assert slope_of([points, []], 2.0) == slope_of([points], 2.0)
    assert slope_of([[], []], 2.0) is None


def test_a_step_between_two_series_is_no_slope_and_a_rise_within_each_is() -> None:
    low, high = ([(float(x + shift), float(level)) for x in range(100)] for shift, level in ((0, 10), (100, 90)))
    assert slope(low, high) == (0, 0, 0)
    assert slope([(x, y + x) for x, y in low], [(x, y - 300 + x) for x, y in high]) == pytest.approx((1, 1, 1))


@given(st.integers(-50, 50), st.integers(20, 60), st.randoms(use_true_random=False))
def test_slope_is_not_moved_by_outliers_of_less_than_29_percent(rise: int, n: int, source: random.Random) -> None:
    """Pairs of good points are the majority while (1 − share)² > 1/2."""
    bad = set(source.sample(range(n), int(0.28 * n)))
    points = [(float(x), float(rise * x + (source.randint(-(10**9), 10**9) if x in bad else 0))) for x in range(n)]
    assert theil_sen(points) == rise


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_no_two_moments_no_slope(points: list[Point]) -> None:
    assert theil_sen(points) is None
    assert slope_of([points], 2.0) is None


@given(st.integers(1, 5000), st.integers(2, 70))
def test_cells_hold_every_point_once_in_order(n: int, most: int) -> None:
    found = cells([(float(x), float(x)) for x in range(n)], most)
    assert len(found) == min(n, most)
    assert sum(x for x, _ in found) / len(found) == pytest.approx((n - 1) / 2, abs=1 + n / most)
    assert [y for _, y in found] == sorted(y for _, y in found)


def test_a_long_series_is_put_into_cells_before_its_pairs_are_made() -> None:
    """A day at five a second would be 93 billion pairs."""
    assert slope([(float(x), 2.0 * x) for x in range(432_000)]) == pytest.approx((2, 2, 2))
    assert MOST_CELLS <= 100


# Simulated memory: MiB at five samples a second, four minutes of it.


def noise(source: random.Random, correlation: float, spread: float) -> list[float]:
    """Return a stationary AR(1) series."""
    value, found = source.gauss(0, spread), []
    for _ in range(N):
        found.append(value)
        value = correlation * value + source.gauss(0, spread * math.sqrt(1 - correlation**2))
    return found


def ramp(per_s: float, correlation: float, spread: float) -> Callable[[random.Random], list[float]]:
    return lambda source: [per_s * at / PER_S + each for at, each in enumerate(noise(source, correlation, spread))]


def stairs(step: float, every_s: float) -> Callable[[random.Random], list[float]]:
    """Return a leak that shows a step each so many seconds, from any moment on."""

    def made(source: random.Random) -> list[float]:
        phase = source.random() * every_s
        return [step * math.floor((at / PER_S + phase) / every_s) for at in range(N)]

    return made


def bursts(step: float, every_s: float) -> Callable[[random.Random], list[float]]:
    """Return steps at random times."""

    def made(source: random.Random) -> list[float]:
        found, level, due = [], 0.0, source.expovariate(1 / every_s)
        for at in range(N):
            while due <= at / PER_S:
                level, due = level + step, due + source.expovariate(1 / every_s)
            found.append(level)
        return found

    return made


def intervals(made: Callable[[random.Random], list[float]], quantum: float) -> list[Slope]:
    """Return the slopes of seeded series."""
    drawn = (made(random.Random(seed)) for seed in range(SEEDS))
    found = [slope_of([[(at / PER_S, each) for at, each in enumerate(values)]], quantum) for values in drawn]
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    ("made", "drift", "quantum"),
    [
        (ramp(0, 0, 1), 0, 0.1),
        (ramp(0, 0.9, 1), 0, 0.1),
        (ramp(0, 0.998, 5), 0, 0.1),
        (ramp(0.05, 0.9, 1), 0.05, 0.1),
        (ramp(0.05, 0.998, 5), 0.05, 0.1),
        (stairs(2, 3), 2 / 3, 2.0),
        (stairs(2, 35), 2 / 35, 2.0),
        (stairs(2, 119), 2 / 119, 2.0),
        (stairs(2, 700), 2 / 700, 2.0),
        (bursts(1, 7), 1 / 7, 0.1),
        (bursts(1, 30), 1 / 30, 0.1),
    ],
)
def test_the_interval_covers_the_drift_in_nine_of_ten_series(
    made: Callable[[random.Random], list[float]], drift: float, quantum: float
) -> None:
    covered = sum((each.low or 0.0) <= drift <= (each.high or 0.0) for each in intervals(made, quantum))
    assert covered >= 0.9 * SEEDS


@pytest.mark.parametrize("made", [ramp(0, 0, 1), ramp(0, 0.9, 0.05), ramp(0, 0.99, 1), ramp(0, 0.998, 5)])
def test_noise_around_a_level_is_called_a_drift_in_at_most_one_of_twenty(made: Callable[[random.Random], list[float]]) -> None:
    assert sum((each.low or 0.0) > BUDGET for each in intervals(made, 0.1)) <= 0.05 * SEEDS


@given(st.integers(0, N - 1), st.sampled_from([0.1, 1.0, 20.0, 500.0]))
def test_a_single_step_is_never_a_drift(at: int, step: float) -> None:
    _, low, _ = slope([(each / PER_S, step * (each >= at)) for each in range(N)], quantum=0.1)
    assert low <= 0


@given(st.integers(10, 300), st.floats(0.1, 50))
def test_a_constant_tells_no_more_than_a_step_that_is_still_to_come(seconds: int, quantum: float) -> None:
    value, low, high = slope([(at / PER_S, 7.0) for at in range(seconds * PER_S + 1)], quantum=quantum)
    assert value == 0
    assert (low, high) == pytest.approx((-quantum / seconds, quantum / seconds))


@given(st.floats(1.0, 1000.0), st.floats(0.0, 0.999))
def test_a_leak_whose_steps_are_rarer_than_the_load_lasts_is_within_the_bound(every_s: float, phase: float) -> None:
    values = [2.0 * math.floor(at / PER_S / every_s + phase) for at in range(N)]
    _, low, high = slope([(at / PER_S, each) for at, each in enumerate(values)], quantum=2.0)
    if values[-1] == 0:
        assert low <= 2.0 / every_s * (N - 1) / N <= high * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [8, 60, 240])
def test_a_leak_of_a_mebibyte_a_request_is_found(seconds: int) -> None:
    values = [(at / PER_S, float(at // 2)) for at in range(seconds * PER_S)]  # 2.5 requests a second
    _, low, _ = slope(values, quantum=2.0)
    assert low > 100 * BUDGET


def test_blocks_are_long_where_changes_take_each_other_back() -> None:
    source = random.Random(3)
    levels = [source.gauss(0, 1) for _ in range(61)]
    changes = [after - before for before, after in pairwise(levels)]
    assert block_length(changes) > 3 * block_length([source.gauss(0, 1) for _ in range(60)])
    assert block_length([5.0] * 60) == 1


def test_the_load_that_would_tell_tells() -> None:
    short = slope_of([[(float(at), 7.0) for at in range(101)]], 2.0)
    assert short is not None
    needed = telling_span(short, BUDGET)
    assert needed == pytest.approx(2 / BUDGET)
    assert needed is not None
    longer = slope_of([[(float(at), 7.0) for at in range(math.ceil(needed) + 1)]], 2.0)
    assert longer is not None
    assert longer.high is not None
    assert longer.high <= BUDGET
    assert telling_span(short, 0.0) is None, "which lies in the middle of every interval"


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200), st.integers(-100, 100))
def test_decile_change_is_none_of_a_level_and_the_step_of_a_step(values: list[int], step: int) -> None:
    assume(len(values) >= 2)
    assert decile_change([5.0] * len(values)) == 0
    half = len(values) // 2
    assert decile_change([0.0] * half + [float(step)] * (len(values) - half)) == step
    assert decile_change(values) == -decile_change(values[::-1])
