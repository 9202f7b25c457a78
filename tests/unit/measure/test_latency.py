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
from pipeline.measure.latency import arrived_after_first, e2e_ms, gaps_ms, meets_limits, most_in_flight, steady_tok_s, tpot_ms, ttft_ms
from pipeline.stages.bench import held_back, lone_figures

MS = 1_000_000


def test_ttft_is_first_chunk_minus_send() -> None:
    assert ttft_ms(5 * MS, 47 * MS) == 42


def test_e2e_is_last_chunk_minus_send() -> None:
    assert e2e_ms(5 * MS, 1005 * MS) == 1000


def test_tpot_divides_by_the_tokens_that_came_after_the_first() -> None:
    assert tpot_ms(100 * MS, [100 * MS, 200 * MS, 400 * MS], [1, 1, 1]) == 150
    assert tpot_ms(100 * MS, [100 * MS, 200 * MS, 400 * MS], [4, 4, 2]) == 50


def test_tpot_counts_chunks_without_text_before_the_first_text_and_after_the_last() -> None:
    assert tpot_ms(300 * MS, [100 * MS, 200 * MS, 300 * MS, 400 * MS], [1, 1, 1, 1]) == 100, "two hidden first tokens"
    assert tpot_ms(100 * MS, [100 * MS, 200 * MS, 300 * MS], [1, 1, 1]) == 100, "a hidden last token"
    assert tpot_ms(100 * MS, [100 * MS, 200 * MS, 900 * MS], [1, 1, 0]) == 100, "text that is held back is no token"


@pytest.mark.parametrize(
    ("chunk_ns", "tokens"), [([], []), ([0], [64]), ([0, 0, 0], [1, 1, 1]), ([0, 90_000, 180_000, 270_000], [16] * 4), ([0, MS], [3, 0])]
)
def test_tokens_that_came_at_once_show_no_pace(chunk_ns: list[int], tokens: list[int]) -> None:
    assert tpot_ms(0, chunk_ns, tokens) is None


def test_a_flush_of_32_tokens_reads_the_pace_that_they_were_made_at() -> None:
    stamps = [640 * MS + 50_000 * number for number in range(32)] + [1280 * MS] * 32
    assert tpot_ms(stamps[0], stamps, [1] * 64) == 20


@given(
    st.integers(MS, 100 * MS),
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 0.99)), min_size=1, max_size=8),
    st.integers(0, 200_000),
    st.integers(0, 5),
)
def test_no_proxy_that_buffers_reads_faster_than_the_truth(
    pace_ns: int, flushes: list[tuple[int, float]], jitter_ns: int, hidden: int
) -> None:
    stamps: list[int] = []
    for number, (size, delay) in enumerate(flushes):
        made = sum(each for each, _ in flushes[: number + 1]) * pace_ns  # the last token of this flush
        begin = made + int(delay * pace_ns)  # it sends all that it has, before the next is made
        stamps += [max(begin + jitter_ns * read, stamps[-1] if stamps else 0) for read in range(size)]
    first_ns = stamps[min(hidden, len(stamps) - 1)]
    found = tpot_ms(first_ns, stamps, [1] * len(stamps))
    if found is None:
        return
    later = len(arrived_after_first(first_ns, stamps, [1] * len(stamps)))
    late = max(delay for _, delay in flushes)
    assert found * MS >= pace_ns * (1 - late / later) * (1 - 1e-9), "within the time in which a flush may come"


@given(st.integers(5, 100), st.integers(8, 128), st.integers(0, 5000), st.floats(0.01, 1))
def test_a_proxy_that_holds_tokens_back_and_replays_them_faster_is_caught_where_it_matters(
    pace: int, tokens: int, hold: int, share: float
) -> None:
    stamps: list[int] = []
    for number in range(tokens):
        made = (50 + number * pace) * MS
        stamps.append(max(made, int((50 + hold + number * pace * share) * MS)))
    cold = batch(*(answer(0, 50, 50, 1) for _ in range(8)))
    long = Answer(0, stamps[0], stamps[-1], stamps, "x", "length", tokens=tokens, chunk_tokens=[1] * tokens, answer_ns=stamps[0])
    decode = batch(*[long] * 8)
    found = tpot_ms(stamps[0], stamps, [1] * tokens)
    assert found is not None
    assert held_back(cold, decode) or found >= 0.94 * pace - 5 / (tokens - 1)


