"""The search for capacity against queues whose capacity is known: the code that judges real answers, without a clock."""

import math
from dataclasses import replace

import pytest

from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.load.capacity import Trial, best_rate, capacity_figure, find_capacity, trial_of
from pipeline.measure.arrivals import schedule
from tests.builders.queues import Service, SlotServer

LEVELS = (1, 4, 16, 64, 256)
SERVICE_S = {1: 0.01, 4: 0.05, 16: 0.2, 64: 1.0, 256: 1.0}


def search(server: SlotServer, limits: RequestLimits, **settings: object) -> list[Trial]:
    asked = BenchConfig().model_copy(update=settings)
    best = best_rate({level: server.closed_loop(level, 64, 10) for level in LEVELS})
    return find_capacity(server, asked, limits, best, lambda _: None)


@pytest.mark.parametrize("service", ["deterministic", "exponential"])
@pytest.mark.parametrize("slots", LEVELS)
def test_capacity_is_within_five_percent_of_the_truth(slots: int, service: Service) -> None:
    server = SlotServer(slots, service, SERVICE_S[slots])
    figure = capacity_figure(search(server, RequestLimits()))
    assert figure.value == pytest.approx(server.capacity_per_s, rel=0.05)
    assert server.trials.count(server.trials[-1]) == 2, "the rate found was tried a second time"


def test_capacity_under_a_limit_is_that_of_the_exact_queue() -> None:
    """M/M/1: a request takes longer than t with the chance exp(−(µ − λ) t), so 95 % meet 0.2 s up to λ = µ − ln(20) / 0.2."""
    server = SlotServer(1, "exponential", 0.01)
    figure = capacity_figure(search(server, RequestLimits(e2e_ms=200)))
    assert figure.value == pytest.approx(100 - math.log(20) / 0.2, rel=0.05)


def test_the_search_never_offers_more_than_the_best_closed_loop_took() -> None:
    server = SlotServer(16, "exponential", 0.2)
    best, _ = best_rate({4: server.closed_loop(4, 64, 10)})
    find_capacity(server, BenchConfig(), RequestLimits(), (best, 0.5), lambda _: None)
    assert max(server.trials) == best < 0.5 * server.capacity_per_s


def test_a_limit_that_nothing_meets_and_a_time_that_is_too_short_give_no_capacity() -> None:
    server = SlotServer(4, "deterministic", 0.05)
    hopeless = search(server, RequestLimits(e2e_ms=10), capacity_steps=3)
    assert [trial.meets for trial in hopeless] == [False] * 3
    assert capacity_figure(hopeless).reason == f"no rate was sustained, down to {hopeless[-1].rate_per_s:.3g} requests/s"
    once = search(server, RequestLimits(), capacity_max_s=40)
    assert [trial.meets for trial in once] == [True]
    assert capacity_figure(once).value is None
    assert "twice" in capacity_figure(once).reason


def test_the_search_says_how_long_it_takes_before_it_starts() -> None:
    said: list[str] = []
    server = SlotServer(4, "deterministic", 0.05)
    find_capacity(server, BenchConfig(), RequestLimits(), (80.0, 0.05), lambda text: said.append(f"{len(server.trials)} {text}"))
    assert said == ["0 bench: the search for capacity takes 15.0 minutes at most: up to 12 trials of 30 s or more, from 80 requests/s down"]


def test_a_trial_is_judged_by_the_bound_without_its_ramp() -> None:
    due = schedule("constant", 10.0, 101, 0)
    batch = SlotServer(4, "deterministic", 0.1).open_loop(due)
    late = {50, 60, 70}
    answers = [replace(one, last_ns=one.last_ns + 10**9 * (at < 10 or at in late)) for at, one in enumerate(batch.answers)]
    trial = trial_of(10, replace(batch, answers=answers), 1.0, RequestLimits(e2e_ms=500), 95)
    assert (trial.requests, trial.ramp_s) == (91, 1.0)
    assert trial.goodput_percent == pytest.approx(100 * 88 / 91, abs=0.01)
    assert trial.goodput_low is not None
    assert trial.goodput_low < 95 < trial.goodput_percent
    assert not trial.meets, "the share meets the target, its bound does not"
    assert trial.came_per_s == pytest.approx(10)


def test_the_service_time_is_not_that_of_a_loop_whose_requests_wait_for_each_other() -> None:
    server = SlotServer(4, "deterministic", 0.5)
    _, service_s = best_rate({level: server.closed_loop(level, 64, 10) for level in LEVELS})
    assert service_s == pytest.approx(0.5, rel=0.05)
