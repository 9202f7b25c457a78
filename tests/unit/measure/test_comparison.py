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
    ALPHA,
    ONE_SIDED,
    Estimate,
    Noise,
    Pair,
    assumed_noise,
    by_bounds,
    by_pairs,
    by_samples,
    exit_code,
    holm,
    mann_whitney_p,
    mann_whitney_u,
    matters,
    measured_noise,
    normal_p,
    resampled,
    spread,
    student_p,
)
from pipeline.measure.directions import ANSWERS, IN_TIME, LATENCY, MEMORY, THROUGHPUT, Better, Kind
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import percentile_figure, quantile, share_figure

FEW = st.lists(st.integers(1, 6).map(float), min_size=1, max_size=12)
POSITIVE = st.floats(1e-3, 1e6)
WORDS = ("better", "worse", "same", "not comparable")


def pair(a: float, b: float, better: Better = "lower", p: float | None = 0.0, noise: Noise | None = None, kind: Kind = LATENCY) -> Pair:
    """Return two values with an estimate of that p."""
    return Pair(a, b, better, kind, Estimate(b / a, None, None, p, "a test"), noise)


def differs(estimate: Estimate) -> bool:
    assert estimate.p is not None
    return estimate.p <= ALPHA


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
    short_cut = Counter(resampled(ordered, q, source) for _ in range(draws))
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
    assert (found.ratio, differs(found)) == (1, False)


def test_a_shift_of_a_fifth_is_found_and_scaling_both_sides_changes_nothing() -> None:
    source = random.Random(1)
    a = [source.gauss(100, 5) for _ in range(60)]
    b = [source.gauss(120, 5) for _ in range(60)]
    found = by_samples(a, b, 0.5)
    assert found.p == pytest.approx(2 / (comparison.RESAMPLES + 1)), "as small as so many resamples can tell"
    assert found.low is not None
    assert found.low > 1.15
    scaled = by_samples([8 * value for value in a], [8 * value for value in b], 0.5)
    assert (scaled.ratio, scaled.low, scaled.high) == (found.ratio, found.low, found.high)


def test_samples_of_one_source_differ_about_as_often_as_the_confidence_says() -> None:
    source = random.Random(5)
    found = [by_samples([source.gauss(100, 9) for _ in range(30)], [source.gauss(100, 9) for _ in range(30)], 0.5) for _ in range(200)]
    assert sum(map(differs, found)) <= 20


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
    assert found.p == pytest.approx(as_far)
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
    assert forth.p == pytest.approx(back.p)
    if forth.low is not None and forth.ratio is not None:
        assert between(forth.ratio, forth.low, forth.high)
        assert back.high == pytest.approx(1 / forth.low)
        assert differs(forth) == (not between(1, forth.low, forth.high))


@given(SHARE)
def test_equal_figures_never_differ_by_their_bounds(share: tuple[int, int]) -> None:
    found = by_bounds(share_figure(*share), share_figure(*share))
    assert found is not None
    assert (found.ratio, found.p) == (1, 1)


def test_shares_far_apart_differ_and_from_nothing_too() -> None:
    none, all_of = share_figure(0, 60), share_figure(60, 60)
    for a, b, ratio in ((none, all_of, None), (all_of, none, 0)):
        found = by_bounds(a, b)
        assert found is not None
        assert (found.ratio, differs(found)) == (ratio, True)


def test_bounds_that_are_not_there() -> None:
    bare = Figure(value=10, unit="tok/s", n=1)
    assert by_bounds(bare, bare.model_copy(update={"value": 12})) == Estimate(1.2, None, None, None, "values, without bounds")
    assert by_bounds(bare, bare) == Estimate(1, None, None, 1, "values, without bounds")
    half = percentile_figure([float(number) for number in range(1, 20)], 0.95, "ms")
    assert half.high is None
    assert by_bounds(half, half) is None
    assert by_bounds(bare, Figure(value=None, unit="tok/s", n=0)) is None
    assert by_bounds(bare, bare.model_copy(update={"value": -1.0})) is None


def test_bounds_on_one_side_make_a_wider_interval_than_the_same_ones_on_two() -> None:
    a, b = (Figure(value=value, unit="ms", n=30, low=0.9 * value, high=1.1 * value) for value in (100.0, 115.0))
    two, one = by_bounds(a, b), by_bounds(a, b, ONE_SIDED)
    assert two is not None
    assert one is not None
    # The half-width towards 1 of the logarithms, by hand; one-sided bounds stand for a deviate of 1.645.
    half = math.hypot(math.log(1 / 0.9), math.log(1.1))
    assert one.low == pytest.approx(1.15 * math.exp(-half * 1.959964 / 1.644854))
    assert two.low == pytest.approx(1.15 * math.exp(-half))
    assert one.p == pytest.approx(2 * NormalDist().cdf(-1.644854 * math.log(1.15) / half))
    assert two.p == pytest.approx(2 * NormalDist().cdf(-1.959964 * math.log(1.15) / half))


# Noise between starts.


@pytest.mark.parametrize(("df", "t"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157), (30, 2.042272)])
def test_p_of_students_t_is_that_of_the_tables(df: int, t: float) -> None:
    assert student_p(t, df) == pytest.approx(0.05, abs=1e-6)
    assert student_p(-t, df) == student_p(t, df)
    assert student_p(0, df) == 1


@given(st.integers(1, 60), st.floats(0, 50), st.floats(0, 50))
def test_p_of_students_t_falls_with_t_and_is_never_below_the_normal_one(df: int, one: float, other: float) -> None:
    near, far = sorted((one, other))
    assert 0 <= student_p(far, df) <= student_p(near, df) + 1e-12 <= 1 + 1e-12
    assert student_p(near, df) >= normal_p(near) - 1e-12


