"""Schedules of an open loop, and a server that falls behind one."""

from itertools import pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.arrivals import Arrival, overloaded, schedule

arrivals = st.sampled_from(["poisson", "constant"])


@given(arrivals, st.floats(0.01, 1000), st.integers(0, 50), st.integers())
def test_a_schedule_starts_at_once_never_goes_back_and_is_repeatable(arrival: Arrival, rate: float, requests: int, seed: int) -> None:
    due = schedule(arrival, rate, requests, seed)
    assert len(due) == requests
    assert due[:1] == [0.0][:requests]
    assert due == sorted(due) == schedule(arrival, rate, requests, seed)


@given(st.floats(0.01, 1000), st.integers(2, 50))
def test_constant_arrivals_are_evenly_apart(rate: float, requests: int) -> None:
    due = schedule("constant", rate, requests, 0)
    assert due[-1] == pytest.approx((requests - 1) / rate)
    assert due[1] == pytest.approx(1 / rate)


@pytest.mark.parametrize("rate", [0.5, 20])
def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential(rate: float) -> None:
    due = schedule("poisson", rate, 20_001, 42)
    gaps = [after - before for before, after in pairwise(due)]
    assert mean(gaps) == pytest.approx(1 / rate, rel=0.03)
    assert mean((gap - 1 / rate) ** 2 for gap in gaps) ** 0.5 == pytest.approx(1 / rate, rel=0.03)
    assert schedule("poisson", rate, 9, 1) != schedule("poisson", rate, 9, 2)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
@pytest.mark.parametrize("arrival", ["poisson", "constant"])
def test_a_rate_that_is_none_is_refused(arrival: Arrival, rate: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        schedule(arrival, rate, 3, 0)


def queue(rate: float, service_s: float, requests: int) -> list[float]:
    """Return the latencies of a server that takes one request after the other."""
    free_at, latencies = 0.0, []
    for due in schedule("poisson", rate, requests, 42):
        free_at = max(free_at, due) + service_s
        latencies.append(1000 * (free_at - due))
    return latencies


@pytest.mark.parametrize(("load", "behind"), [(0.3, False), (0.6, False), (1.5, True), (3, True)])
def test_a_queue_falls_behind_above_its_capacity_only(load: float, behind: bool) -> None:
    assert overloaded(queue(load / 0.1, 0.1, 64)) is behind


@given(st.lists(st.floats(1, 1000), max_size=30))
def test_equal_falling_or_few_latencies_are_no_overload(latencies: list[float]) -> None:
    assert not overloaded([5.0] * len(latencies))
    assert not overloaded(sorted(latencies, reverse=True))
    assert not overloaded(latencies[:8])
