"""bench against the fake server."""

import dataclasses
import gzip
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, MeasureError, NothingAnsweredError
from pipeline.load.calibration import Calibration, Contention, calibrate, contention
from pipeline.load.capacity import Loops, Trial
from pipeline.load.levels import LATENCIES, Level, OpenLevel
from pipeline.load.phases import LoadPhases
from pipeline.load.spread import Batch
from pipeline.load.stamps import raw_answer
from pipeline.stages import bench as benching
from pipeline.stages.serve import Server
from pipeline.vllm.ledger import MeanCheck, mean_check
from tests.builders.stages import BENCH, bench
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.integration.conftest import calibrated

# In this order: 0 the first, 1 warm-up, 2-4 cold, 5-7 the same warm, 8 warm-up of 9-11 decode, 12-13 warm-up of 14-17 at 2,
# 18-20 Poisson, 21-23 constant.
BENCH_REQUESTS = 24


BENCH_TOKENS = 8 + 16 * 8


def test_bench_counts_what_the_server_counts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.05)  # so that requests overlap
    result = bench(server, workspace)
    assert [(count.name, count.client, count.server) for count in result.ledger] == [
        ("output tokens", BENCH_TOKENS, BENCH_TOKENS),
        ("prompt tokens", fake.ledger.prompt_tokens, fake.ledger.prompt_tokens),
        ("requests answered", BENCH_REQUESTS, BENCH_REQUESTS),
    ]
    assert all(count.agrees for count in result.ledger)
    assert [(level.concurrency, level.requests, level.failed, level.output_tokens) for level in result.levels] == [
        (1, 3, 0, 24),
        (2, 4, 0, 32),
    ]
    assert result.simulated


def test_an_open_loop_at_a_rate_of_its_own_does_not_follow_the_servers_speed(server: Server, workspace: Workspace) -> None:
    result = bench(server, workspace, BENCH.model_copy(update={"open_rate_req_s": 40.0}))
    assert {level.rate_per_s for level in result.open_levels} == {40}
    assert result.figures["poisson_rate_req_s"].value == 40


