"""Comparing two runs: tests and intervals against brute force, and what they must never say."""

import math
import random
from collections import Counter
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.measure import comparison
from pipeline.measure.comparison import (
    DEFAULT_NOISE,
    Estimate,
    Noise,
    better_when,
    by_bounds,
    by_pairs,
    by_samples,
    default_noise,
    exceeds_noise,
    exit_code,
    mann_whitney_p,
    mann_whitney_u,
    resample_quantile,
    spread,
    verdict,
)
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import percentile_figure, quantile, share_figure

FEW = st.lists(st.integers(1, 6).map(float), min_size=1, max_size=12)
POSITIVE = st.floats(1e-3, 1e6)
WORDS = ("better", "worse", "same", "not comparable")


def sure(ratio: float | None, low: float | None = None, high: float | None = None, differs: bool = True) -> Estimate:
    return Estimate(ratio, low, high, differs, "a test")


# Mann-Whitney.


@given(FEW, FEW)
def test_u_is_the_count_over_all_pairs(a: list[float], b: list[float]) -> None:
    assert mann_whitney_u(a, b) == sum((x > y) + (x == y) / 2 for x in a for y in b)


@given(FEW, FEW)
def test_p_is_a_probability_and_does_not_depend_on_which_side_is_first(a: list[float], b: list[float]) -> None:
    assert 0 <= mann_whitney_p(a, b) <= 1
    assert mann_whitney_p(a, b) == pytest.approx(mann_whitney_p(b, a))
    assert mann_whitney_p(a, a) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5), st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5))
def test_p_is_the_normal_one_of_the_spread_over_all_permutations(a: list[float], b: list[float]) -> None:
    pooled, mean = [*a, *b], len(a) * len(b) / 2
    ways = list(combinations(range(len(pooled)), len(a)))
    variance = sum((mann_whitney_u([pooled[i] for i in way], rest(pooled, way)) - mean) ** 2 for way in ways) / len(ways)
    distance = max(0, abs(mann_whitney_u(a, b) - mean) - 0.5)  # corrected for continuity
    expected = 2 * NormalDist().cdf(-distance / math.sqrt(variance)) if variance else 1
    assert mann_whitney_p(a, b) == pytest.approx(expected)


def rest(values: list[float], picked: tuple[int, ...]) -> list[float]:
    return [value for position, value in enumerate(values) if position not in picked]


def test_values_that_are_all_equal_tell_nothing() -> None:
    assert mann_whitney_p([2.0] * 9, [2.0] * 5) == 1
    assert mann_whitney_p([1.0], []) == 1


# Bootstrap.


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(1, 100), min_size=1, max_size=9, unique=True), st.sampled_from([0.5, 0.95]), st.integers(0, 99))
def test_a_resampled_quantile_is_distributed_as_one_that_is_drawn(values: list[float], q: float, seed: int) -> None:
    ordered, draws = sorted(values), 2000
    source = random.Random(seed)
    short_cut = Counter(resample_quantile(ordered, q, source) for _ in range(draws))
    drawn = Counter(quantile(source.choices(ordered, k=len(ordered)), q) for _ in range(draws))
    for value in ordered:
        # Seven standard deviations of the difference of two counts, and a few for the rare ones.
        assert abs(short_cut[value] - drawn[value]) <= 7 * math.sqrt(short_cut[value] + drawn[value] + 1)


@given(st.lists(POSITIVE, min_size=1, max_size=40), st.lists(POSITIVE, min_size=1, max_size=40), st.sampled_from([0.5, 0.95]))
@settings(deadline=None, max_examples=20)
def test_the_ratio_is_that_of_the_quantiles_and_its_interval_lies_between_the_extremes(a: list[float], b: list[float], q: float) -> None:
    found = by_samples(a, b, q)
    assert found.ratio == quantile(b, q) / quantile(a, q)
    assert found.low is not None
    assert found.high is not None
    assert min(b) / max(a) <= found.low <= found.high <= max(b) / min(a)


