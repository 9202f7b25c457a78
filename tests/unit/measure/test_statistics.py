"""Percentiles, shares and their bounds, against exact enumeration and published values."""

import math
import random
from fractions import Fraction
from statistics import NormalDist, mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.statistics import (
    binomial_cumulative,
    bootstrap_figure,
    clustered_percentile_figure,
    percentile_figure,
    quantile,
    share_figure,
    wilson,
)

QUANTILES = {0.5: Fraction(1, 2), 0.9: Fraction(9, 10), 0.95: Fraction(19, 20), 0.99: Fraction(99, 100)}
CONFIDENCE = Fraction(19, 20)


def exact_below(n: int, q: Fraction, count: int) -> Fraction:
    """Return P(Bin(n, q) < count)."""
    return sum((math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(count)), Fraction(0))


def exact_bounds(n: int, q: Fraction) -> tuple[int | None, int | None]:
    """Return the ranks of the lower and the upper one-sided 95 % bound of the q-quantile, from the definition."""
    upper = next((u for u in range(1, n + 1) if exact_below(n, q, u) >= CONFIDENCE), None)
    lower = next((low for low in range(n, 0, -1) if 1 - exact_below(n, q, low) >= CONFIDENCE), None)
    return lower, upper


@pytest.mark.parametrize("q", [0.5, 0.95])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 10, 16, 30, 58, 59, 60, 64, 100, 120])
def test_bounds_are_the_exact_order_statistics(n: int, q: float) -> None:
    figure = percentile_figure([float(rank) for rank in range(1, n + 1)], q, "ms")  # each value is its own rank
    assert (figure.low, figure.high) == exact_bounds(n, QUANTILES[q])


@pytest.mark.parametrize(("q", "least"), [(0.5, 5), (0.95, 59), (0.99, 299)])
def test_upper_bound_exists_from_the_documented_n(q: float, least: int) -> None:
    assert percentile_figure([1.0] * (least - 1), q, "ms").high is None
    assert percentile_figure([1.0] * least, q, "ms").high == 1.0


@given(st.integers(1, 400), st.sampled_from(sorted(QUANTILES)))
def test_value_is_the_nearest_rank(n: int, q: float) -> None:
    figure = percentile_figure([float(rank) for rank in range(1, n + 1)], q, "ms")
    assert figure.value == math.ceil(QUANTILES[q] * n)
    assert figure.n == n


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80), st.sampled_from(sorted(QUANTILES)))
def test_bounds_enclose_the_value_and_come_from_the_sample(values: list[float], q: float) -> None:
    figure = percentile_figure(values, q, "ms")
    assert figure.value in values
    for bound in (figure.low, figure.high):
        assert bound is None or bound in values
    assert figure.low is None or figure.low <= figure.value
    assert figure.high is None or figure.high >= figure.value


@given(st.permutations([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]))
def test_order_of_the_sample_does_not_matter(values: list[float]) -> None:
    assert percentile_figure(values, 0.5, "ms") == percentile_figure(sorted(values), 0.5, "ms")


def test_median_of_an_even_sample_is_an_observed_value() -> None:
    assert percentile_figure([1.0, 2.0, 3.0, 10.0], 0.5, "ms").value == 2.0


def test_empty_sample_is_not_measured() -> None:
    figure = percentile_figure([], 0.5, "ms")
    assert (figure.value, figure.n, figure.unit) == (None, 0, "ms")
    assert figure.reason == "no request succeeded"


@pytest.mark.parametrize("n", [1, 7, 60, 300])
@pytest.mark.parametrize("q", sorted(QUANTILES))
def test_cumulative_binomial_is_exact_to_rounding(n: int, q: float) -> None:
    ours = binomial_cumulative(n, q)
    assert len(ours) == n + 1
    for k in range(0, n + 1, max(1, n // 10)):
        assert ours[k] == pytest.approx(float(exact_below(n, QUANTILES[q], k + 1)), abs=1e-11)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(case: tuple[int, int]) -> None:
    successes, n = case
    z = NormalDist().inv_cdf(0.975)
    for bound in wilson(successes, n):
        assert 0 <= bound <= 1
        assert abs(successes / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-7)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_lies_within_its_bounds(case: tuple[int, int]) -> None:
    figure = share_figure(*case)
    assert figure.value == 100 * case[0] / case[1]
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= figure.value + 1e-9
    assert figure.high >= figure.value - 1e-9


def test_share_of_nothing_is_not_measured() -> None:
    figure = share_figure(0, 0)
    assert (figure.value, figure.n, figure.reason) == (None, 0, "no request was sent")


def test_share_without_a_success_is_zero_percent_not_unmeasured() -> None:
    assert share_figure(0, 7).value == 0


@pytest.mark.parametrize("n", [1, 10, 20, 64, 1000])
def test_wilson_ends_exactly_at_none_and_at_all(n: int) -> None:
    assert wilson(0, n)[0] == 0
    assert wilson(n, n)[1] == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 1))
