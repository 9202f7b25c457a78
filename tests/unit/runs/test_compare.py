"""compare: by stamps, cases or bounds, with the noise that fits, and what it refuses."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.client.answer import Answer
from pipeline.engine.record import Store, now, write_atomic
from pipeline.errors import PipelineError
from pipeline.load.stamps import first_ms, per_token_ms, raw_line
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import percentile_figure, share_figure
from pipeline.report.noise import NOISE_NOTE, FigureNoise, RunNoise
from pipeline.runs.compare import FigurePair, compare, data, lines, noise_that_fits, plot
from pipeline.runs.kept import Run
from pipeline.terminal import plain
from tests.builders.documents import document, figure, gate

MS = 1_000_000
RATE, PEAK = "bench.system_tok_s_c4", "measure-vram.vram_peak_mib"
TTFT, DECODE, VALID, ROUTES = (
    "bench.ttft_ms_p50",
    "bench.decode_tok_s_p50",
    "test-router.constrained_schema_valid",
    "test-router.constrained_route_accuracy",
)


def answers(first_ms: float, token_ms: float, seed: int, count: int = 64) -> list[Answer]:
    """Return answers of eight tokens with some scatter."""
    source, made = random.Random(seed), []
    for number in range(count):
        sent = number * 1000 * MS
        first = sent + int(source.gauss(first_ms, first_ms / 50) * MS)
        step = int(source.gauss(token_ms, token_ms / 50) * MS)
        chunks = [first + step * token for token in range(8)]
        made.append(
            Answer(
                sent_ns=sent,
                scheduled_ns=sent,
                first_byte_ns=first,
                first_ns=first,
                last_ns=chunks[-1],
                chunk_ns=chunks,
                tokens=8,
                prompt_tokens=9,
            )
        )
    return made


def case(number: int, fits: bool, right: bool | None) -> dict[str, Any]:
    line = {"arm": "constrained", "case": f"c{number}", "failure": None if fits else "fence", "error": "", "chunk_ns": [MS, 9 * MS]}
    return line if right is None else {**line, "route_right": right, "all_right": right}


def bench_run(folder: Path, number: int, first_ms_: float, token_ms: float = 12.0, stamps: bool = True) -> Run:
    """Return a run of `bench` with its stamps, if wanted."""
    made = answers(first_ms_, token_ms, number)
    rates = [1000 / value for value in per_token_ms(made)]
    figures = {TTFT: percentile_figure(first_ms(made), 0.5, "ms"), DECODE: percentile_figure(rates, 0.5, "tok/s")}
    if stamps:
        text = [json.dumps(raw_line(phase, one, 0)) for phase in ("TTFT, cold prefix cache c1", "decode c1") for one in made]
        write_atomic(folder / "raw" / "bench.jsonl.gz", gzip.compress("\n".join(text).encode()))
    return Run(f"run {number}", document(figures, number=number), folder)


def router_run(folder: Path, number: int, held: list[tuple[bool, bool | None]]) -> Run:
    """Return a run of `test-router` whose cases (fit the schema, have the right route)."""
    valid, right = sum(fits for fits, _ in held), sum(bool(one) for _, one in held)
    figures = {VALID: share_figure(valid, len(held)), ROUTES: share_figure(right, len(held))}
    text = "\n".join(json.dumps(case(position, *one)) for position, one in enumerate(held))
    write_atomic(folder / "raw" / "test-router.jsonl", text)
    return Run(f"run {number}", document(figures, number=number), folder)


def bare(number: int = 0, **settings: Any) -> Run:
    figures = settings.pop("figures", {RATE: figure(100.0, "tok/s")})
    return Run(f"run {number}", document(figures, number=number, **settings), None)


def noise(relative: float, metric: str = RATE, **facts: Any) -> RunNoise:
    """Return the noise of five starts with that standard deviation, nearly."""
    values = [100.0 * (1 + step * relative / 1.5811) for step in (-2, -1, 0, 1, 2)]
    entry = FigureNoise(unit="x", n=5, values=values, relative_range=4 * relative / 1.5811, variation=relative)
    where = {"device": "A card", "model": "SmolLM2", "vllm": "0.32.0", "simulated": False, **facts}
    return RunNoise(starts=5, figures={metric: entry}, **where)


def row(metric: str, a: Run, b: Run, measured: RunNoise | None = None, anyway: bool = False) -> FigurePair:
    (found,) = [one for one in compare(a, b, measured, anyway).rows if one.metric == metric]
    return found


def code(a: Run, b: Run, *figures: str, measured: RunNoise | None = None) -> int:
    return compare(a, b, measured, anyway=False, figures=figures).exit_code


def test_stamps_of_both_runs_give_a_ratio_with_an_interval(tmp_path: Path) -> None:
    a, b = bench_run(tmp_path / "a", 1, 30), bench_run(tmp_path / "b", 2, 45)
    found = row(TTFT, a, b, noise(0.02, TTFT))
    estimate = found.compared.estimate
    assert found.compared.verdict == "worse"
    assert estimate is not None
    assert estimate.method.startswith("bootstrap; Mann-Whitney p = ")
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1.4 < estimate.low < 1.5 < estimate.high < 1.6
    assert (row(DECODE, a, b).compared.verdict, row(DECODE, a, b).compared.reason) == ("same", "within chance")
    assert code(a, b, TTFT) == 1
    assert code(b, a, TTFT) == 0
    assert row(TTFT, b, a).compared.verdict == "better"


@pytest.mark.parametrize("spoil", ["missing", "broken", "of another run"])
def test_without_the_stamps_of_both_the_bounds_are_taken(tmp_path: Path, spoil: str) -> None:
    a, b = bench_run(tmp_path / "a", 1, 30), bench_run(tmp_path / "b", 2, 45, stamps=spoil != "missing")
    path = tmp_path / "b" / "raw" / "bench.jsonl.gz"
    if spoil == "broken":
        path.write_bytes(path.read_bytes()[:40])
    if spoil == "of another run":
        bench_run(tmp_path / "b", 3, 31)
    found = row(TTFT, a, b)
    assert found.compared.verdict == "worse"
    assert found.compared.estimate is not None
    assert found.compared.estimate.method == "bounds"


def test_shares_are_compared_case_by_case(tmp_path: Path) -> None:
    a = router_run(tmp_path / "a", 1, [(True, number < 30) for number in range(40)])
    b = router_run(tmp_path / "b", 2, [(True, number < 20) for number in range(40)])
    found = row(ROUTES, a, b)
    assert found.compared.verdict == "worse"
    assert found.compared.estimate is not None
    assert found.compared.estimate.method == "McNemar p = 0.002, 40 cases"
    assert row(VALID, a, b).compared.verdict == "same"


def test_cases_that_do_not_say_whether_they_were_right_leave_the_bounds(tmp_path: Path) -> None:
    older = router_run(tmp_path / "a", 1, [(True, None)] * 40)
    found = row(ROUTES, older, router_run(tmp_path / "b", 2, [(True, True)] * 40))
    assert found.compared.estimate is not None
    assert (found.compared.verdict, found.compared.estimate.method) == ("better", "bounds")


def test_a_difference_counts_only_above_the_noise_as_it_was_measured() -> None:
    a, b = bare(1), bare(2, figures={RATE: figure(70.0, "tok/s")})
    assert row(RATE, a, b).compared.verdict == "worse", "0.357 in logarithms, where 0.277 is assumed"
    calm = row(RATE, a, b, noise(0.1))
    assert (calm.compared.verdict, calm.compared.reason) == ("same", "within the noise")
    assert calm.noise is not None
    assert calm.noise.starts == 5
    small = bare(2, figures={RATE: figure(90.0, "tok/s")})
    assert row(RATE, a, small).compared.verdict == "same"
    assert row(RATE, a, small, noise(0.01)).compared.verdict == "worse"
    other = row(RATE, a, small, noise(0.01, "bench.other")).noise
    assert other is not None
    assert other.starts is None


def test_shares_of_answers_have_no_noise_and_times_and_memory_have() -> None:
    named = {VALID: share_figure(40, 40), "bench.goodput_c4": share_figure(40, 40), "measure-vram.vram_peak_mib": figure(3000.0, "MiB")}
    a, b = bare(1, figures=named), bare(2, figures=named)
    assert row(VALID, a, b).noise is None
    assert all(row(metric, a, b).noise is not None for metric in named if metric != VALID)


def test_noise_is_of_one_device_model_and_version() -> None:
    facts = bare().document.environment
    assert noise(0.1).fits(facts)
    for other in ({"device": "Another"}, {"model": "m"}, {"vllm": "0.33"}, {"simulated": True}):
        assert not noise(0.1, **other).fits(facts)


def kept_with(folder: Path, number: int, measured: RunNoise | None, **facts: Any) -> Run:
    """Return a run in a folder that holds this noise."""
    if measured is not None:
        Store(folder / "records").write(NOISE_NOTE, {}, now(), 1, measured)
    return Run(f"run {number}", document({RATE: figure(100.0, "tok/s")}, number=number, **facts), folder)


def test_the_noise_of_a_comes_before_that_of_b_and_both_before_this_machines_own(tmp_path: Path) -> None:
    mine, none, bad = tmp_path / "artifacts", kept_with(tmp_path / "none", 1, None), noise(0.5, device="Another")
    Store(mine).write(NOISE_NOTE, {}, now(), 1, noise(0.3))
    a, b = kept_with(tmp_path / "a", 1, noise(0.1)), kept_with(tmp_path / "b", 2, noise(0.2))
    for first, second, relative, where in (
        (a, b, 0.1, "kept with A"),
        (none, b, 0.2, "kept with B"),
        (bare(), b, 0.2, "kept with B"),
        (kept_with(tmp_path / "c", 3, bad), b, 0.2, "kept with B"),
        (none, bare(), 0.3, "artifacts/noise.json"),
    ):
        assert noise_that_fits(first, second, mine) == (noise(relative), where)
    assert noise_that_fits(none, bare(), tmp_path / "nowhere") == (None, "")
    assert noise_that_fits(a, bare(2, device="Another"), mine) == (None, ""), "it must fit both"


@pytest.mark.parametrize("fact", ["device", "model", "vllm"])
def test_other_devices_models_and_versions_are_refused_unless_asked_for_and_then_said(fact: str) -> None:
    a, b = bare(1), bare(2, **{fact: "another"})
    with pytest.raises(PipelineError, match=rf"^run 1 and run 2 differ in {fact} \(.* against another\)$") as caught:
        compare(a, b, None, anyway=False)
    assert caught.value.hint == "compare them all the same with --anyway"
    made = compare(a, b, None, anyway=True)
    assert made.rows[0].compared.verdict == "same"
    assert any(line.startswith(f"NOT ALIKE: these runs differ in {fact} (") for line in plain(lines(made, None)))


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (figure(1.0), None, "not in B"),
        (None, figure(1.0), "not in A"),
        (figure(None), figure(1.0), "not measured in A: no driver"),
        (figure(1.0, low=1, high=2), figure(1.0, n=16, low=1), "n = 16 in B is too small for bounds"),
        (figure(1.0, low=1, high=2), figure(1.0, "s", low=1, high=2), "other units"),
        (figure(1.0, low=1, high=2), figure(1.0, low=1, high=2).model_copy(update={"invalid": "no"}), "INVALID in B: no"),
    ],
)
def test_figures_that_cannot_be_compared_say_why(a: Figure | None, b: Figure | None, reason: str) -> None:
    metric = "bench.ttft_ms_p95"
    one, other = ({metric: each} if each else {} for each in (a, b))
    found = row(metric, bare(1, figures=one), bare(2, figures=other))
    assert (found.compared.verdict, found.compared.reason) == ("not comparable", reason)
    assert code(bare(1, figures=one), bare(2, figures=other), metric) == 2


def test_simulated_figures_and_runs_without_any_compare_to_nothing() -> None:
    assert row(RATE, bare(1, simulated=True), bare(2)).compared.reason == "SIMULATED in A"
    assert code(bare(1, figures={}), bare(2, figures={})) == 2
    control = {"test-determinism.d5_other_seed_identical": share_figure(1, 40)}
    found = row("test-determinism.d5_other_seed_identical", bare(1, figures=control), bare(2, figures=control)).compared
    assert (found.verdict, found.reason) == ("not comparable", "neither direction is better: it is a control")
    unlisted = {"bench.of_another_version": figure(1.0)}
    found = row("bench.of_another_version", bare(1, figures=unlisted), bare(2, figures=unlisted)).compared
    assert (found.verdict, found.reason) == ("not comparable", "nobody has listed which direction is better")


# Which figures decide.

BOTH = {RATE: figure(100.0, "tok/s"), "bench.system_tok_s_c8": figure(200.0, "tok/s")}
WORSE = {**BOTH, RATE: figure(20.0, "tok/s")}


def test_figures_with_gates_decide_and_the_others_are_shown() -> None:
    gated = (gate("x", metric="bench.system_tok_s_c8"), gate("y", metric="measure-vram.vram_stable"))
    a, b = bare(1, figures=BOTH, gates=gated), bare(2, figures=WORSE, gates=gated)
    made = compare(a, b, None, anyway=False)
    assert [(one.metric, one.decides, one.compared.verdict) for one in made.rows] == [
        (RATE, False, "worse"),
        ("bench.system_tok_s_c8", True, "same"),
    ]
    assert made.exit_code == 0
    assert code(a, b, RATE) == 1
    assert code(a, b, RATE, "bench.system_tok_s_c8") == 1
    assert code(b, a, RATE) == 0
    said = plain(lines(made, None))
    assert said[-2:] == [
        "of the figures that decide: 0 better, 0 worse, 1 same, 0 not comparable",
        "of the others: 0 better, 1 worse, 0 same, 0 not comparable",
    ]


def test_a_run_without_gates_has_nothing_that_decides() -> None:
    assert code(bare(1), bare(2, figures=WORSE)) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bench.system_tok_c4", "neither run has a figure 'bench.system_tok_c4'; did you mean 'bench.system_tok_s_c4'?"),
        ("zzz", "neither run has a figure 'zzz'"),
        ("test-router.majority_baseline", "test-router.majority_baseline cannot decide: neither direction is better: it is the suite's"),
    ],
)
def test_a_figure_that_cannot_decide_is_one_line(name: str, says: str) -> None:
    figures = {**BOTH, "test-router.majority_baseline": share_figure(9, 16)}
    with pytest.raises(PipelineError) as caught:
        compare(bare(1, figures=figures), bare(2, figures=figures), None, anyway=False, figures=[RATE, name])
    assert caught.value.message == says


def test_the_more_figures_decide_the_larger_a_difference_must_be() -> None:
    many = {f"bench.system_tok_s_c{number}": figure(100.0, "tok/s") for number in range(1, 21)}
    a, b = bare(1, figures=many), bare(2, figures={**many, RATE: figure(70.0, "tok/s")})
    assert code(a, b, RATE) == 1
    found = compare(a, b, None, anyway=False, figures=[*many])
    assert found.exit_code == 0
    (one,) = [one for one in found.rows if one.metric == RATE]
    assert one.compared.reason == "within chance, among so many figures"
    assert one.compared.p == pytest.approx(20 * (row(RATE, a, b).compared.p or 0))
    assert code(a, bare(2, figures={**many, RATE: figure(40.0, "tok/s")}), *many) == 1


def test_shares_that_are_whole_in_both_runs_cost_no_power() -> None:
    whole = {f"test-determinism.d{number}_identical": share_figure(40, 40) for number in (2, 3, 4)}
    a, b = bare(1, figures={**BOTH, **whole}), bare(2, figures={**WORSE, **whole})
    p = {one.metric: one.compared.p for one in compare(a, b, None, anyway=False, figures=[RATE, *whole]).rows}
    assert p[RATE] == row(RATE, a, b).compared.p
    partly = {**whole, "test-determinism.d2_identical": share_figure(39, 40)}
    p = {one.metric: one.compared.p for one in compare(a, bare(2, figures={**WORSE, **partly}), None, False, [RATE, *whole]).rows}
    assert p[RATE] == pytest.approx(2 * (row(RATE, a, b).compared.p or 0))


def test_a_run_that_decodes_faster_on_a_card_that_throttles_is_not_worse() -> None:
    metrics = (DECODE, "measure-vram.gpu_throttled", "measure-vram.gpu_power_w", "measure-vram.gpu_utilization")
    gated = (gate("x", metric=DECODE),)

    def run(number: int, decode: float, throttled: float, power: float, used: float) -> Run:
        values = (
            figure(decode, "tok/s", low=0.97 * decode, high=1.03 * decode),
            figure(throttled, "%", 600),
            figure(power, "W"),
            figure(used, "%"),
        )
        return bare(number, figures=dict(zip(metrics, values, strict=True)), gates=gated)

    a, b = run(1, 250.0, 2.0, 300.0, 40.0), run(2, 440.0, 60.0, 690.0, 97.0)
    made = compare(a, b, None, anyway=False)
    assert [one.compared.verdict for one in made.rows] == ["better", "worse", "not comparable", "not comparable"]
    assert (made.exit_code, code(b, a)) == (0, 1)
    assert code(a, b, "measure-vram.gpu_throttled") == 1, "where it was chosen to decide"


# What was offered.


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"bench": {"output_tokens": 64}}, "bench.output_tokens 128 against 64"),
        ({"router file suites/x": "changed"}, "suites/x has changed"),
        ({"bench": {"output_tokens": 128, "decode_requests": 9}}, ""),
        ({"limits": {"ttft_ms": 100}}, ""),
    ],
)
def test_settings_that_change_what_is_measured_part_the_figures(other: dict[str, Any], reason: str) -> None:
    settings: dict[str, Any] = {
        "bench": {"output_tokens": 128, "decode_requests": 3},
        "router file suites/x": "a",
        "limits": {"ttft_ms": 9},
    }
    a, b = bare(1, settings=settings), bare(2, settings={**settings, **other})
    found = row(RATE, a, b).compared
    assert (found.verdict, found.reason) == (("not comparable", reason) if reason else ("same", "within chance"))
    assert row(RATE, a, b, anyway=True).compared.verdict == "same"


def test_goodput_under_other_limits_is_another_figure() -> None:
    figures = {"bench.goodput_c4": share_figure(9, 10)}
    a, b = (bare(number, figures=figures, settings={"limits": {"ttft_ms": number}}) for number in (1, 2))
    assert row("bench.goodput_c4", a, b).compared.reason == "other limits"


@pytest.mark.parametrize(
    ("metric", "setting", "values"),
    [
        ("test-determinism.tarr", "determinism.runs", (10, 20)),
        ("test-determinism.identical", "determinism.count", (20, 40)),
        ("test-determinism.d3_identical", "determinism.load", ([4], [4, 8])),
        ("test-router.constrained_latency_ms_p50", "router.cases", (24, 120)),
        ("measure-vram.vram_peak_mib", "vram.load_s", (20.0, 300.0)),
        ("measure-vram.host_rss_range_mib", "vram.concurrency", (4, 8)),
        ("bench.answered", "bench.concurrency", ([1, 4], [1, 8])),
    ],
)
def test_figures_of_another_load_are_not_compared(metric: str, setting: str, values: tuple[Any, Any]) -> None:
    stage, (section, _, name) = metric.partition(".")[0], setting.partition(".")
    runs = []
    for number, value in enumerate(values):
        made = document({metric: figure(50.0, low=40, high=60)}, number=number)
        stages = [made.stages[0].model_copy(update={"stage": stage, "settings": {section: {name: value, "timeout_s": number}}})]
        runs.append(Run(f"run {number}", made.model_copy(update={"stages": stages}), None))
    assert row(metric, runs[0], runs[1]).compared.reason == f"{setting} {values[0]} against {values[1]}"
    assert row(metric, runs[0], runs[0]).compared.verdict == "same"


@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        ((1.25, 1.3), ""),
        ((1.25, 1.5), "offered 1.25 against 1.5 requests/s"),
        ((1.5, 1.25), "offered 1.5 against 1.25 requests/s"),
        ((1.25, None), "the rate that was offered is not on record"),
    ],
)
def test_open_loops_are_compared_only_at_the_same_rate(rates: tuple[float, float | None], reason: str) -> None:
    metric = "bench.poisson_e2e_ms_p50"
    runs = []
    for number, rate in enumerate(rates):
        offered = {"bench.poisson_rate_req_s": figure(rate, "requests/s")} if rate else {}
        runs.append(bare(number, figures={metric: figure(50.0, low=40, high=60), RATE: figure(100.0, "tok/s"), **offered}))
    a, b = runs
    assert row(metric, a, b).compared.reason == (reason or "within chance")
    assert row(metric, a, b, anyway=True).compared.verdict == "same"
    assert row(RATE, a, b).compared.verdict == "same", "a closed loop offers what the server takes"


def test_a_run_that_does_not_tell_its_settings_is_compared_and_that_is_said() -> None:
    told, silent = bare(1, settings={"bench": {"output_tokens": 128}, "limits": {}}), bare(2)
    note = "not on record in both: the settings of bench, taken to be alike"
    for a, b, said in ((told, silent, True), (silent, told, True), (told, told, False)):
        made = compare(a, b, None, anyway=False)
        assert made.rows[0].compared.verdict == "same"
        assert (note in plain(lines(made, None))) == said


@pytest.mark.parametrize("measured", [None, noise(0.02)])
def test_the_table_says_what_it_compared_and_where_the_noise_is_from(measured: RunNoise | None) -> None:
    b = bare(2, figures={RATE: figure(50.0, "tok/s")})
    made = compare(bare(1), b, measured, anyway=False, figures=[RATE])
    said = plain(lines(made, measured, "kept with A"))
    assert said[0].startswith("A: run 1, 2026-01-02 04:05 UTC, SmolLM2 on A card, vLLM 0.32.0, profile cpu: PASS")
    told_noise = "noise: of 5 starts (kept with A)" if measured else "noise: assumed, for nobody measured it on this device, model and vLLM"
    assert sum(line.startswith(told_noise) for line in said) == 1
    (shown,) = [line for line in said if line.startswith(f"{RATE}  yes ")]
    assert " 0.500 " in shown
    assert (" 32 % assumed " if measured is None else " 8.2 % ") in shown
    assert said[-1] == "WORSE: bench.system_tok_s_c4, 100 → 50 tok/s"
    assert said[-3] == "of the figures that decide: 0 better, 1 worse, 0 same, 0 not comparable"
    told = json.loads(json.dumps(data(made, "artifacts/compare.svg")))
    assert told["plot"] == "artifacts/compare.svg"
    (shown_row,) = told["figures"]
    assert (told["exit_code"], shown_row["decides"], shown_row["compared"]["verdict"]) == (1, True, "worse")


def test_the_plot_has_each_figure_with_a_ratio_and_counts_the_others() -> None:
    a = {"bench.system_tok_s_c4": figure(100.0, "tok/s"), "bench.ttft_ms_p95": figure(None), PEAK: figure(0.0, "MiB")}
    b = {"bench.system_tok_s_c4": figure(60.0, "tok/s"), "bench.ttft_ms_p95": figure(1.0), PEAK: figure(5.0, "MiB")}
    made = compare(bare(1, figures=a), bare(2, figures=b), None, anyway=False)
    assert "0.600 worse" in plot(made)
    assert "without a ratio, so not here: 2" in plot(made)
    assert plot(made) == plot(compare(bare(1, figures=a), bare(2, figures=b), None, anyway=False))
    assert plot(compare(bare(1, figures={}), bare(2, figures={}), None, anyway=False)) == ""


def test_open_loops_are_compared_from_when_requests_were_due(tmp_path: Path) -> None:
    late: Callable[[Answer], float] = lambda answer: (answer.last_ns - answer.scheduled_ns) / MS  # noqa: E731
    runs = []
    for number in (1, 2):
        made = answers(30, 12, number)
        figures = {
            "bench.poisson_e2e_ms_p50": percentile_figure([late(one) for one in made], 0.5, "ms"),
            "bench.poisson_rate_req_s": figure(1.234, "requests/s"),
        }
        text = "\n".join(json.dumps(raw_line("poisson 1.234/s", one, 0)) for one in made)
        write_atomic(tmp_path / str(number) / "raw" / "bench.jsonl.gz", gzip.compress(text.encode()))
        runs.append(Run(str(number), document(figures, number=number), tmp_path / str(number)))
    found = row("bench.poisson_e2e_ms_p50", runs[0], runs[1])
    assert found.compared.estimate is not None
    assert found.compared.estimate.method.startswith("bootstrap")
