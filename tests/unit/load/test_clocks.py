"""Clocks of several hosts brought to one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer
from pipeline.load.calibration import Calibration
from pipeline.load.clocks import Clock, apart_ns, by_ours, clock_between, clock_by
from pipeline.load.levels import level_of
from pipeline.load.spread import Batch
from pipeline.load.stamps import TIMES

MS = 10**6
delays = st.tuples(st.integers(0, 10**9), st.integers(0, 10**8), st.integers(0, 10**8))


@given(st.integers(-(10**15), 10**15), st.lists(delays, min_size=1))
def test_a_clock_is_off_by_no_more_than_its_bound(ahead_ns: int, trips: list[tuple[int, int, int]]) -> None:
    found = clock_by([(sent, sent + there + ahead_ns, sent + there + back) for sent, there, back in trips])
    assert abs(found.ahead_ns - ahead_ns) <= found.bound_ns
    assert 2 * found.bound_ns <= min(there + back for _, there, back in trips) + 1


@given(st.integers(-(10**12), 10**12), st.integers(-(10**7), 10**7), st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_clock_that_drifts_meanwhile_stays_within_the_bound(ahead: int, drift: int, share: float, first: int, last: int) -> None:
    found = clock_between(Clock(ahead, first), Clock(ahead + drift, last))
    assert abs(ahead + drift * share - found.ahead_ns) <= found.bound_ns + 1


def test_times_between_clients_may_be_wrong_by_the_two_widest_bounds() -> None:
    assert apart_ns([]) == apart_ns([Clock(5, 7)]) == 0, "a client's own stamps are of one clock"
    assert apart_ns([Clock(0, 3), Clock(1, 2), Clock(9, 4)]) == 7


good = Answer(1000, 2000, 9000, [2000, 4000, 9000], tokens=3, scheduled_ns=900, first_byte_ns=1500)


@given(st.integers(-(10**9), 10**9))
def test_no_latency_changes_with_the_clock(ahead_ns: int) -> None:
    moved = by_ours(good, Clock(ahead_ns, 1))
    assert moved.sent_ns == 1000 - ahead_ns
    assert moved.scheduled_ns == 900 - ahead_ns
    for _, values in TIMES.values():
        assert values([moved]) == values([good])
    failed = by_ours(Answer(1000, error="x", scheduled_ns=900), Clock(ahead_ns, 1))
    assert (failed.sent_ns, failed.scheduled_ns, failed.first_ns) == (1000 - ahead_ns, 900 - ahead_ns, 0)


def test_throughput_over_clocks_that_are_not_known_well_enough_is_invalid() -> None:
    own = Calibration(concurrency=2, processes=2, nodes=2, chunks=1, delay_ms_p50=0, delay_ms_p95=0, cpu_us_per_chunk=10)
    batch = Batch([good, good], wall_s=2.0, cpu_s=0.1, clock_ms=20.0)
    assert level_of(own, batch, 1, 1000).invalid == ""
    made = level_of(own, replace(batch, clock_ms=20.1), 1, 1000)
    assert made.invalid == "the clocks of its clients may be 20.1 ms apart, over 1% of its 2 s"
    assert made.clock_ms == 20.1
