"""One figure of several starts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.comparison import student_quantile
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.starts import next_start, over_starts
from pipeline.measure.statistics import share_figure


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, unit="tok/s", n=8, low=low, high=high)


@pytest.mark.parametrize(("df", "quantile"), [(1, 6.3138), (2, 2.92), (4, 2.1318), (30, 1.6973)])
def test_the_quantiles_are_those_of_the_tables(df: int, quantile: float) -> None:
    assert student_quantile(0.95, df) == pytest.approx(quantile, rel=1e-4)


def test_one_start_stays_what_it_is() -> None:
    assert over_starts([figure(50, 48, 52)]) == figure(50, 48, 52)


def test_starts_that_differ_widen_the_bounds_beyond_those_of_each() -> None:
    both = over_starts([figure(394, 390, 398), figure(500, 496, 504), figure(450, 445, 455)])
    assert (both.value, both.n, both.starts) == (450, 24, 3)
    assert both.low is not None
    assert both.high is not None
    assert both.low < 390
    assert both.high > 504


def test_starts_that_agree_keep_the_outermost_bounds_of_each() -> None:
    assert over_starts([figure(50, 45, 55), figure(50, 44, 53)]) == Figure(value=50, unit="tok/s", n=16, low=44, high=55, starts=2)
    assert over_starts([figure(50, None, 55), figure(50, 44, 53)]).low is None, "a start was too short for a bound"


def test_shares_are_those_of_all_answers() -> None:
    both = over_starts([share_figure(9, 10), share_figure(10, 10)])
    assert both == share_figure(19, 20).model_copy(update={"starts": 2})


def test_a_start_without_a_valid_value_is_no_figure() -> None:
    assert over_starts([figure(50), not_measured("tok/s", "no driver")]).value is None
    (contradicted,) = invalidated({"": figure(50)}, "the ledger disagrees").values()
    assert over_starts([figure(50), contradicted]).invalid == "the ledger disagrees"
    with pytest.raises(ValueError, match="no start"):
        over_starts([])


@given(st.lists(st.floats(0.1, 1e6), min_size=2, max_size=6))
def test_the_bounds_hold_the_value(values: list[float]) -> None:
    both = over_starts([figure(value, value, value) for value in values])
    assert both.value is not None
    assert both.low is not None
    assert both.high is not None
    assert both.low <= both.value <= both.high


def test_a_further_start_lies_above_the_lower_bound_in_about_95_of_100() -> None:
    source = random.Random(1)
    inside = 0
    for _ in range(2000):
        *known, further = (math.exp(source.gauss(6, 0.1)) for _ in range(4))
        inside += further >= next_start(known)[0]
    assert 0.935 <= inside / 2000 <= 0.965