def test_a_first_flush_holds_nothing_back() -> None:
    cold = batch(*(answer(0, 20, 20, 1) for _ in range(8)))
    stamps = [640 * MS] * 32 + [1280 * MS] * 32
    long = Answer(0, stamps[0], stamps[-1], stamps, "x", "length", tokens=64, chunk_tokens=[1] * 64)
    assert held_back(cold, batch(*[long] * 8)) == ""
    assert held_back(cold, batch(Answer(0, error="x"))) == ""


def answer(sent: int, first: int, last: int, tokens: int, error: str = "") -> Answer:
    stamps = [first * MS, last * MS]
    return Answer(sent * MS, first * MS, last * MS, stamps, "x", "length", tokens=tokens, error=error, answer_ns=first * MS)


def batch(*answers: Answer, wall_s: float = 1.0) -> Batch:
    return Batch(list(answers), wall_s, 0.5)


def test_bench_figures_follow_the_definitions() -> None:
    made = lone_figures(batch(answer(0, 40, 40, 1)), batch(answer(0, 50, 1050, 51)), [], [])
    assert made["ttft_ms_p50"].value == 40
    assert made["tpot_ms_p50"].value == pytest.approx(1000 / 25.5), "spread evenly where the server does not tell"
    assert made["itl_ms_p50"].value == 1000, "two chunks have one gap, however many tokens they hold"
    assert made["decode_tok_s_p50"].value == pytest.approx(25.5)
    assert made["e2e_ms_p50"].value == 1050


def test_bench_counts_failures_in_the_denominator_and_not_in_the_latencies() -> None:
    failed = Answer(0, error="HTTP 500")
    decode = batch(answer(0, 50, 1050, 51), failed)
    made = lone_figures(batch(answer(0, 40, 40, 1), failed), decode, [decode], [])
    assert (made["answered"].value, made["answered"].n) == (50, 4)
    names = (
        "ttft_ms_p50",
        "ttft_ms_p95",
        "ttfat_ms_p50",
        "first_byte_ms_p50",
        "tpot_ms_p50",
        "itl_ms_p95",
        "decode_tok_s_p50",
        "e2e_ms_p50",
    )
    assert {(made[name].n, made[name].failed) for name in names} == {(1, 1)}


def test_bench_without_a_success_has_no_latency() -> None:
    made = lone_figures(batch(Answer(0, error="x")), batch(Answer(0, error="x")), [], [])
    assert made["answered"].value == 0
    assert [made[name].value for name in ("ttft_ms_p50", "ttft_ms_p95", "tpot_ms_p50", "decode_tok_s_p50", "e2e_ms_p50")] == [None] * 5


@pytest.mark.parametrize("unfit", [answer(0, 50, 50, 51), answer(0, 50, 50, 1)], ids=["all in one block", "one token"])
def test_answer_without_a_token_gap_does_not_break_the_bench(unfit: Answer) -> None:
    made = lone_figures(batch(answer(0, 40, 40, 1)), batch(unfit, answer(0, 50, 1050, 51)), [], [])
    figure = made["decode_tok_s_p50"]
    assert figure.value == pytest.approx(25.5)
    assert (figure.n, figure.failed) == (1, 1)


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


@pytest.mark.parametrize(("limit_ms", "met"), [(21.0, 1), (20.0, 0)])
def test_an_answer_that_came_at_once_meets_a_pace_only_if_all_of_its_time_does(limit_ms: float, met: int) -> None:
    assert meeting(batch(answer(0, 1000, 1000, 51)), RequestLimits(tpot_ms=limit_ms)) == met