def test_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], q: float) -> None:
    made = quantile(values, q)
    assert made in values
    assert sum(value <= made for value in values) >= q * len(values) - 1e-9
    assert sum(value < made for value in values) < q * len(values)


def test_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_bootstrap_bounds_hold_the_value_and_are_repeatable(values: list[int]) -> None:
    made = bootstrap_figure(values, mean, "%")
    if made.low is None or made.high is None:
        assert (made.value, made.low, made.high) == (values[0], None, None)
        assert len(set(values)) == 1, "only values that are all alike have no bounds"
        return
    assert min(values) <= made.low <= made.value + 1e-12  # type: ignore[operator]  # there is a value where there are values
    assert made.value - 1e-12 <= made.high <= max(values)  # type: ignore[operator]
    assert made == bootstrap_figure(values, mean, "%")


def test_bootstrap_bounds_of_a_mean_are_the_normal_ones() -> None:
    values = [float(number % 10) for number in range(400)]
    made = bootstrap_figure(values, mean, "ms")
    half = 1.96 * pstdev(values) / len(values) ** 0.5
    assert made.low == pytest.approx(mean(values) - half, abs=0.05)
    assert made.high == pytest.approx(mean(values) + half, abs=0.05)


def test_bootstrap_without_items_is_not_measured() -> None:
    assert bootstrap_figure([], mean, "%").value is None


clusters = st.lists(st.lists(st.integers(0, 50).map(float), max_size=6), max_size=14)


@given(clusters, st.floats(0.01, 0.99))
def test_a_clustered_percentile_is_that_of_all_values_with_the_clusters_as_its_n(found: list[list[float]], q: float) -> None:
    figure = clustered_percentile_figure(found, q, "ms", failed=2)
    values = [value for cluster in found for value in cluster]
    if not values:
        assert figure.value is None
        return
    assert (figure.value, figure.n, figure.failed) == (quantile(values, q), sum(bool(cluster) for cluster in found), 2)
    assert (figure.low is None) == (figure.high is None) == (figure.n < 10)
    if figure.low is not None and figure.high is not None:
        assert min(values) <= figure.low <= quantile(values, q) <= figure.high <= max(values)


def test_values_alike_within_each_cluster_give_the_bounds_of_the_clusters_not_of_the_values() -> None:
    source = random.Random(7)
    levels = [source.gauss(20, 5) for _ in range(20)]
    many = clustered_percentile_figure([[level] * 100 for level in levels], 0.5, "ms")
    few = clustered_percentile_figure([[level] for level in levels], 0.5, "ms")
    assert (many.low, many.high, many.n) == (few.low, few.high, 20)
    by_value = percentile_figure([level for level in levels for _ in range(100)], 0.5, "ms")
    assert many.high is not None
    assert by_value.high is not None
    assert many.high - (many.value or 0) > by_value.high - (by_value.value or 0), "2000 gaps are no 2000 requests"


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_a_clustered_upper_bound_is_above_the_truth_as_often_as_it_says(q: float) -> None:
    source = random.Random(1)
    truth = 20 + 5 * 2**0.5 * NormalDist().inv_cdf(q)  # of a level per request and a part of its own for each gap, both with s = 5
    held = 0
    for _ in range(60):
        found = [[source.gauss(level, 5) for _ in range(20)] for level in (source.gauss(20, 5) for _ in range(30))]
        figure = clustered_percentile_figure(found, q, "ms")
        held += figure.high is not None and figure.high >= truth
    assert held >= 53, "seeded: it holds or it does not"
