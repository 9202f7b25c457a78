"""The share of a life amid the load: what readings prove, and what they do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.overlap import Reading, loaded_share, readings_within

TIMES = st.lists(st.floats(0, 10), min_size=0, max_size=30).map(sorted)


def every(step_s: float, counts: list[int]) -> list[Reading]:
    return [(number * step_s, count) for number, count in enumerate(counts)]


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        ([5] * 11, 1.0),
        ([4] * 11, 0.0),
        ([5] * 6 + [1] * 5, 0.5),
        ([5, 1] * 5 + [5], 0.0),  # the load is at no time proven between two looks
        ([1] * 4 + [5] + [1] * 6, 0.0),  # there at one look
    ],
)
def test_only_stretches_between_two_loaded_readings_count(counts: list[int], share: float) -> None:
    assert loaded_share(every(0.1, counts), 0, 1, 5, 0.1001) == pytest.approx(share)


def test_a_gap_in_the_readings_proves_nothing() -> None:
    readings = [(0.0, 9), (0.02, 9), (0.04, 9), (0.18, 9), (0.2, 9)]
    assert loaded_share(readings, 0, 0.2, 5, 0.05) == pytest.approx(0.3)
    assert loaded_share(readings, 0, 0.2, 5, 0.2) == pytest.approx(1)


def test_in_a_long_life_readings_may_lie_a_tenth_of_it_apart() -> None:
    assert loaded_share(every(1, [9] * 11), 0, 10, 5, 0.05) == pytest.approx(1)
    assert loaded_share(every(1, [9] * 11), 0, 9, 5, 0.05) == 0


def test_readings_before_and_after_prove_the_ends() -> None:
    assert loaded_share([(-0.01, 9), (0.03, 9), (0.07, 9), (0.11, 9)], 0, 0.1, 5, 0.05) == pytest.approx(1)
    assert loaded_share([(0.03, 9), (0.07, 9)], 0, 0.1, 5, 0.05) == pytest.approx(0.4)


def test_no_life_has_no_load() -> None:
    assert loaded_share(every(0.1, [9] * 5), 0.2, 0.2, 5, 1) == 0


def test_readings_of_the_span_are_counted() -> None:
    assert readings_within(every(0.1, [1] * 11), 0.25, 0.55) == 3


@given(TIMES, st.data(), st.floats(0, 10), st.floats(0.01, 10), st.integers(1, 5))
def test_it_is_a_share_and_falls_with_what_is_asked(times: list[float], data: st.DataObject, begin: float, span: float, least: int) -> None:
    readings = [(at, data.draw(st.integers(0, 6))) for at in times]
    share = loaded_share(readings, begin, begin + span, least, 0.5)
    assert 0 <= share <= 1 + 1e-9
    assert loaded_share(readings, begin, begin + span, least + 1, 0.5) <= share + 1e-9