@given(st.lists(POSITIVE, min_size=1, max_size=40), st.sampled_from([0.5, 0.95]))
@settings(deadline=None, max_examples=20)
def test_a_run_against_itself_never_differs(values: list[float], q: float) -> None:
    found = by_samples(values, values, q)
    assert (found.ratio, found.differs) == (1, False)


def test_a_shift_of_a_fifth_is_found_and_scaling_both_sides_changes_nothing() -> None:
    source = random.Random(1)
    a = [source.gauss(100, 5) for _ in range(60)]
    b = [source.gauss(120, 5) for _ in range(60)]
    found = by_samples(a, b, 0.5)
    assert found.differs
    assert found.low is not None
    assert found.low > 1.15
    scaled = by_samples([8 * value for value in a], [8 * value for value in b], 0.5)
    assert (scaled.ratio, scaled.low, scaled.high) == (found.ratio, found.low, found.high)


def test_samples_of_one_source_differ_about_as_often_as_the_confidence_says() -> None:
    source = random.Random(5)
    found = [by_samples([source.gauss(100, 9) for _ in range(30)], [source.gauss(100, 9) for _ in range(30)], 0.5) for _ in range(200)]
    assert sum(one.differs for one in found) <= 20


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0])])
def test_values_that_have_no_ratio_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="positive values"):
        by_samples(a, b, 0.5)


# Pairs.


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_pairs_by_mcnemar_are_the_signs_test_of_the_cases_that_changed(pairs: list[tuple[bool, bool]]) -> None:
    found = by_pairs(pairs)
    changed = [b for a, b in pairs if a != b]
    n = len(changed)
    outcomes = [bin(number).count("1") for number in range(2**n)]
    as_far = sum(abs(ones - n / 2) >= abs(sum(changed) - n / 2) for ones in outcomes) / 2**n
    assert found.differs == (as_far < 0.05)
    right_a, right_b = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    assert found.ratio == (right_b / right_a if right_a else None if right_b else 1)


def test_no_cases_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match="no cases"):
        by_pairs([])


# Bounds.

SHARE = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def between(value: float, low: float | None, high: float | None) -> bool:
    assert low is not None
    assert high is not None
    return low <= value <= high


@given(SHARE, SHARE)
def test_bounds_give_an_interval_round_the_ratio_and_swapping_turns_it_over(a: tuple[int, int], b: tuple[int, int]) -> None:
    forth, back = by_bounds(share_figure(*a), share_figure(*b)), by_bounds(share_figure(*b), share_figure(*a))
    assert forth is not None
    assert back is not None
    assert forth.differs == back.differs
    if forth.low is not None and forth.ratio is not None:
        assert between(forth.ratio, forth.low, forth.high)
        assert back.high == pytest.approx(1 / forth.low)
        assert forth.differs == (not between(1, forth.low, forth.high))


@given(SHARE)
def test_equal_figures_never_differ_by_their_bounds(share: tuple[int, int]) -> None:
    found = by_bounds(share_figure(*share), share_figure(*share))
    assert found is not None
    assert (found.ratio, found.differs) == (1, False)


def test_shares_far_apart_differ_and_from_nothing_too() -> None:
    none, all_of = share_figure(0, 60), share_figure(60, 60)
    for a, b, ratio in ((none, all_of, None), (all_of, none, 0)):
        found = by_bounds(a, b)
        assert found is not None
        assert (found.ratio, found.differs) == (ratio, True)


def test_bounds_that_are_not_there() -> None:
    bare = Figure(value=10, unit="tok/s", n=1)
    assert by_bounds(bare, bare.model_copy(update={"value": 12})) == Estimate(1.2, None, None, True, "values, without bounds")
    half = percentile_figure([float(number) for number in range(1, 20)], 0.95, "ms")
    assert half.high is None
    assert by_bounds(half, half) is None
    assert by_bounds(bare, Figure(value=None, unit="tok/s", n=0)) is None
    assert by_bounds(bare, bare.model_copy(update={"value": -1.0})) is None


# Verdicts.


