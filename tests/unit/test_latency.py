"""Latency from stamps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer
from pipeline.measure.latency import e2e_ms, tpot_ms, ttft_ms
from pipeline.stages import bench

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


def test_bench_figures_follow_the_definitions() -> None:
    made = bench.figures([answer(0, 40, 40, 1)], [answer(0, 50, 1050, 51)], [])
    assert made["ttft_ms_p50"].value == 40
    assert made["tpot_ms_p50"].value == 20
    assert made["decode_tok_s_p50"].value == 50
    assert made["e2e_ms_p50"].value == 1050


def test_bench_counts_failures_in_the_denominator_and_not_in_the_latencies() -> None:
    failed = Answer(0, error="HTTP 500")
    made = bench.figures([answer(0, 40, 40, 1), failed], [answer(0, 50, 1050, 51), failed], [])
    assert (made["answered"].value, made["answered"].n) == (50, 4)
    assert (made["ttft_ms_p50"].n, made["decode_tok_s_p50"].n) == (1, 1)


def test_bench_without_a_success_has_no_latency() -> None:
    made = bench.figures([Answer(0, error="x")], [Answer(0, error="x")], [])
    assert made["answered"].value == 0
    assert [made[name].value for name in ("ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "decode_tok_s_p50", "e2e_ms_p50")] == [None] * 5


@pytest.mark.parametrize("unfit", [answer(0, 50, 50, 51), answer(0, 50, 50, 1)], ids=["all in one block", "one token"])
def test_answer_without_a_token_gap_does_not_break_the_bench(unfit: Answer) -> None:
    made = bench.figures([answer(0, 40, 40, 1)], [unfit, answer(0, 50, 1050, 51)], [])
    assert made["decode_tok_s_p50"].value == 50


def test_system_throughput_counts_successful_tokens_over_wall_time() -> None:
    level = bench.level(4, [answer(0, 1, 2, 30), answer(0, 1, 2, 30), Answer(0, tokens=30, error="cut off")], 2.0, 0.5)
    assert (level.throughput_tok_s, level.requests, level.failed) == (30, 3, 1)
    assert level.client_cpu_share == 0.25
