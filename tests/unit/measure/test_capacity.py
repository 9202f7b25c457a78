"""The search for the highest rate that is sustained, against servers whose limit is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.capacity import CLOSE, highest, least_requests, most_s, steady_per_s, trial_s
from pipeline.measure.statistics import wilson

tops, limits, steps = st.floats(0.1, 10), st.floats(0.01, 20), st.integers(2, 20)


@given(limits, tops, steps)
def test_the_true_limit_lies_between_what_met_twice_and_what_did_not(limit: float, top: float, most: int) -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    good, bad = highest(meets, top, most, lambda _: 1.0, math.inf)
    assert len(tried) <= most
    assert tried[0] == top == max(tried), "never above the best closed loop"
    if not good:
        assert all(rate > limit for rate in tried[:-1]), "what met before the last trial was tried again"
        return
    assert good <= limit
    assert tried.count(good) == 2
    assert tried[-1] == good
    if bad is None:
        assert good == top
    else:
        assert limit < bad
        assert bad - good <= CLOSE * bad or len(tried) == most


def test_a_rate_that_fails_its_second_trial_is_not_the_answer_and_the_search_goes_on_below_it() -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        """Meet at the top by chance, once; else up to 0.8."""
        tried.append(rate)
        return tried == [1.0] or rate <= 0.8

    good, bad = highest(meets, 1.0, 20, lambda _: 1.0, math.inf)
    assert tried[:3] == [1.0, 1.0, 0.5]
    assert 0.77 < good <= 0.8 < (bad or 0)


def test_what_never_meets_is_halved_to_the_end_and_what_met_once_is_no_answer() -> None:
    tried: list[float] = []
    assert highest(lambda rate: bool(tried.append(rate)), 8.0, 4, lambda _: 1.0, math.inf) == (0.0, 1.0)  # type: ignore[func-returns-value]
    assert tried == [8, 4, 2, 1]
    answers = iter([True, False] * 3)
    good, _ = highest(lambda _: next(answers), 8.0, 6, lambda _: 1.0, math.inf)
    assert good == 0, "each met once and failed its second trial"


@given(limits, tops, steps, st.floats(0, 100), st.floats(0.1, 10))
def test_a_search_stays_within_its_time_and_leaves_room_to_confirm(limit: float, top: float, most: int, budget_s: float, n: float) -> None:
    tried: list[float] = []

    def seconds(rate: float) -> float:
        return max(5.0, n / rate)

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    good, _ = highest(meets, top, most, seconds, budget_s)
    spent = sum(map(seconds, tried))
    assert spent <= most_s(top, most, seconds, budget_s) + 1e-9 <= budget_s + 2e-9
    met = [rate for rate in tried if rate <= limit]
    assert good or not met or spent + seconds(met[-1]) > budget_s, "it confirms wherever that is affordable"


@pytest.mark.parametrize("percent", [50.0, 90.0, 95.0, 99.0, 99.9])
def test_fewer_requests_could_not_show_that_goodput(percent: float) -> None:
    n = least_requests(percent)
    assert 100 * wilson(n, n)[0] >= percent > 100 * wilson(n - 1, n - 1)[0] if n > 1 else True
    assert least_requests(95) == 73


def test_a_trial_is_as_long_as_its_most_demanding_rule() -> None:
    assert trial_s(100, 200, 30, 1) == 30
    assert trial_s(100, 200, 30, 5) == 50, "ten service times"
    assert trial_s(2, 200, 30, 1) == 100, "200 requests"


def test_the_rate_of_a_full_loop_leaves_out_its_filling_and_its_draining() -> None:
    waves = [(float(start), start + 1.0) for start in range(5) for _ in range(4)]
    assert steady_per_s(waves, 4) == 4, "20 in 5 s, the last wave draining"
    straggler = [*waves[:-1], (4.0, 90.0)]
    assert steady_per_s(straggler, 4) == 4
    assert steady_per_s(waves[:4], 4) is None
    assert steady_per_s([], 1) is None
