"""Schedules of an open loop, and a server that falls behind one."""

import random
from itertools import pairwise, permutations
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.load.levels import falls_behind
from pipeline.measure.arrivals import CHANCE, Arrival, came_per_s, chance_of, overloaded, schedule
from tests.builders.queues import Service, SlotServer

arrivals = st.sampled_from(["poisson", "constant"])


@given(arrivals, st.floats(0.01, 1000), st.integers(0, 50), st.integers())
def test_a_schedule_starts_at_once_never_goes_back_and_is_repeatable(arrival: Arrival, rate: float, requests: int, seed: int) -> None:
    due = schedule(arrival, rate, requests, seed)
    assert len(due) == requests
    assert due[:1] == [0.0][:requests]
    assert due == sorted(due) == schedule(arrival, rate, requests, seed)


@given(arrivals, st.floats(0.01, 1000), st.integers(2, 50), st.integers())
def test_requests_come_at_the_rate_asked_for(arrival: Arrival, rate: float, requests: int, seed: int) -> None:
    assert came_per_s(schedule(arrival, rate, requests, seed)) == pytest.approx(rate)


@pytest.mark.parametrize("sends", [[], [1.0], [2.0, 2.0]])
def test_too_few_sends_have_no_rate(sends: list[float]) -> None:
    assert came_per_s(sends) is None


def test_arrivals_between_the_first_and_the_last_are_uniform() -> None:
    """As those of a Poisson process are, given their number: by Kolmogorov and Smirnov's bound at 1 %."""
    times = sorted(due for seed in range(200) for due in schedule("poisson", 1.0, 12, seed)[1:-1])
    n = len(times)
    assert max(abs((rank + 0.5) / n - due / 11) for rank, due in enumerate(times)) < 1.63 / n**0.5


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


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_chance_of_a_rise_is_that_of_counting_all_orders(n: int) -> None:
    rises = [
        sum(1 if after > before else -1 for at, before in enumerate(order) for after in order[at + 1 :]) for order in permutations(range(n))
    ]
    pairs = n * (n - 1) // 2
    for s in range(-pairs, pairs + 1):
        assert chance_of(s, pairs) == pytest.approx(sum(rise >= s for rise in rises) / len(rises))


@pytest.mark.parametrize("requests", [16, 64])
@pytest.mark.parametrize("spread", [0.05, 1.0, 2.0])
def test_noise_alone_is_no_overload(requests: int, spread: float) -> None:
    """At most 1 % of honest servers may be flagged, however much their latencies vary: 0.2 % by construction."""
    source = random.Random(requests)
    due = schedule("constant", 8.0, requests, 0)
    flagged = sum(overloaded(due, [source.lognormvariate(6, spread) for _ in due]) for _ in range(300))
    assert flagged <= 3
    assert CHANCE <= 0.01


SERVERS = [(slots, service) for slots in (1, 4, 16, 64) for service in ("deterministic", "erlang")]
RUNS = 20


def flagged(slots: int, service: Service, load: float, requests: int = 100, least_s: float = 10) -> int:
    """Return how many of 20 open loops are flagged, each as long as bench's default."""
    count = 0
    for seed in range(RUNS):
        server = SlotServer(slots, service, seed=seed)
        rate = load * server.capacity_per_s
        count += falls_behind(server.open_loop(schedule("poisson", rate, max(requests, int(least_s * rate)), seed)))
    return count


@pytest.mark.parametrize(("slots", "service"), SERVERS)
def test_a_server_at_three_tenths_over_its_capacity_is_found(slots: int, service: Service) -> None:
    assert flagged(slots, service, 1.3) >= 0.9 * RUNS


@pytest.mark.parametrize(("slots", "service"), [*SERVERS, (1, "exponential"), (16, "exponential")])
def test_a_server_at_six_tenths_of_its_capacity_keeps_up(slots: int, service: Service) -> None:
    assert flagged(slots, service, 0.6) == 0


@given(st.lists(st.floats(1, 1000), max_size=30))
def test_equal_falling_or_few_latencies_are_no_overload(latencies: list[float]) -> None:
    due = [float(number) for number in range(len(latencies))]
    assert not overloaded(due, [5.0] * len(latencies))
    assert not overloaded(due, sorted(latencies, reverse=True))
    assert not overloaded(due[:5], latencies[:5])


def test_a_slight_rise_is_no_overload_and_a_steep_one_is() -> None:
    due = [0.5 * number for number in range(30)]
    assert not overloaded(due, [100 + 45 * number for number in range(30)]), "0.09 s per second"
    assert overloaded(due, [100 + 55 * number for number in range(30)]), "0.11 s per second"
    assert overloaded(due, [100 + 45 * number for number in range(30)], 0.05)


def test_the_ramp_of_a_server_that_starts_empty_is_no_overload() -> None:
    due = [0.1 * number for number in range(100)]
    assert not overloaded(due, [1000 + min(1.0, at) * 1000 for at in due])