@pytest.mark.parametrize("counting", [0.0, 0.5, 2.0])
def test_bench_notices_a_server_that_counts_otherwise(counting: float, fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(counting=counting)
    output, *_ = bench(server, workspace).ledger
    assert not output.agrees
    assert (output.client, output.server) == (BENCH_TOKENS, int(BENCH_TOKENS * counting))


def test_bench_without_the_servers_counter_does_not_agree(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(metrics=False)
    result = bench(server, workspace)
    assert [(count.server, count.agrees) for count in result.ledger] == [(None, False)] * 3
    assert (result.cold_hit_tokens, result.warm_hit_tokens) == (None, None)
    assert result.figures["ttft_warm_ms_p50"].value is None
    assert "not available" in result.figures["ttft_warm_ms_p50"].reason


def test_bench_figures_follow_from_the_scripted_pace_and_from_the_raw_stamps(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.02, inter_token_s=0.01)
    result = bench(server, workspace)
    least_s = 0.02 + 7 * 0.01
    value = {name: figure.value or 0.0 for name, figure in result.figures.items()}
    assert value["ttft_ms_p50"] >= 20
    assert value["e2e_ms_p50"] >= least_s * 1000
    assert value["system_tok_s_c1"] <= 8 / least_s
    assert value["system_tok_s_c2"] <= 2 * 8 / least_s
    lines = [json.loads(line) for line in gzip.decompress((workspace.root / result.raw).read_bytes()).splitlines()]
    kept = [raw_answer(line) for line in lines]
    assert len(kept) == BENCH_REQUESTS
    assert sum(answer.tokens for answer in kept) == BENCH_TOKENS
    cold, decode, at_two = kept[2:5], kept[9:12], kept[14:18]
    tpot = sorted((answer.last_ns - answer.first_ns) / 7 / 1e6 for answer in decode)
    assert value["tpot_ms_p50"] == pytest.approx(tpot[1])
    assert value["decode_tok_s_p50"] == pytest.approx(1000 / tpot[1])
    assert value["ttft_ms_p50"] == pytest.approx(sorted((answer.first_ns - answer.sent_ns) / 1e6 for answer in cold)[1])
    assert value["e2e_ms_p50"] == pytest.approx(sorted((answer.last_ns - answer.sent_ns) / 1e6 for answer in decode)[1])
    poisson = kept[18:21]
    assert value["poisson_e2e_ms_p50"] == pytest.approx(sorted((answer.last_ns - answer.scheduled_ns) / 1e6 for answer in poisson)[1])
    for level in result.levels:
        assert level.throughput_tok_s == pytest.approx(level.output_tokens / level.wall_s, rel=0.02)
    seen_s = (max(answer.last_ns for answer in at_two) - min(answer.sent_ns for answer in at_two)) / 1e9
    assert value["system_tok_s_c2"] == pytest.approx(4 * 8 / seen_s, rel=0.2)
    assert [line["phase"] for line in lines[12:16]] == ["warm-up c2", "warm-up c2", "closed loop c2", "closed loop c2"]


def test_what_rests_on_a_cold_cache_is_invalid_where_it_was_warm(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=1)
    figures = bench(server, workspace).figures
    touched = {name for name, figure in figures.items() if "cached prompt tokens in the cold arm" in figure.invalid}
    assert touched == {"ttft_ms_p50", "ttft_ms_p95", "ttfat_ms_p50", "ttfat_ms_p95", "first_byte_ms_p50"}


def test_what_rests_on_the_first_token_is_invalid_where_the_server_contradicts_it(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contradicted(name: str, *rest: Any) -> MeanCheck:
        check = mean_check(name, *rest)
        return check.model_copy(update={"server_ms": 1e6}) if name == "TTFT" else check

    monkeypatch.setattr(benching, "mean_check", contradicted)
    fake.script = Script(cached_tokens=None)
    result = bench(server, workspace)
    touched = {name for name, figure in result.figures.items() if "mean TTFT" in figure.invalid}
    assert touched == {f"{kind}_ms_p{percent}" for kind in ("ttft", "ttfat", "ttft_warm") for percent in (50, 95)}
    assert result.levels[0].figures["ttfat_ms_p50"].invalid


def test_bench_of_a_warm_prefix_cache_counts_where_the_server_shows_hits(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None)
    result = bench(server, workspace)
    assert result.cold_hit_tokens == 0
    assert result.warm_hit_tokens
    assert result.figures["ttft_warm_ms_p50"].n == 3
    fake.script = Script(cached_tokens=0)
    missed = bench(server, workspace)
    assert missed.figures["ttft_warm_ms_p95"].value is None
    assert "did not rise" in missed.figures["ttft_warm_ms_p95"].reason


def test_bench_counts_a_late_answer_from_when_it_was_due_and_against_goodput(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.02, inter_token_s=0.01, by_number={"19": {"first_token_s": 2.2}, "22": {"status": 500}})
    result = bench(server, workspace, limits=RequestLimits(ttft_ms=2000))
    goodput = {name: figure.value for name, figure in result.figures.items() if "goodput" in name}
    assert goodput["goodput_c1"] == goodput["goodput_c2"] == 100
    assert goodput["poisson_goodput"] == pytest.approx(100 * 2 / 3), "a late one misses"
    assert goodput["constant_goodput"] == pytest.approx(100 * 2 / 3), "a failed one misses"
    assert [(level.arrival, level.requests, level.failed) for level in result.open_levels] == [("poisson", 3, 0), ("constant", 3, 1)]
    assert all(level.delay_ms_max >= 0 for level in result.open_levels)


def test_bench_searches_for_the_highest_rate_that_is_sustained(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    small = {"find_capacity": True, "capacity_requests": 9, "capacity_steps": 3, "capacity_min_s": 0.1, "capacity_goodput": 1}
    asked = BENCH.model_copy(update=small)
    assert bench(server, workspace).figures["capacity_req_s"].reason == "bench.find_capacity is false"
    fake.script = Script(first_token_s=0.02)
    result = bench(server, workspace, asked)
    assert 1 <= len(result.trials) <= 3
    assert all(count.agrees for count in result.ledger), "trials count as well"
    lines = [json.loads(line) for line in gzip.decompress((workspace.root / result.raw).read_bytes()).splitlines()]
    trials = [line for line in lines if line["phase"].startswith("capacity ")]
    assert len(trials) >= sum(trial.requests or 0 for trial in result.trials) > 0
    assert all(len(line["chunks"]) == 2 for line in trials), "they would fill the disk otherwise"
    hopeless = bench(server, workspace, asked, RequestLimits(ttft_ms=1))
    assert [trial.meets for trial in hopeless.trials] == [False] * 3
    rates = [trial.rate_per_s for trial in hopeless.trials]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=1e-3)
    assert "no rate was sustained" in hopeless.figures["capacity_req_s"].reason


def test_a_level_lasts_as_long_as_asked_and_says_how_long_it_lasted(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.01)
    result = bench(server, workspace, BENCH.model_copy(update={"level_min_s": 0.3, "open_min_s": 0.2}))
    assert [level.requests >= least for level, least in zip(result.levels, (3, 4), strict=True)] == [True, True]
    assert all(level.wall_s > 0 for level in result.levels)
    assert all(count.agrees for count in result.ledger)
    for opened in result.open_levels:
        assert opened.requests >= 0.2 * opened.rate_per_s
        assert opened.came_per_s is not None


def test_each_level_has_its_own_percentiles_and_goodput(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.02, inter_token_s=0.005, by_number={"15": {"status": 500}})
    result = bench(server, workspace, limits=RequestLimits(ttft_ms=5000))
    one, two = result.levels
    assert (two.requests, two.failed, two.figures["e2e_ms_p50"].n, two.figures["e2e_ms_p50"].failed) == (4, 1, 3, 1)
    assert two.figures["goodput_percent"].value == 75
    assert two.figures["goodput_req_s"].value == pytest.approx(3 / two.wall_s, rel=0.01)
    assert one.figures["e2e_ms_p50"].value == result.figures["e2e_ms_p50"].value
    assert {name.rpartition("_")[0] for name in one.figures} == {"goodput", "goodput_req", *LATENCIES}
    every: list[Level | OpenLevel] = [*result.levels, *result.open_levels]
    for level in every:
        assert level.figures["ttft_ms_p99"].value is None
        assert level.figures["ttft_ms_p99"].reason == f"n = {level.requests - level.failed}, and p99 takes 299"
        values = [level.figures[f"ttft_ms_p{percent}"].value or 0 for percent in (50, 90, 95)]
        assert values == sorted(values)
        assert level.figures["itl_ms_p50"].low is None, "gaps of one request are not independent"


@pytest.mark.parametrize(
    ("delay_ms_p95", "ceiling", "says"), [(3.0, 1e6, "saw chunks 3 ms late"), (0.1, 1.0, "over half of the 1 that the client can take")]
)
def test_bench_figures_of_a_client_over_its_budget_are_invalid(
    delay_ms_p95: float, ceiling: float, says: str, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(concurrencies: Sequence[int], *_: object) -> tuple[list[Calibration], float]:
        return [calibrated(number, delay_ms_p95 if number == 2 else 0.1) for number in concurrencies], ceiling

    monkeypatch.setattr(benching, "calibrate", slow)
    result = bench(server, workspace)
    touched = {name for name, figure in result.figures.items() if says in figure.invalid}
    assert {"system_tok_s_c2", "goodput_c2", "poisson_e2e_ms_p95", "constant_goodput"} <= touched
    assert all(result.figures[name].valid is None for name in touched)
    assert ("ttft_ms_p95" in touched) == ("system_tok_s_c1" in touched) == (ceiling == 1), "concurrency 1 has its own calibration"
    assert result.figures["answered"].value == 100


@pytest.mark.parametrize(("late_at", "touches"), [(2, False), (1, True)])
def test_bench_figures_of_a_client_that_is_late_while_the_server_computes_are_invalid(
    late_at: int, touches: bool, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Contention(concurrency=each, chunks=9, delay_ms_p50=1, delay_ms_p95=7 if each == late_at else 1) for each in (1, 2)]
    monkeypatch.setattr(benching, "contention", lambda loads: [entry for entry in made if entry.concurrency in loads])
    result = bench(server, workspace)
    assert result.busy == made
    assert bool(result.figures["ttft_ms_p95"].invalid) is touches
    assert bool(result.levels[0].figures["ttft_ms_p50"].invalid) is touches
    assert bool(result.figures["system_tok_s_c2"].invalid) is not touches
    assert bool(result.open_levels[0].figures["e2e_ms_p50"].invalid) is not touches
    assert "while the server computed, the client saw chunks 7 ms late" in result.levels[late_at - 1].invalid
    assert bench(server, workspace, BENCH.model_copy(update={"client_busy_delay_ms": 8})).levels[late_at - 1].invalid == ""


def test_the_client_is_measured_only_while_there_is_load(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.2, inter_token_s=0.05)
    phases = LoadPhases(fake.model, Endpoint(fake.base_url), BENCH, workspace)
    batches: list[Batch] = []

    def load() -> Batch:
        batches.append(phases.busy(2, 0.1))
        return batches[-1]

    (made,) = contention({2: load})
    assert made.concurrency == 2
    assert 0 < made.delay_ms_p50 <= made.delay_ms_p95
    spans_s = (max(one.last_ns for one in batches[0].good) - min(one.sent_ns for one in batches[0].good)) / 1e9
    assert made.chunks <= 2 * (spans_s / 0.005 + 2), "two answers of a chunk every 5 ms"
    fake.script = Script(status=500)
    assert contention({2: load}) == []


def test_the_real_client_is_within_its_budget_against_a_real_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, ceiling = calibrate([1, 3], 1)
    assert [(level.concurrency, level.chunks) for level in levels] == [(1, 4 * 32), (3, 8 * 32)]
    assert all(0 < level.delay_ms_p50 <= level.delay_ms_p95 for level in levels), "a chunk is seen after it was sent"
    assert ceiling > 0
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MeasureError, match="the stub did not start"):
        calibrate([1], 1)


def test_bench_requests_share_no_prefix_and_have_a_fixed_length(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    bench(server, workspace)
    sent = fake.ledger.requests
    assert sent[5:8] == sent[2:5], "the warm arm sends the cold one's requests again"
    assert len({request["cache_salt"] for request in sent}) == len(sent) - 3
    assert len({request["messages"][0]["content"] for request in sent}) == len(sent) - 3
    assert all(request["ignore_eos"] for request in sent)


def test_bench_keeps_failed_requests_in_the_denominator(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(inter_token_s=0.002, by_number={"3": {"status": 500}, "10": {"cut_after": 3}, "15": {"error_after": 2}})
    result = bench(server, workspace)
    answered = result.figures["answered"]
    assert answered.value == pytest.approx(100 * 13 / 16)
    assert answered.n == 3 + 3 + 4 + 3 + 3
    figures = [result.figures[name] for name in ("ttft_ms_p50", "decode_tok_s_p50", "itl_ms_p50", "e2e_ms_p50")]
    assert [(figure.n, figure.failed) for figure in figures] == [(2, 1)] * 4, "so that a gate on them is of survivors"
    assert [(level.requests, level.failed, level.output_tokens) for level in result.levels] == [(3, 1, 16), (4, 1, 24)]
    assert not result.ledger[0].agrees, "the server also generated what the cut-off requests did not deliver"


@pytest.mark.parametrize("script", [Script(status=500), Script(cut_after=1), Script(only_usage=True), Script(error_after=0)])
def test_bench_without_one_success_is_a_failure(script: Script, fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = script
    with pytest.raises(NothingAnsweredError, match="no request succeeded"):
        bench(server, workspace)


def test_bench_record_survives_a_failed_first_request(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(by_number={"0": {"status": 500}})
    result = bench(server, workspace)
    store = Store(workspace.artifacts)
    store.write("bench", {}, now(), 0, result)
    assert store.outcome("bench", benching.BenchResult).data == result


@pytest.mark.parametrize(
    "script",
    [
        Script(texts=("one",), honours_ignore_eos=False),  # one token: there is no time per further token
        Script(tokens_per_chunk=8),  # all tokens at once: no time passes between first and last
    ],
)
def test_bench_of_an_answer_without_duration_is_no_crash_and_no_figure(
    script: Script, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    figure = bench(server, workspace).figures["decode_tok_s_p50"]
    assert figure.value is None
    assert "no request succeeded" not in figure.reason, "all of them did"


PACED = Script(first_token_s=0.01, inter_token_s=0.02)
# 0 the first, 1 warm-up, 2 cold, 3 the same warm, 4 warm-up of 5-6 decode.
LONG = BENCH.model_copy(update={"output_tokens": 64, "ttft_requests": 1, "decode_requests": 2, "open_loop": (), "concurrency": (1,)})


@pytest.mark.parametrize("flush", [4, 16, 32])
def test_a_proxy_that_flushes_chunks_together_makes_no_server_faster(
    flush: int, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = dataclasses.replace(PACED, flush_chunks=flush)
    figures = bench(server, workspace, LONG).figures
    assert (figures["tpot_ms_p50"].value or 0) >= 20
    assert (figures["decode_tok_s_p50"].value or 0) <= 50


def test_hidden_last_tokens_in_chunks_without_text_keep_the_pace(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = dataclasses.replace(PACED, by_number={"5": {"silent_last": 24}, "6": {"silent_last": 24}})
    result = bench(server, workspace, LONG)
    assert (result.figures["tpot_ms_p50"].value or 0) >= 20


LIES = {
    "in no chunk": ({"unsent_last": 24}, "of the first it says 64 tokens, its chunks carried 40"),
    "inflated": ({"usage_says": 128}, "it says 128 tokens, its chunks carried 64"),
    "huge": ({"usage_says": 10**30}, "tokens, its chunks carried 64"),
    "zero": ({"usage_says": 0}, "it says 0 tokens, its chunks carried 64"),
    "too few": ({"usage_says": 32}, "it says 32 tokens, its chunks carried 64"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_usage_that_is_not_what_came_makes_what_rests_on_tokens_invalid(
    lie: str, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    change, says = LIES[lie]
    fake.script = Script(inter_token_s=0.001, metrics=False, by_number={"5": change, "6": change})
    result = bench(server, workspace, LONG)
    touched = {name for name, figure in result.figures.items() if figure.invalid}
    assert {"tpot_ms_p50", "decode_tok_s_p50", "system_tok_s_c1", "goodput_c1", "e2e_ms_p50"} <= touched
    assert says in result.figures["system_tok_s_c1"].invalid
    assert result.contradictory


def test_a_usage_of_no_tokens_beside_text_is_a_contradiction_without_token_ids_too(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = Script(token_ids=False, usage_says=0, metrics=False)
    result = bench(server, workspace)
    assert "its chunks carried text" in result.figures["e2e_ms_p50"].invalid
    assert result.contradictory == BENCH_REQUESTS


def test_a_server_without_token_ids_has_its_tokens_spread_evenly_and_the_record_says_so(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = Script(inter_token_s=0.002, token_ids=False, tokens_per_chunk=2)
    result = bench(server, workspace)
    assert (result.uncounted, result.contradictory) == (BENCH_REQUESTS, 0)
    assert (result.figures["tpot_ms_p50"].value or 0) >= 2, "four chunks of two tokens, 4 ms apart"
    fake.script = Script(inter_token_s=0.002)
    assert bench(server, workspace).uncounted == 0


def test_a_proxy_that_holds_tokens_back_and_lets_them_go_faster_makes_the_pace_invalid(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    held = {str(number): {"first_token_s": 1.0, "inter_token_s": 0.001} for number in (9, 10, 11)}
    fake.script = Script(first_token_s=0.01, inter_token_s=0.02, by_number=held)
    figures = bench(server, workspace).figures
    assert "later than that of an answer of one token" in figures["tpot_ms_p50"].invalid
    assert figures["decode_tok_s_p50"].invalid
    assert figures["goodput_c1"].invalid
    assert not figures["ttft_ms_p50"].invalid


@pytest.mark.parametrize(("change", "tokens"), [({"honours_ignore_eos": False}, 10), ({"tokens_too_many": 1}, 65)])
def test_an_answer_of_another_length_than_was_asked_for_is_no_measurement(
    change: dict[str, Any], tokens: int, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = dataclasses.replace(Script(inter_token_s=0.001), **change)
    result = bench(server, workspace, LONG)
    assert f"an answer has {tokens} tokens" in result.figures["decode_tok_s_p50"].invalid
    assert result.contradictory == 0


def test_an_answer_of_another_length_in_the_search_for_capacity_makes_capacity_invalid(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(loops: Loops, *_: object) -> list[Trial]:
        loops.trial(100, 2, 1)
        trial = Trial(rate_per_s=100, requests=2, goodput_percent=100, overloaded=False, meets=True)
        return [trial, trial.model_copy(update={"confirms": True})]

    monkeypatch.setattr(benching, "find_capacity", found)
    settings = BENCH.model_copy(update={"find_capacity": True})
    assert bench(server, workspace, settings).figures["capacity_req_s"].valid == 100
    fake.script = Script(by_number={str(len(fake.ledger.requests) + BENCH_REQUESTS): {"tokens_too_many": 1}})
    figures = bench(server, workspace, settings).figures
    assert "an answer has 9 tokens" in figures["capacity_req_s"].invalid
    assert not figures["decode_tok_s_p50"].invalid


def test_dropped_requests_are_failures_and_are_not_sent_again(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.01, inter_token_s=0.001, drop_every=4)
    result = bench(server, workspace)
    assert len(fake.ledger.requests) == BENCH_REQUESTS, "each was sent once"
    assert fake.ledger.successes == 3 * BENCH_REQUESTS / 4
    cold, decode = result.figures["ttft_ms_p50"], result.figures["decode_tok_s_p50"]
    assert [(figure.n, figure.failed) for figure in (cold, decode)] == [(2, 1), (2, 1)], "requests 3 and 11 of those counted from 0"
    assert (cold.value or 0) >= 10
    assert result.replaced == 0


@pytest.mark.parametrize("thought_as", ["reasoning", "content"])
def test_the_answer_of_a_model_that_thinks_begins_after_its_reasoning(
    thought_as: str, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = Script(first_token_s=0.01, inter_token_s=0.01, thought="Hm, well.", thought_as=thought_as)
    figures = bench(server, workspace, LONG.model_copy(update={"output_tokens": 16})).figures
    assert (figures["ttfat_ms_p50"].value or 0) >= 10 + 3 * 10
    assert (figures["ttfat_ms_p50"].value or 0) > (figures["ttft_ms_p50"].value or 0)
    fake.script = Script(first_token_s=0.01)
    figures = bench(server, workspace).figures
    assert figures["ttfat_ms_p95"] == figures["ttft_ms_p95"]


def test_figures_of_several_starts_have_the_bounds_of_a_further_one(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script = Script(first_token_s=0.02)
    started: list[str] = []

    def restarted(old: Server, _: Workspace) -> Server:
        started.append(old.handle.launch_id)
        fake.script = Script(first_token_s=0.2, by_number={str(len(fake.ledger.requests) + 14): {"status": 500}})
        return old.model_copy(update={"handle": old.handle.model_copy(update={"launch_id": "second"})})

    monkeypatch.setattr(benching, "restart", restarted)
    result = bench(server, workspace, BENCH.model_copy(update={"starts": 2}))
    ttft = result.figures["ttft_ms_p50"]
    assert (started, result.launch_id, ttft.starts, ttft.n) == (["a-launch"], "second", 2, 6)
    assert ttft.value is not None
    assert ttft.value > 100, "halfway between the two starts"
    answered = result.figures["answered"]
    assert (answered.n, answered.starts) == (2 * 16, 2)
    assert answered.value == pytest.approx(100 * 31 / 32), "both starts' answers count"


def test_an_attached_server_has_one_start(server: Server, workspace: Workspace) -> None:
    attached = server.model_copy(update={"attached": "http://gpu:8000"})
    with pytest.raises(ConfigError, match=r"bench\.starts is 2, and the server at http://gpu:8000 is not ours to start"):
        bench(attached, workspace, BENCH.model_copy(update={"starts": 2}))