def test_ttfat_is_of_the_first_chunk_of_the_answer_and_ttft_of_the_first_of_any() -> None:
    long = Answer(0, 40 * MS, 90 * MS, [40 * MS, 90 * MS], "x", tokens=2, reasoning="hm", answer_ns=90 * MS)
    made = lone_figures(batch(replace(answer(0, 40, 40, 1), answer_ns=40 * MS)), batch(long), [], [])
    assert made["ttfat_ms_p50"].value == made["ttft_ms_p50"].value == 40, "nothing is thought in the cold arm"
    thought = replace(answer(0, 40, 40, 1), text="", reasoning="h", answer_ns=0)
    assert lone_figures(batch(thought), batch(long), [], [])["ttfat_ms_p50"].value == 90
    never = lone_figures(batch(thought), batch(thought), [], [])["ttfat_ms_p95"]
    assert (never.value, never.reason) == (None, "no answer began, all of it was reasoning")


chunks_of = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9)), min_size=1, max_size=20).map(sorted)


@given(st.lists(chunks_of, min_size=1, max_size=12), st.integers(1, 6))
def test_steady_throughput_is_that_of_the_tokens_between_the_first_and_the_last_time_that_all_are_in_flight(
    parts: list[list[tuple[int, int]]], concurrency: int
) -> None:
    made = steady_tok_s([(chunks[0][0], [at for at, _ in chunks[1:]], [count for _, count in chunks[1:]]) for chunks in parts], concurrency)
    sends = sorted(chunks[0][0] for chunks in parts)
    if made is None:
        assert len(sends) <= concurrency or sends[-1] == sends[concurrency - 1]
        return
    begin, end = sends[concurrency - 1], sends[-1]
    counted = sum(count for chunks in parts for at, count in chunks[1:] if begin < at <= end)
    assert made * (end - begin) / 1e9 == pytest.approx(counted)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: (min(pair), max(pair))), max_size=12))
def test_most_in_flight_is_what_counting_at_every_moment_gives(spans: list[tuple[int, int]]) -> None:
    by_counting = max((sum(begin <= at < end for begin, end in spans) for at in range(51)), default=0)
    assert most_in_flight(spans) == by_counting


@given(st.lists(st.integers(0, 10**9), max_size=20).map(sorted))
def test_gaps_add_up_to_the_time_from_the_first_chunk_to_the_last(chunk_ns: list[int]) -> None:
    gaps = gaps_ms(chunk_ns)
    assert len(gaps) == max(0, len(chunk_ns) - 1)
    assert sum(gaps) == pytest.approx((chunk_ns[-1] - chunk_ns[0]) / MS if chunk_ns else 0, abs=1e-6)


parts = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 9)), min_size=1, max_size=9)


@given(st.integers(1, 10**12), st.integers(0, 10**9), parts, st.booleans(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2))
def test_stamps_survive_the_raw_file(
    sent: int, due_before: int, chunks: list[tuple[int, int]], tells: bool, first: int, begins: int, replaced: int
) -> None:
    chunk_ns = list(accumulate((gap for gap, _ in chunks), initial=sent))[1:]
    made = Answer(
        sent,
        chunk_ns[min(first, len(chunks) - 1)],
        chunk_ns[-1],
        chunk_ns,
        prompt_tokens=3,
        cached_tokens=2,
        tokens=9,
        scheduled_ns=max(1, sent - due_before),
        first_byte_ns=sent + 1,
        chunk_tokens=[count for _, count in chunks] if tells else None,
        answer_ns=chunk_ns[begins] if begins < len(chunks) else 0,
        replaced=replaced,
    )
    assert raw_answer(json.loads(json.dumps(raw_line("x", made, 0)))) == made
    failed = Answer(sent, error="HTTP 500", scheduled_ns=sent)
    assert raw_answer(json.loads(json.dumps(raw_line("x", failed, 0)))) == failed


def test_the_raw_file_of_an_older_version_is_read() -> None:
    line = {"phase": "x", "scheduled": 5, "sent": 2, "first_byte": 3, "chunks": [4, 6], "tokens": 8, "prompt_tokens": 3, "cached_tokens": 2}
    made = raw_answer({**line, "error": ""})
    assert made == Answer(7, 11, 17, [11, 17], tokens=8, prompt_tokens=3, cached_tokens=2, scheduled_ns=5, first_byte_ns=10, answer_ns=11)
    assert made.tokens_by_chunk == [4, 4]
