"""Latency from stamps."""

import json
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer
from pipeline.contexts import RequestLimits
from pipeline.load.calibration import Calibration
from pipeline.load.levels import level_of, meeting
from pipeline.load.spread import Batch
from pipeline.load.stamps import raw_answer, raw_line
from pipeline.measure.latency import e2e_ms, gaps_ms, meets_limits, most_in_flight, steady_tok_s, tpot_ms, ttft_ms
from pipeline.stages.bench import lone_figures

MS = 1_000_000


def test_ttft_is_first_chunk_minus_send() -> None:
    assert ttft_ms(5 * MS, 47 * MS) == 42


def test_e2e_is_last_chunk_minus_send() -> None:
    assert e2e_ms(5 * MS, 1005 * MS) == 1000


def test_tpot_divides_by_the_gaps_not_by_the_tokens() -> None:
    assert tpot_ms(100 * MS, 400 * MS, 4) == 100


@pytest.mark.parametrize("tokens", [0, 1])
def test_tpot_below_two_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        tpot_ms(0, MS, tokens)


@given(st.integers(0, 10**15), st.integers(0, 10**12), st.integers(0, 10**12), st.integers(2, 10**4))
def test_e2e_is_ttft_and_tpot_of_the_rest(sent: int, wait: int, spread: int, tokens: int) -> None:
    first, last = sent + wait, sent + wait + spread
    assert e2e_ms(sent, last) == pytest.approx(ttft_ms(sent, first) + tpot_ms(first, last, tokens) * (tokens - 1))


def answer(sent: int, first: int, last: int, tokens: int, error: str = "") -> Answer:
    return Answer(sent * MS, first * MS, last * MS, [first * MS, last * MS], "x", "length", tokens=tokens, error=error)


def batch(*answers: Answer, wall_s: float = 1.0) -> Batch:
    return Batch(list(answers), wall_s, 0.5)


def test_bench_figures_follow_the_definitions() -> None:
    made = lone_figures(batch(answer(0, 40, 40, 1)), batch(answer(0, 50, 1050, 51)), [], [])
    assert made["ttft_ms_p50"].value == 40
    assert made["tpot_ms_p50"].value == 20
    assert made["itl_ms_p50"].value == 1000, "two chunks have one gap, however many tokens they hold"
    assert made["decode_tok_s_p50"].value == 50
    assert made["e2e_ms_p50"].value == 1050


def test_bench_counts_failures_in_the_denominator_and_not_in_the_latencies() -> None:
    failed = Answer(0, error="HTTP 500")
    decode = batch(answer(0, 50, 1050, 51), failed)
    made = lone_figures(batch(answer(0, 40, 40, 1), failed), decode, [decode], [])
    assert (made["answered"].value, made["answered"].n) == (50, 4)
    assert (made["ttft_ms_p50"].n, made["decode_tok_s_p50"].n) == (1, 1)


