"""How many digits a figure shows: as its bounds carry, and never across its target."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.measure.digits import ends_of, number, shown
from pipeline.measure.verdicts import COMPARE, judge
from tests.builders.documents import figure

VALUES = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-6)
WIDTHS = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("value", "low", "high", "marks", "said"),
    [
        (815.13, 702.1, 947.9, (), ("820", "700", "950")),
        (34.338, 33.88, 69.09, (), ("34", "34", "69")),
        (89.53, 87.5, 91.56, (), ("89.5", "87.5", "91.6")),
        (2110.4, 2102.3, None, (), ("2110", "2102", "")),
        (0.396, 0.239, 0.612, (), ("0.4", "0.24", "0.61")),
        (459.0, -1149.0, 649.0, (), ("460", "-1150", "650")),
        (99.96, None, None, (), ("100", "", "")),
        (99.96, None, None, (0, 100), ("99.96", "", "")),
        (499.6, 380.0, 600.0, (500,), ("499.6", "380", "600")),
        (480.0, 380.0, 499.6, (500,), ("480", "380", "499.6")),
        (500.0, 380.0, 600.0, (500,), ("500", "380", "600")),
        (100.0, 83.887, 100.0, (100,), ("100", "84", "100")),
    ],
)
def test_examples(value: float, low: float | None, high: float | None, marks: tuple[float, ...], said: tuple[str, str, str]) -> None:
    found = shown(value, low, high, marks)
    assert (found.value, found.low, found.high) == said


@given(VALUES, WIDTHS, WIDTHS)
def test_what_is_shown_is_as_close_as_the_bounds_carry_and_no_closer(value: float, under: float, over: float) -> None:
    low, high = value - under, value + over
    half = (high - low) / 2
    found = shown(value, low, high)
    step = max(10 ** (math.floor(math.log10(half)) - 1), 1e-12) if half else 0
    most = max(step, 10 ** -max(0, 2 - math.floor(math.log10(abs(value) or 1))))
    assert abs(float(found.value) - value) <= most * 0.51 + 1e-9 * abs(value)
    digits = found.value.lstrip("-").replace(".", "").strip("0")
    assert abs(value) >= 100 or len(digits) <= 3
    assert step <= 1 or float(found.value) % step == pytest.approx(0, abs=1e-6 * step) or float(found.value) % step == pytest.approx(step)


@given(VALUES, VALUES, st.floats(0, 1e3), st.floats(0, 1e3), st.sampled_from(sorted(COMPARE)))
@example(499.6, 500.0, 100.0, 100.0, "<")
@example(499.99999, 500.0, 100.0, 100.0, ">=")
def test_no_number_is_shown_on_the_other_side_of_its_target(
    value: float, target: float, under: float, over: float, comparator: str
) -> None:
    low, high = value - under, value + over
    found = shown(value, low, high, (target,))
    meets = COMPARE[comparator]
    for text, exact in ((found.value, value), (found.low, low), (found.high, high)):
        assert meets(float(text), target) == meets(exact, target)


@given(st.floats(0, 100))
@example(99.97)
@example(0.0004)
def test_a_share_is_shown_as_none_or_all_only_where_it_is(value: float) -> None:
    said = shown(value, max(0.0, value - 10), min(100.0, value + 10), ends_of("%")).value
    assert (float(said) == 0) == (value == 0)
    assert (float(said) == 100) == (value == 100)


@given(st.floats(allow_nan=True, allow_infinity=True), st.none() | st.floats(), st.none() | st.floats())
def test_any_number_is_shown_without_powers_of_ten(value: float, low: float | None, high: float | None) -> None:
    found = shown(value, low, high, (500.0,))
    assert all("e" not in text for text in (found.value, found.low, found.high))
    assert found.value


def test_zero_has_no_sign() -> None:
    assert number(-0.0) == "0"
    assert shown(-0.001, -5.0, 5.0).value == "0"


def test_the_reason_of_a_verdict_shows_the_same_number_as_the_figure() -> None:
    found = judge(figure(1000.46, "ms", 16, 870.0, 1130.0), "<", 1000, 5, by_bound=True, simulated=False)
    assert found.reason == "1000.5 is not < 1000"
    assert shown(1000.46, 870.0, 1130.0, (1000,)).value == "1000.5"
    bound = judge(figure(900.0, "ms", 16, 870.0, 1000.46), "<", 1000, 5, by_bound=True, simulated=False)
    assert bound.reason == "the 95 % bound 1000.5 is not < 1000"