@pytest.mark.parametrize(
    ("name", "unit", "direction"),
    [
        ("ttft_ms_p50", "ms", "lower"),
        ("vram_peak_mib", "MiB", "lower"),
        ("decode_tok_s_p50", "tok/s", "higher"),
        ("capacity_req_s", "requests/s", "higher"),
        ("constrained_schema_valid", "%", "higher"),
        ("prompt_only_truncated", "%", "lower"),
        ("prompt_only_repair_rate", "%", "lower"),
        ("majority_baseline", "%", None),
        ("constraint_latency_ms_p50", "ms", None),
        ("d5_other_seed_identical", "%", None),
        ("drift", "MiB/min", None),
    ],
)
def test_which_direction_is_better(name: str, unit: str, direction: str | None) -> None:
    assert better_when(name, unit) == direction


def test_a_difference_needs_more_than_chance_and_more_than_the_noise() -> None:
    tenth = Noise(0.1, measured=False)
    assert verdict("lower", sure(1.2), tenth).verdict == "worse"
    assert verdict("higher", sure(1.2), tenth).verdict == "better"
    assert verdict("lower", sure(0.8), tenth).verdict == "better"
    assert verdict("higher", sure(0), tenth).verdict == "worse"
    assert verdict("higher", sure(None), tenth).verdict == "better"
    assert (verdict("lower", sure(1.09), tenth).verdict, verdict("lower", sure(1.09), tenth).reason) == ("same", "within the noise")
    chance = verdict("lower", sure(1.5, differs=False), tenth)
    assert (chance.verdict, chance.reason) == ("same", "within chance")
    none = verdict(None, sure(2), tenth)
    assert (none.verdict, none.reason) == ("not comparable", "neither direction is better")


@given(POSITIVE, st.floats(0, 3), st.sampled_from(["higher", "lower"]), st.booleans())
def test_turning_runs_over_turns_better_into_worse(ratio: float, noise: float, better: comparison.Better, differs: bool) -> None:
    assume(abs(abs(math.log(ratio)) - math.log1p(noise)) > 1e-9)  # on the very edge the rounding of 1 / ratio decides
    turned = {"better": "worse", "worse": "better", "same": "same"}
    forth = verdict(better, sure(ratio, differs=differs), Noise(noise, measured=True))
    back = verdict(better, sure(1 / ratio, differs=differs), Noise(noise, measured=True))
    assert back.verdict == turned[forth.verdict]
    assert (forth.verdict != "same") == (differs and exceeds_noise(ratio, noise))


def test_only_what_is_timed_has_noise_by_default() -> None:
    assert default_noise("ttft_ms_p50", "ms") == Noise(DEFAULT_NOISE, measured=False)
    assert default_noise("goodput_c4", "%").relative == DEFAULT_NOISE
    assert default_noise("constrained_route_accuracy", "%").relative == 0


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_exit_code_is_1_with_one_that_is_worse_and_2_with_none_to_compare(words: list[comparison.Word]) -> None:
    assert exit_code(words) == (1 if "worse" in words else 2 if set(words) <= {"not comparable"} else 0)


# Spread.


def test_spread_of_three_starts() -> None:
    found = spread([90.0, 100.0, 110.0])
    assert found is not None
    assert found.n == 3
    assert found.relative_range == pytest.approx(0.2)
    assert found.variation == pytest.approx(0.1)


@given(st.lists(POSITIVE, min_size=2, max_size=9), st.floats(0.01, 100))
def test_spread_has_no_unit_and_is_none_of_equal_values(values: list[float], factor: float) -> None:
    found, scaled, equal = spread(values), spread([factor * value for value in values]), spread([values[0]] * len(values))
    assert found is not None
    assert scaled is not None
    assert equal is not None
    assert scaled.relative_range == pytest.approx(found.relative_range)
    assert scaled.variation == pytest.approx(found.variation)
    assert equal.relative_range == 0
    assert equal.variation == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 1.0], [-1.0, 1.0]])
def test_no_spread_of_one_value_or_of_values_without_a_ratio(values: list[float]) -> None:
    assert spread(values) is None