def test_bench_without_a_success_has_no_latency() -> None:
    made = lone_figures(batch(Answer(0, error="x")), batch(Answer(0, error="x")), [], [])
    assert made["answered"].value == 0
    assert [made[name].value for name in ("ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "decode_tok_s_p50", "e2e_ms_p50")] == [None] * 5


@pytest.mark.parametrize("unfit", [answer(0, 50, 50, 51), answer(0, 50, 50, 1)], ids=["all in one block", "one token"])
def test_answer_without_a_token_gap_does_not_break_the_bench(unfit: Answer) -> None:
    made = lone_figures(batch(answer(0, 40, 40, 1)), batch(unfit, answer(0, 50, 1050, 51)), [], [])
    assert made["decode_tok_s_p50"].value == 50


def test_system_throughput_counts_successful_tokens_over_wall_time() -> None:
    own = Calibration(concurrency=4, chunks=1, delay_ms_p50=0, delay_ms_p95=0, cpu_us_per_chunk=10)
    made = level_of(own, batch(answer(0, 1, 2, 30), answer(0, 1, 2, 30), Answer(0, tokens=30, error="cut off"), wall_s=2), 1, 1000)
    assert (made.throughput_tok_s, made.chunks_s, made.requests, made.failed) == (30, 2, 3, 1)
    assert made.client_cpu_share == 0.25
    assert made.steady_tok_s is None, "three requests never fill a loop of four"


LIMITS = [(None, None, None), (40.0, None, None), (None, 20.0, None), (None, None, 1050.0), (41.0, 21.0, 1051.0)]


@pytest.mark.parametrize(("limits", "met"), list(zip(LIMITS, [True, False, False, False, True], strict=True)))
def test_a_request_meets_its_limits_when_it_stays_below_each(limits: tuple[float | None, float | None, float | None], met: bool) -> None:
    assert meets_limits(40, 20, 1050, limits) == met


def test_an_answer_of_one_token_has_no_time_per_token_to_miss() -> None:
    assert meets_limits(40, None, 40, (None, 1.0, None))


def test_goodput_counts_from_the_scheduled_send_and_failures_as_missed() -> None:
    late = replace(answer(100, 140, 1140, 51), scheduled_ns=0)
    prompt = replace(answer(100, 140, 1140, 51), scheduled_ns=100 * MS)
    limits = RequestLimits(ttft_ms=100)
    assert meeting(batch(late, prompt, Answer(0, error="x")), limits) == 1


stamps = st.lists(st.integers(0, 10**6), min_size=1, max_size=20).map(sorted)


@given(st.lists(st.tuples(stamps, st.integers(1, 50)), min_size=1, max_size=12), st.integers(1, 6))
def test_steady_throughput_is_that_of_the_tokens_between_the_first_and_the_last_time_that_all_are_in_flight(
    parts: list[tuple[list[int], int]], concurrency: int
) -> None:
    made = steady_tok_s([(chunks[0], chunks[1:], tokens) for chunks, tokens in parts], concurrency)
    sends = sorted(chunks[0] for chunks, _ in parts)
    if made is None:
        assert len(sends) <= concurrency or sends[-1] == sends[concurrency - 1]
        return
    begin, end = sends[concurrency - 1], sends[-1]
    seconds = (end - begin) / 1e9
    assert 0 <= made * seconds <= sum(tokens for _, tokens in parts) + 1e-6
    counted = 0.0
    for chunks, tokens in parts:
        for at in chunks[1:]:
            counted += tokens / (len(chunks) - 1) if begin < at <= end else 0
    assert made * seconds == pytest.approx(counted)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair))), max_size=12))
def test_most_in_flight_is_what_counting_at_every_moment_gives(spans: list[tuple[int, int]]) -> None:
    by_counting = max((sum(begin <= at < end for begin, end in spans) for at in range(51)), default=0)
    assert most_in_flight(spans) == by_counting


@given(st.lists(st.integers(0, 10**9), max_size=20).map(sorted))
def test_gaps_add_up_to_the_time_from_the_first_chunk_to_the_last(chunk_ns: list[int]) -> None:
    gaps = gaps_ms(chunk_ns)
    assert len(gaps) == max(0, len(chunk_ns) - 1)
    assert sum(gaps) == pytest.approx((chunk_ns[-1] - chunk_ns[0]) / MS if chunk_ns else 0, abs=1e-6)


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.lists(st.integers(1, 10**9), min_size=1, max_size=9), st.integers(1, 99))
def test_stamps_survive_the_raw_file(sent: int, due_before: int, gaps: list[int], tokens: int) -> None:
    chunk_ns = list(accumulate(gaps, initial=sent))[1:]
    began = 17
    scheduled = max(began, sent - due_before)
    made = Answer(sent, chunk_ns[0], chunk_ns[-1], chunk_ns, "", None, 3, 2, tokens, "", scheduled, sent + 1)
    back = raw_answer(json.loads(json.dumps(raw_line("x", made, began))))
    moved = [at - began for at in chunk_ns]
    assert back == Answer(sent - began, moved[0], moved[-1], moved, "", None, 3, 2, tokens, "", scheduled - began, sent + 1 - began)
