"""The pure parts of benchmarks/scale.py, and the page that it wrote."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scale
from pipeline.measure.statistics import quantile

PAGE = scale.PAGE.read_text(encoding="utf-8")


@given(st.floats(-100, 100), st.floats(0.01, 100), st.lists(st.integers(1, 10**6), min_size=2, max_size=6, unique=True))
def test_a_line_is_found_again(a: float, b: float, at: list[int]) -> None:
    found = scale.line([(float(x), 1000 + a + b * x) for x in at])
    assert found == pytest.approx((1000 + a, b), rel=1e-3)


def test_small_sizes_count_as_much_as_large_ones() -> None:
    a, b = scale.line([(1, 2.0), (2, 3.0), (1000, 1500.0)])
    assert a + b == pytest.approx(2.0, rel=0.2), "plain least squares would be off by hundreds of per cent there"


def test_growth_is_one_where_cost_is_linear_and_ten_where_it_is_quadratic() -> None:
    sizes = (10.0, 100.0, 1000.0)
    assert scale.growth([(x, 3 * x) for x in sizes]) == [None, pytest.approx(1), pytest.approx(1)]
    assert scale.growth([(x, 3 * x * x) for x in sizes]) == [None, pytest.approx(10), pytest.approx(10)]


def test_where_a_limit_is_crossed() -> None:
    points = [(1.0, 0.1), (100.0, 10.0), (1000.0, 20.0)]
    assert scale.crossing(points, 1.0) == pytest.approx(10)
    assert scale.crossing(points, 10.0) == pytest.approx(100)
    assert scale.crossing(points, 21.0) is None
    assert scale.crossing(points, 0.05) == 1.0, "at the first size already"
    assert scale.reached((2.0, 0.5), 7.0) == 10
    assert scale.reached((2.0, 0.0), 7.0) == math.inf


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "not reached at 1,000 runs"),
        (math.inf, "not reached at 1,000 runs"),
        (847.0, "about 850 runs"),
        (0.4, "about 0 runs"),
        (12_345.0, "about 12,000 runs, by the law"),
    ],
)
def test_how_a_limit_is_told(value: float | None, told: str) -> None:
    assert scale.about(value, 1000, "runs") == told


def test_a_client_that_is_half_busy_waits_as_queueing_theory_says() -> None:
    delays = scale.waits_ms(5000, 100)
    mean = sum(delays) / len(delays)
    assert mean == pytest.approx(0.1 + 0.1 * 0.5 / (2 * (1 - 0.5)), rel=0.05), "M/D/1: service + service × load / (2 (1 − load))"
    assert quantile(scale.waits_ms(100, 100), 0.95) == pytest.approx(0.1, rel=0.05), "alone it only takes its time"


def test_bursts_are_shared_by_clients_and_pile_up_where_a_step_is_too_short() -> None:
    assert max(scale.burst_ms(100, 1, 50, step_ms=20)) == pytest.approx(5)
    assert max(scale.burst_ms(100, 4, 50, step_ms=20)) == pytest.approx(1.25)
    piled = scale.burst_ms(100, 1, 50, step_ms=4, steps=10)
    assert max(piled) == pytest.approx(5 + 9 * 1)


@given(st.integers(0, 100), st.integers(0, 100))
def test_the_highest_number_that_holds(limit: int, most: int) -> None:
    assert scale.highest(lambda number: number <= limit, most) == min(limit, most)


def test_a_sweep_is_bound_by_its_nodes_or_by_its_driver() -> None:
    assert scale.makespan_s(8, 4, 10.0, 0.0) == 20
    assert scale.makespan_s(8, 8, 10.0, 1.0) == 18
    assert scale.makespan_s(100, 50, 10.0, 1.0) == pytest.approx(110), "the driver is never idle"


def test_tables_and_pages() -> None:
    assert scale.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert [scale.short(value) for value in (None, math.inf, 12_345.6, 0.01234, 12.34)] == ["–", "never", "12,346", "0.0123", "12.3"]
    assert scale.squeezed(["", "a", "", "", "b", ""]) == ["a", "", "b", ""]


def test_the_page_is_the_scripts_and_marks_what_is_simulated() -> None:
    assert "Written by `.venv/bin/python -m benchmarks.scale --write`" in PAGE
    rows = [line.split(" | ") for line in PAGE.partition("## Where each part stops being enough")[2].splitlines() if line.startswith("| ")]
    parts = [row[0].removeprefix("| ") for row in rows[2:]]
    assert len(parts) == len(set(parts)) >= 8
    assert all(row[3].removesuffix(" |") for row in rows[2:]), "each says what takes over"
    heads = [line for line in PAGE.splitlines() if line.startswith("| ") and "SIMULATED" in line]
    assert len(heads) >= 4
    assert not [word for word in ("/root", "/work", "/home") if word in PAGE]
