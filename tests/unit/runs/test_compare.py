"""compare: by stamps, cases or bounds, with the noise that fits, and what it refuses."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.client.answer import Answer
from pipeline.engine.record import write_atomic
from pipeline.errors import PipelineError
from pipeline.experiments.noise import FigureNoise, RunNoise
from pipeline.load.stamps import first_ms, per_token_ms, raw_line
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import percentile_figure, share_figure
from pipeline.runs.compare import FigurePair, compare, data, fits, lines, plot
from pipeline.runs.kept import Run
from pipeline.terminal import plain
from tests.builders.documents import document, figure

MS = 1_000_000
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
    figures = settings.pop("figures", {"bench.system_tok_s_c4": figure(100.0, "tok/s")})
    return Run(f"run {number}", document(figures, number=number, **settings), None)


def noise(relative: float, metric: str = "bench.system_tok_s_c4", **facts: Any) -> RunNoise:
    entry = FigureNoise(unit="x", n=3, values=[1.0, 1.0, 1.0], relative_range=relative, variation=relative / 2)
    where = {"device": "A card", "model": "SmolLM2", "vllm": "0.32.0", "simulated": False, **facts}
    return RunNoise(starts=3, figures={metric: entry}, **where)


def row(metric: str, a: Run, b: Run, measured: RunNoise | None = None, anyway: bool = False) -> FigurePair:
    (found,) = [one for one in compare(a, b, measured, anyway).rows if one.metric == metric]
    return found


def test_stamps_of_both_runs_give_a_ratio_with_an_interval(tmp_path: Path) -> None:
    a, b = bench_run(tmp_path / "a", 1, 30), bench_run(tmp_path / "b", 2, 45)
    found = row(TTFT, a, b)
    estimate = found.compared.estimate
    assert found.compared.verdict == "worse"
    assert estimate is not None
    assert estimate.method.startswith("bootstrap; Mann-Whitney p = ")
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1.4 < estimate.low < 1.5 < estimate.high < 1.6
    assert (row(DECODE, a, b).compared.verdict, row(DECODE, a, b).compared.reason) == ("same", "within chance")
    assert compare(a, b, None, anyway=False).exit_code == 1
    assert compare(b, a, None, anyway=False).exit_code == 0
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
    a, b = bare(1), bare(2, figures={"bench.system_tok_s_c4": figure(85.0, "tok/s")})
    assert row("bench.system_tok_s_c4", a, b).compared.verdict == "worse"
    calm = row("bench.system_tok_s_c4", a, b, noise(0.3))
    assert (calm.compared.verdict, calm.noise.measured) == ("same", True)
    small = bare(2, figures={"bench.system_tok_s_c4": figure(95.0, "tok/s")})
    assert row("bench.system_tok_s_c4", a, small).compared.verdict == "same"
    assert row("bench.system_tok_s_c4", a, small, noise(0.01)).compared.verdict == "worse"
    assert row("bench.system_tok_s_c4", a, small, noise(0.01, "bench.other")).noise.measured is False


def test_noise_is_of_one_device_model_and_version() -> None:
    assert fits(noise(0.1), (bare(1), bare(2)))
    for other in ({"device": "Another"}, {"model": "m"}, {"vllm": "0.33"}, {"simulated": True}):
        assert not fits(noise(0.1, **other), (bare(1), bare(2)))
    assert not fits(noise(0.1), (bare(1), bare(2, device="Another")))


@pytest.mark.parametrize("fact", ["device", "model", "vllm"])
def test_other_devices_models_and_versions_are_refused_unless_asked_for_and_then_said(fact: str) -> None:
    a, b = bare(1), bare(2, **{fact: "another"})
    with pytest.raises(PipelineError, match=rf"^run 1 and run 2 differ in {fact} \(.* against another\)$") as caught:
        compare(a, b, None, anyway=False)
    assert caught.value.hint == "compare them all the same with --anyway"
    made = compare(a, b, None, anyway=True)
    assert made.exit_code == 0
    assert any(line.startswith(f"NOT ALIKE: these runs differ in {fact} (") for line in plain(lines(made, None)))


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (figure(1.0), None, "not in B"),
        (None, figure(1.0), "not in A"),
        (figure(None), figure(1.0), "not measured in A: no driver"),
        (figure(1.0, low=1, high=2), figure(1.0, n=16, low=1), "n = 16 in B is too small for bounds"),
        (figure(1.0, low=1, high=2), figure(1.0, "s", low=1, high=2), "other units"),
    ],
)
def test_figures_that_cannot_be_compared_say_why(a: Figure | None, b: Figure | None, reason: str) -> None:
    one, other = ({"bench.x_ms_p95": each} if each else {} for each in (a, b))
    found = row("bench.x_ms_p95", bare(1, figures=one), bare(2, figures=other))
    assert (found.compared.verdict, found.compared.reason) == ("not comparable", reason)
    assert compare(bare(1, figures=one), bare(2, figures=other), None, anyway=False).exit_code == 2


def test_simulated_figures_and_runs_without_any_compare_to_nothing() -> None:
    assert row("bench.system_tok_s_c4", bare(1, simulated=True), bare(2)).compared.reason == "SIMULATED in A"
    assert compare(bare(1, figures={}), bare(2, figures={}), None, anyway=False).exit_code == 2
    control = {"test-determinism.d5_other_seed_identical": share_figure(1, 40)}
    assert compare(bare(1, figures=control), bare(2, figures=control), None, anyway=False).exit_code == 2
    negative = {"measure-vram.residual_mib": figure(-3.0, "MiB")}
    found = row("measure-vram.residual_mib", bare(1, figures=negative), bare(2, figures=negative))
    assert found.compared.reason == "no bounds, or no ratio of these values"


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
    found = row("bench.system_tok_s_c4", a, b).compared
    assert (found.verdict, found.reason) == (("not comparable", reason) if reason else ("same", "within chance"))
    assert row("bench.system_tok_s_c4", a, b, anyway=True).compared.verdict == "same"


@pytest.mark.parametrize(("system", "reason"), [("suite", ""), ("user", "router.system suite against user")])
def test_a_setting_that_an_older_run_did_not_have_is_as_it_was_then(system: str, reason: str) -> None:
    a, b = (bare(number, settings={"router": settings}) for number, settings in ((1, {}), (2, {"system": system})))
    assert row("bench.system_tok_s_c4", a, b).compared.reason == (reason or "within chance")


def test_goodput_under_other_limits_is_another_figure() -> None:
    figures = {"bench.goodput_c4": share_figure(9, 10)}
    a, b = (bare(number, figures=figures, settings={"limits": {"ttft_ms": number}}) for number in (1, 2))
    assert row("bench.goodput_c4", a, b).compared.reason == "other limits"


@pytest.mark.parametrize("measured", [None, noise(0.1)])
def test_the_table_says_what_it_compared_and_where_the_noise_is_from(measured: RunNoise | None) -> None:
    b = bare(2, figures={"bench.system_tok_s_c4": figure(50.0, "tok/s")})
    made = compare(bare(1), b, measured, anyway=False)
    said = plain(lines(made, measured))
    assert said[0].startswith("A: run 1, 2026-01-02 04:05 UTC, SmolLM2 on A card, vLLM 0.32.0, profile cpu: PASS")
    assert said[2].startswith("noise: measured by 3 starts" if measured else "noise: not measured on this device, model and vLLM")
    (shown,) = [line for line in said if line.startswith("bench.system_tok_s_c4")]
    assert " 0.500 " in shown
    assert (" 10 % default " in shown) == (measured is None)
    assert said[-1] == "WORSE: bench.system_tok_s_c4, 100 → 50 tok/s"
    assert said[-2] == "0 better, 1 worse, 0 same, 0 not comparable"
    told = json.loads(json.dumps(data(made, "artifacts/compare.svg")))
    assert told["plot"] == "artifacts/compare.svg"
    assert (told["exit_code"], told["figures"][0]["compared"]["verdict"]) == (1, "worse")


def test_the_plot_has_each_figure_with_a_ratio_and_counts_the_others() -> None:
    a = {"bench.system_tok_s_c4": figure(100.0, "tok/s"), "bench.x_ms_p95": figure(None), "bench.kept_mib": figure(0.0, "MiB")}
    b = {"bench.system_tok_s_c4": figure(80.0, "tok/s"), "bench.x_ms_p95": figure(1.0), "bench.kept_mib": figure(5.0, "MiB")}
    made = compare(bare(1, figures=a), bare(2, figures=b), None, anyway=False)
    assert "0.800 worse" in plot(made)
    assert "without a ratio, so not here: 2" in plot(made)
    assert plot(made) == plot(compare(bare(1, figures=a), bare(2, figures=b), None, anyway=False))
    assert plot(compare(bare(1, figures={}), bare(2, figures={}), None, anyway=False)) == ""


def test_open_loops_are_compared_from_when_requests_were_due(tmp_path: Path) -> None:
    late: Callable[[Answer], float] = lambda answer: (answer.last_ns - answer.scheduled_ns) / MS  # noqa: E731
    runs = []
    for number in (1, 2):
        made = answers(30, 12, number)
        figures = {"bench.poisson_e2e_ms_p50": percentile_figure([late(one) for one in made], 0.5, "ms")}
        text = "\n".join(json.dumps(raw_line("poisson 1.234/s", one, 0)) for one in made)
        write_atomic(tmp_path / str(number) / "raw" / "bench.jsonl.gz", gzip.compress(text.encode()))
        runs.append(Run(str(number), document(figures, number=number), tmp_path / str(number)))
    found = row("bench.poisson_e2e_ms_p50", runs[0], runs[1])
    assert found.compared.estimate is not None
    assert found.compared.estimate.method.startswith("bootstrap")