def test_the_noise_reaches_as_far_as_the_formula_says() -> None:
    values = [100.0, 104.0, 97.0, 101.0, 99.0]
    found = measured_noise(values, LATENCY)
    assert found is not None
    logs = [math.log(value) for value in values]
    mean = sum(logs) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / 4)
    assert (found.starts, found.logarithmic) == (5, True)
    assert found.deviation == pytest.approx(deviation)
    assert found.reach == pytest.approx(2.776445 * deviation * math.sqrt(2), rel=1e-6)
    assert found.p(found.reach) == pytest.approx(ALPHA)
    assert Noise(0.1, None, logarithmic=True).reach == pytest.approx(1.959964 * 0.1 * math.sqrt(2), rel=1e-6)
    assert Noise(0, 5, logarithmic=True).reach == 0


def test_a_pair_of_starts_lies_beyond_the_reach_of_five_others_in_a_twentieth_of_the_cases() -> None:
    source = random.Random(3)
    beyond = 0
    for _ in range(2000):
        noise = measured_noise([source.lognormvariate(0, 0.1) for _ in range(5)], LATENCY)
        assert noise is not None
        beyond += noise.p(source.gauss(0, 0.1) - source.gauss(0, 0.1)) <= ALPHA
    assert 70 <= beyond <= 130, "three standard deviations round 100"


def test_what_has_no_logarithm_or_was_started_once_has_no_noise() -> None:
    assert measured_noise([1.0], LATENCY) is None
    assert measured_noise([0.0, 1.0], LATENCY) is None
    assert measured_noise([0.0, 2.0], IN_TIME) == Noise(math.sqrt(2), 2, logarithmic=False)
    assert assumed_noise(ANSWERS) is None
    assert assumed_noise(LATENCY) == Noise(0.1, None, logarithmic=True)
    assert assumed_noise(IN_TIME) == Noise(10, None, logarithmic=False)


# Holm's correction.


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_calls_different_what_its_steps_do(ps: dict[str, float]) -> None:
    adjusted, rejected = holm(ps), set()
    for position, (name, p) in enumerate(sorted(ps.items(), key=lambda entry: entry[1])):
        if p * (len(ps) - position) > ALPHA:
            break
        rejected.add(name)
    assert {name for name, p in adjusted.items() if p <= ALPHA} == rejected
    assert all(ps[name] <= p <= 1 for name, p in adjusted.items())


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"alone": 0.04}) == {"alone": 0.04}
    assert holm({}) == {}


# Verdicts.

TENTH = Noise(0.1, None, logarithmic=True)


def test_a_difference_needs_more_than_chance_more_than_the_noise_and_to_matter() -> None:
    def said(one: Pair) -> tuple[str, str]:
        found = one.verdict(one.p)
        return found.verdict, found.reason

    assert said(pair(100, 140, noise=TENTH)) == ("worse", "")
    assert said(pair(100, 140, "higher", noise=TENTH)) == ("better", "")
    assert said(pair(140, 100, noise=TENTH)) == ("better", "")
    assert said(pair(100, 0, "higher", noise=TENTH)) == ("worse", "")
    assert said(pair(100, 120, noise=TENTH)) == ("same", "within the noise")
    assert said(pair(100, 140, p=0.06, noise=TENTH)) == ("same", "within chance")
    assert said(pair(100, 140, p=None, noise=TENTH)) == ("worse", "")
    assert said(pair(100, 140, p=None)) == ("not comparable", "neither bounds nor noise tell what is chance")
    assert said(pair(100, 101)) == ("same", "too small to matter")
    corrected = pair(100, 140, p=0.03).verdict(0.06)
    assert (corrected.verdict, corrected.reason) == ("same", "within chance, among so many figures")


@pytest.mark.parametrize(
    ("a", "b", "kind", "answer"),
    [
        (10, 11, LATENCY, False),
        (10, 11.1, LATENCY, True),
        (1000, 1019, LATENCY, False),
        (1000, 1021, LATENCY, True),
        (3000, 3064, MEMORY, False),
        (3000, 3065, MEMORY, True),
        (10000, 10199, MEMORY, False),
        (99, 100, ANSWERS, False),
        (98.9, 100, ANSWERS, True),
        (50, 50.9, THROUGHPUT, False),
    ],
)
def test_what_matters_is_above_both_floors_up_or_down(a: float, b: float, kind: Kind, answer: bool) -> None:
    assert matters(a, b, kind) is answer
    assert matters(b, a, kind) is answer


@given(POSITIVE, POSITIVE, st.sampled_from(["higher", "lower"]), st.floats(0, 1), st.floats(0, 1))
def test_turning_runs_over_turns_better_into_worse(a: float, b: float, better: Better, p: float, noise: float) -> None:
    turned = {"better": "worse", "worse": "better", "same": "same"}
    forth, back = (pair(*values, better, p, Noise(noise, None, logarithmic=True)) for values in ((a, b), (b, a)))
    assert forth.p == pytest.approx(back.p)
    assume(abs((forth.p or 0) - ALPHA) > 1e-9)  # on the very edge the rounding of b / a decides
    assert back.verdict(back.p).verdict == turned[forth.verdict(forth.p).verdict]


@given(POSITIVE, POSITIVE, st.floats(0, 1), st.floats(0, 1))
def test_more_noise_and_more_chance_never_make_a_difference(a: float, b: float, p: float, noise: float) -> None:
    calm, noisy = pair(a, b, p=p, noise=Noise(noise, None, logarithmic=True)), pair(a, b, p=p, noise=Noise(2 * noise + 0.1, None, True))
    assert (noisy.p or 0) >= (calm.p or 0)
    assert (calm.p or 0) >= p


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
