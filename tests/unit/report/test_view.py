"""The report: what it shows of good, failed and missing records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config.schema import ReportConfig, Waiver
from pipeline.contexts import ActiveWaivers, Invocation
from pipeline.engine.record import SWEEP_NOTE, Artifact, Failure
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, NothingAnsweredError
from pipeline.measure.digits import number
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.memory import Gaps
from pipeline.message import Code
from pipeline.report.cells import glued, measured
from pipeline.report.formats.document import read_document
from pipeline.report.formats.markdown import MARKS, TableCells
from pipeline.report.gates import Judged, judge_all
from pipeline.report.headline import headline
from pipeline.report.inputs import Inputs
from pipeline.report.sections.alternatives import alternatives
from pipeline.report.sections.environment import shell_command
from pipeline.report.stage import report_present
from pipeline.report.sweep import CellRecord
from pipeline.report.view import gate_row
from pipeline.server.state import Handle
from pipeline.stages.bench import Count, MeanCheck
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import REMEDY_NOTE, Arm
from pipeline.terminal import Silent
from pipeline.vllm.breakdown import Breakdown
from pipeline.vllm.ladder import Attempt
from tests.builders.house import ALTERNATIVES, GATES, House, outcomes_of
from tests.builders.machines import machine
from tests.builders.records import (
    PLAN,
    STAGES,
    all_good,
    bench_result,
    closing,
    determinism,
    figure,
    memory_use,
    model,
    outcome,
    proof,
    router_result,
    server,
    write_samples,
)
from tests.builders.sweeps import cell, failed, skipped, sweep

ROOT = Path(__file__).resolve().parents[3]
RANDOM_WEIGHTS = "This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    return House(tmp_path, all_good(), server())


@pytest.mark.parametrize("now", [None, Failure(kind="server", message="it did not start"), "other"])
def test_figures_of_another_server_pass_for_nothing(house: House, now: Any) -> None:
    house.results["serve"] = server().model_copy(update={"model": "another"}) if now == "other" else now
    assert "was measured on another server than the one on record" in house.text()
    assert {gate.verdict for gate in house.report().gates} == {"NOT_MEASURED"}
    assert house.report().exit_code == 2


def line(text: str, start: str) -> str:
    """Return the one line that begins with `start`."""
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0, "0"),
        (1, "1"),
        (0.5, "0.5"),
        (55.449, "55.4"),
        (99.96, "100"),
        (100, "100"),
        (1234.6, "1235"),
        (1e6, "1000000"),
        (0.00123, "0.00123"),
        (-55.449, "-55.4"),
        (-1234.6, "-1235"),
    ],
)
def test_number_has_three_significant_digits_and_is_whole_from_100(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(1e-9, 1e9))
@example(1.234e-5)
def test_number_is_never_in_powers_of_ten_and_close(value: float) -> None:
    assert "e" not in number(value)
    assert float(number(value)) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (figure(40, "ms"), "**40 ms** (n = 100)"),
        (figure(40, "ms", high=45), "**40 ms** (n = 100; 95 %: ≤ 45)"),
        (figure(40, "ms", low=35), "**40 ms** (n = 100; 95 %: ≥ 35)"),
        (figure(40, "ms", 64, 35, 45), "**40 ms** (n = 64; 95 %: 35 to 45)"),
        (figure(0, "%"), "**0 %** (n = 100)"),
        (not_measured("ms", "why"), "NOT_MEASURED"),
        (None, "NOT_MEASURED"),
    ],
)
def test_measured_words(made: Figure | None, words: str) -> None:
    assert TableCells().figure(measured(made)) == words


@dataclass(frozen=True)
class Row:
    """A gate's row as REPORT.md shows it."""

    label: str
    target: str
    measured: str
    verdict: str
    source: str


def row_of(gate: str, result: Artifact | Failure | None) -> Row:
    stage = GATES[gate].metric.partition(".")[0]
    (judged,) = judge_all({gate: GATES[gate]}, outcomes_of({stage: outcome(stage, result)}))
    row, cells = gate_row(judged), TableCells()
    return Row(cells.cell(row.label), *(cells.figure(cell) for cell in (row.target, row.measured, row.ruling, row.source)))


def test_gate_row_shows_target_value_verdict_and_source() -> None:
    row = row_of("ttft", bench_result())
    assert (row.label, row.target, row.measured) == ("First token", "< 500 ms (p95)", "**40 ms** (n = 100; 95 %: ≤ 45)")
    assert row.verdict == MARKS["PASS"]
    assert row.source == "`artifacts/bench.json` → `ttft_ms_p95`"


def test_gate_row_of_a_failing_gate_says_why() -> None:
    row = row_of("ttft", bench_result(ttft=figure(600, "ms", high=700)))
    assert row.verdict == f"{MARKS['FAIL']}: 600 is not < 500"


def test_gate_row_of_a_failed_stage_is_not_measured_with_its_message() -> None:
    row = row_of("ttft", Failure(kind="server", message="the server died"))
    assert (row.measured, row.verdict) == ("NOT_MEASURED", f"{MARKS['NOT_MEASURED']}: the server died")


def test_gate_row_of_a_stage_that_never_ran_says_so() -> None:
    assert row_of("ttft", None).verdict == f"{MARKS['NOT_MEASURED']}: bench never ran"


def test_gate_row_of_a_figure_that_the_stage_lacks_says_so() -> None:
    assert row_of("ttft", bench_result().model_copy(update={"figures": {}})).verdict.endswith("bench has no figure ttft_ms_p95")


def test_gate_row_of_a_simulated_server_is_no_pass() -> None:
    assert row_of("ttft", bench_result(simulated=True)).verdict.startswith(MARKS["SIMULATED"])


def test_gate_that_is_not_required_says_so() -> None:
    assert "not required" in row_of("vram", memory_use()).verdict


def test_headline_of_a_pass_counts_the_required_gates(house: House) -> None:
    made = house.report()
    assert (made.headline, made.exit_code) == ("PASS: all 2 required gates pass.", 0)


def test_headline_names_each_open_gate_with_its_verdict(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    made = house.report()
    assert made.exit_code == 1
    assert made.headline == "NOT PASSED: 1 of 2 required gates pass. Open: First token (FAIL)."


def test_headline_of_a_failed_stage_names_the_cause(house: House) -> None:
    house.results["bench"] = Failure(kind="server", message="the server died")
    made = house.report()
    assert made.exit_code == 2
    assert made.headline.startswith("NOT MEASURED: 1 of 2")
    assert "bench failed: the server died" in made.headline


def test_gate_that_is_not_required_does_not_open_the_headline(house: House) -> None:
    house.results["measure-vram"] = None
    assert house.report().exit_code == 0


@pytest.mark.parametrize(("code", "word"), [(1, "NOT PASSED"), (2, "NOT MEASURED")])
def test_headline_without_gates_still_says_its_code(code: int, word: str) -> None:
    assert headline(Judged([], code, outcomes_of({}))).startswith(word)


WAIVER = {"ttft": Waiver(reason="the new | card comes in May", expires=date(2027, 1, 1))}


def test_waived_gate_keeps_its_verdict_and_does_not_count(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    house.waivers = ActiveWaivers(in_force=WAIVER)
    made = house.report()
    assert (made.headline, made.exit_code) == ("PASS: 1 of 2 required gates pass, 1 is waived.", 0)
    gate = made.gates[0]
    assert (gate.verdict, gate.waiver) == ("FAIL", "waived until 2027-01-01: the new | card comes in May")
    row = line(house.text(), "| First token[^ttft][^send] |")
    assert "FAIL (waived until 2027-01-01: the new \\| card comes in May): 600 is not < 500" in row


def test_expired_waiver_counts_no_more_and_is_told(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    house.waivers = ActiveWaivers(expired=WAIVER)
    made = house.report()
    assert (made.headline, made.exit_code) == ("NOT PASSED: 1 of 2 required gates pass. Open: First token (FAIL).", 1)
    assert "FAIL (waiver expired on 2027-01-01: the new \\| card comes in May): 600 is not < 500" in house.text()


def test_waivers_leave_the_other_open_gates_in_the_headline(house: House) -> None:
    house.results["bench"], house.results["test-router"] = None, None
    house.waivers = ActiveWaivers(in_force=WAIVER)
    made = house.report()
    assert made.exit_code == 2
    assert made.headline == "NOT MEASURED: 0 of 2 required gates pass, 1 is waived. Open: JSON | parses (NOT_MEASURED)."


def test_a_run_in_which_every_required_gate_is_waived_is_no_pass(house: House) -> None:
    house.results["bench"], house.results["test-router"] = None, None
    house.waivers = ActiveWaivers(in_force={**WAIVER, "json": WAIVER["ttft"]})
    made = house.report()
    assert made.exit_code == 2
    assert made.headline.startswith("NOT MEASURED: 0 of 2 required gates pass, 2 are waived. Open: First token (NOT_MEASURED), JSON")


def test_nothing_answered_is_a_failure_with_its_cause(house: House) -> None:
    house.results["bench"] = Failure(kind=NothingAnsweredError.kind, message="bench: no request succeeded: HTTP 500")
    made = house.report()
    assert (made.gates[0].verdict, made.exit_code) == ("FAIL", 2)
    row = line(house.text(), "| First token[^ttft][^send] |")
    assert "| NOT_MEASURED | ❌ FAIL: bench: no request succeeded: HTTP 500 |" in row


def test_report_with_everything_has_no_gaps_but_the_unmeasured(house: House) -> None:
    text = house.text()
    assert "TBD" not in text
    assert "None" not in text
    assert "never ran" not in text
    assert "> [!TIP]" in text
    assert line(text, "- VRAM: ") == "- VRAM: no driver"


def test_report_with_nothing_says_so_everywhere(house: House) -> None:
    house.results = {}
    text = house.text()
    assert "TBD" not in text
    assert "None" not in text
    assert "> [!WARNING]" in text
    assert text.count("NOT_MEASURED: this stage never ran") == 4
    for stage in STAGES[:-1]:
        assert line(text, f"| {stage} |").split("|")[2].strip() == "never ran"


def test_every_stage_that_failed_is_shown_with_cause_fix_and_log(house: House) -> None:
    for stage in STAGES[:-1]:
        house.results = all_good() | {stage: Failure(kind="k", message="it broke", hint="mend it", log="a.log", log_tail=["last words"])}
        text = house.text()
        assert f"**{stage}**: it broke\n→ mend it" in text
        assert "last words" in text
        assert line(text, f"| {stage} |").split("|")[2].strip() == "failed: it broke"


def test_blocked_stages_do_not_crowd_out_the_cause(house: House) -> None:
    blocked = Failure(kind="blocked", message="needs serve, which failed")
    house.results = {**all_good(), "serve": Failure(kind="server", message="it broke"), "bench": blocked, "test-router": blocked}
    text = house.text()
    assert "**serve**: it broke" in text
    assert "**bench**" not in text
    assert line(text, "| bench |").split("|")[2].strip() == "failed: needs serve, which failed"


def test_fence_inside_a_log_does_not_end_the_reports_fence(house: House) -> None:
    house.results["serve"] = Failure(kind="server", message="m", log="a.log", log_tail=["```", "# not a heading", "```"])
    text = house.text()
    start = text.index("<details><summary>end of a.log")
    block = text[start : text.index("</details>", start)]
    fence = next(each for each in block.splitlines() if each.strip("`") == "" and each.startswith("```"))
    assert block.splitlines().count(fence) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("a\\|b", "a\\\\\\|b"),
        ("<details>", "&lt;details>"),
        ("</td>", "&lt;/td>"),
        (5, "5"),
        ("< 500", "< 500"),
        (Code("a|<b>"), "`a\\|<b>`"),
        (glued("`x` ", Code("y")), "\\`x\\` `y`"),
        (glued("<", "b>"), "&lt;b>"),
    ],
)
def test_cell_keeps_its_content_in_the_cell(value: str | int, shown: str) -> None:
    assert TableCells().cell(value) == shown


@given(st.text())
@example("a\rb")
@example("a\\|b")
def test_cell_is_one_line_without_an_open_pipe(text: str) -> None:
    shown = TableCells().cell(text)
    assert not set(shown) & {"\n", "\r"}  # both end a line in CommonMark
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")


def test_pipes_and_newlines_of_answers_stay_in_their_row(house: House) -> None:
    house.results["test-router"] = router_result('{"route": "calendar|smalltalk"}\n| x |\n<script>')
    row = line(house.text(), "| en-001 |")
    assert row.replace("\\|", "").count("|") == 5
    assert "calendar\\|smalltalk" in row
    assert row.endswith('| `{"route": "calendar\\|smalltalk"} \\| x \\| <script>` |'), "code is shown as it is"


def test_pipe_of_a_gates_label_stays_in_its_cell(house: House) -> None:
    assert line(house.text(), "| JSON").startswith("| JSON \\| parses[^valid] |")


def measured_of(at: int, results: Mapping[str, Artifact | Failure | None] | None = None, *cells: CellRecord) -> str:
    """Return what the row of one of the guide's models says was measured."""
    made = all_good() | dict(results or {}) | ({SWEEP_NOTE: sweep(*cells)} if cells else {})
    judged = Judged([], 0, outcomes_of({name: outcome(name, result) for name, result in made.items()}))
    inputs = Inputs(ReportConfig(), ALTERNATIVES, Invocation(profile="cpu"), judged, ROOT)
    row = alternatives(inputs)[at]
    known = ALTERNATIVES[at]
    assert (row.model, row.size, row.vram, row.use_case) == (known.model, known.size, known.vram, known.use_case)
    return TableCells().figure(row.measured)


def test_alternative_of_this_profile_shows_what_was_measured() -> None:
    assert measured_of(0) == "NOT_MEASURED, **55 tok/s** (n = 100; 95 %: ≥ 52)"


def test_alternative_of_another_profile_says_how_to_measure_it() -> None:
    assert measured_of(1) == "not measured in this run; `./inv all --profile large`"


def test_alternative_without_profile_is_not_measured() -> None:
    assert measured_of(2) == "not measured in this run"


def test_alternative_of_this_profile_without_records_is_not_measured() -> None:
    assert measured_of(0, {"bench": None, "measure-vram": None}) == "NOT_MEASURED"


def test_alternative_of_another_profile_points_to_the_cells_of_it_in_the_sweep() -> None:
    cells = [one.model_copy(update={"profile": "large"}) for one in (cell("a"), failed("b"))]
    assert measured_of(1, {}, *cells, skipped("c")) == "not measured in this run; in the sweep below: 1 measured, 1 failed"
    assert measured_of(1, {}, skipped("c")) == "not measured in this run; `./inv all --profile large`"


def test_failed_requests_and_unequal_ledger_are_told(house: House) -> None:
    assert "- 2 requests under load failed." in house.text()
    assert "did not count the same" not in house.text()
    house.results["bench"] = bench_result().model_copy(update={"ledger": [Count(name="output tokens", client=10, server=9)]})
    assert "NOT EQUAL" in house.text()
    assert "**Client and server did not count the same (output tokens 10 and 9)" in house.text().split("## ")[0]


@pytest.mark.parametrize(
    ("load", "says"),
    [
        ({}, "90 samples from before the start; 15 s of load, 40 requests."),
        (
            {"seconds_by": {"test-router": 5.0, "bench": 10.0}, "requests": 0},
            "90 samples from before the start; 15 s of load count: test-router 5 s, bench 10 s; none was added.",
        ),
        (
            {"seconds_by": {"bench": 10.0, "measure-vram": 5.0}, "failed": 2, "error": "x"},
            "15 s of load count: bench 10 s; 5 s were added, 40 requests, of which 2 failed (x).",
        ),
        ({"seconds_by": {"measure-vram": 15.0}}, "15 s of load count; 15 s were added, 40 requests."),
    ],
)
def test_whose_load_the_memory_was_under_is_told(load: dict[str, Any], says: str, house: House) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(update={"load": use.load.model_copy(update=load)})
    assert says in house.text()


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        ([], "- No kernel compiled while measuring.\n"),
        (["_a"], "- 1 kernel compiled while measuring (`_a`): the first requests that needed them were slower.\n"),
        (["_a", "_b"], "- 2 kernels compiled while measuring (`_a`, `_b`): the first requests that needed them were slower.\n"),
    ],
)
def test_kernels_that_compiled_in_mid_run_are_told(kernels: list[str], says: str, house: House) -> None:
    assert "compiled while measuring" not in house.text(), "nobody watched for them"
    house.results["measure-vram"] = memory_use().model_copy(update={"compiled_kernels": kernels})
    assert says in house.text()
    house.results["measure-vram"] = memory_use().model_copy(update={"compiled_kernels": kernels, "launch_id": "L2"})
    assert "compiled while measuring" not in house.text(), "of another launch"


def test_a_memory_record_from_before_other_tests_load_counted_is_read() -> None:
    old = memory_use().model_dump(mode="json")
    del old["compiled_kernels"], old["load"]["seconds_by"]
    assert MemoryUse.model_validate(old) == memory_use()
    handle = server().handle.model_dump(mode="json")
    del handle["log_start"], handle["earlier"]
    assert Handle.model_validate(handle) == server().handle


def test_close_of_another_launch_is_not_taken_for_this_one(house: House) -> None:
    assert "ended when asked, port free" in house.text()
    assert "VRAM residual" not in house.text(), "the driver told none"
    house.results["stop"] = closing().model_copy(update={"gpu_used_before_mib": [100.0, 0.0], "gpu_used_after_mib": [112.0, 5.0]})
    assert "VRAM residual: 17 MiB above the baseline." in house.text()
    others: dict[str, Any] = {"gpu_used_before_mib": [42000.0], "gpu_used_after_mib": [185.0], "gpu_others_mib": [185.0]}
    house.results["stop"] = closing().model_copy(update=others)
    assert "VRAM residual: NOT_MEASURED, other programs freed 41815 MiB meanwhile." in house.text()
    house.results["stop"] = closing().model_copy(update={"gpu_used_before_mib": [100.0], "gpu_used_after_mib": [600.0]})
    told = "VRAM residual: 500 MiB above the baseline (of the server or of other programs: the driver does not tell)."
    assert told in house.text()
    house.results["stop"] = closing().model_copy(update={"launch_id": "L0"})
    text = house.text()
    assert "After stop: NOT_MEASURED" in text
    assert "ended when asked" not in text


def test_shell_command_has_one_option_a_line_and_is_quoted() -> None:
    command = shell_command({"A": "b c"}, ["python", "-m", "vllm", "--model", "m", "--flag", "--json", '{"a": 1}'])
    assert command.split(" \\\n  ") == ["A='b c'", "python -m vllm", "--model m", "--flag", "--json '{\"a\": 1}'"]


def test_report_is_present_while_its_file_is(house: House) -> None:
    made = house.report()
    workspace = Workspace(house.root, Silent())
    assert report_present(made, workspace)
    (house.root / made.path).unlink()
    assert not report_present(made, workspace)


def test_arms_show_their_evidence_divergence_or_reason(house: House) -> None:
    text = house.text()
    assert "- D1, 1 of 1 prompts: all 10 answers identical, 64 tokens.\n" in text
    assert "- D2, prefix cache cold, then warm: NOT_MEASURED, no hit was seen.\n" in text
    parted = "first difference at token 9 (logprob gap of the two best there 0.0123)"
    assert f"- D3, amid 4 others: 13 of 14 equal the sequential answer, {parted} (5 ran at once).\n" in text
    assert "Without `VLLM_BATCH_INVARIANT=1`" in text


def test_client_and_server_stand_side_by_side(house: House) -> None:
    text = house.text()
    assert "Ledger, output tokens: 10 by the client, 10 by the server's counter, equal." in text
    assert "Ledger, prompt tokens: 20 by the client, not available by the server's counter." in text
    assert "Tokens from the prefix cache by the server's own counter: cold 0, warm not available." in text
    assert "Mean TTFT: 42.5 ms by the client, 41.25 ms by the server's metrics (within 7 ms)." in text
    for server_ms, words in ((None, "not available by the server's metrics."), (30, "30 ms by the server's metrics (OUTSIDE 7 ms).")):
        check = MeanCheck(name="TTFT", requests=64, client_ms=42.5, server_ms=server_ms, tolerance_ms=7)
        house.results["bench"] = bench_result().model_copy(update={"means": [check]})
        assert words in house.text()


def test_load_and_the_client_there_are_tables(house: House) -> None:
    text = house.text()
    assert "| 4 | 16 (4) | 2 | 110 | 121 | 0.08, 0.21 ms | 41 µs | 3.1 % of a core, 2 processes |" in text
    data = bench_result()
    level, own = data.levels[0], data.calibrations[0]
    changed = {"levels": [level.model_copy(update={"clock_ms": 0.4})], "calibrations": [own.model_copy(update={"nodes": 3})]}
    house.results["bench"] = data.model_copy(update=changed)
    assert "3.1 % of a core, 2 clients on 3 nodes, times between them within 0.4 ms |" in house.text()
    assert "| poisson | 1.25 | 16 | 0 | 5 | 0.4, 1.1 ms | yes |" in text
    assert "| 2.5 | 75 % | NO | NO |" in text
    assert "TTFT < 500 ms, TPOT < 20 ms (the gates' limits)" in text
    assert "OVER-SATURATED" not in text


def test_a_client_over_budget_and_a_server_that_falls_behind_are_told(house: House) -> None:
    made = bench_result()
    levels = [made.levels[0].model_copy(update={"invalid": "the client was late"})]
    opened = [made.open_levels[0].model_copy(update={"overloaded": True})]
    house.results["bench"] = made.model_copy(update={"levels": levels, "open_levels": opened, "trials": []})
    text = house.text()
    assert "- INVALID at concurrency 4: the client was late." in text
    assert "- OVER-SATURATED at 1.25 requests/s (poisson): latency kept rising." in text
    assert "Search for capacity" not in text


def test_routes_are_shown_as_confusion_and_case_by_case(house: House) -> None:
    text = house.text()
    assert "| Golden | calendar | unknown |" in text
    assert "| calendar | 5 | 1 |" in text
    assert "| unknown | 10 | 0 |" in text
    assert "only prompt-only 0, only constrained 5, neither 11; McNemar's exact p of the difference 0.062." in text


def test_plan_stands_beside_what_was_measured(house: House) -> None:
    use = memory_use()
    told = Breakdown(weights_mib=2000, kv_cache_mib=1800, kv_tokens=50000)
    figures = {**use.figures, "vram_peak_mib": figure(4500, "MiB")}
    house.results["measure-vram"] = use.model_copy(update={"figures": figures, "breakdown": told})
    house.results["serve"] = server().model_copy(update={"plan": PLAN})
    house.measured_on = house.results["serve"]
    text = house.text()
    assert "Peak: 4550 MiB planned, 4500 measured (+1.1 %)." in text
    assert "weights 1900 MiB (log: 2000), activations 200 MiB (not in the log)" in text
    assert "KV cache: 50000 tokens by the log, 45000 planned (-10.0 %)." in text


def test_of_several_devices_the_largest_stands_beside_the_plan(house: House) -> None:
    use = memory_use()
    figures = {**use.figures, "vram_peak_mib": figure(8500, "MiB")}
    house.results["measure-vram"] = use.model_copy(update={"figures": figures, "device_peaks_mib": {0: 4000.0, 2: 4500.0}})
    house.results["serve"] = server().model_copy(update={"plan": PLAN})
    house.measured_on = house.results["serve"]
    text = house.text()
    assert "VRAM, peak of each device: GPU 0 4000 MiB, GPU 2 4500 MiB." in text
    assert "Peak: 4550 MiB planned, 4500 measured (+1.1 %)." in text


THROTTLED = {"gpu_throttled": figure(43, "%", 200), "gpu_temperature_c": figure(91, "°C", 200)}


def test_a_throttled_gpu_is_told_above_every_figure(house: House) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(
        update={"figures": {**use.figures, **THROTTLED}, "throttled": {"sw_thermal_slowdown": 86}}
    )
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert (
        "**The GPU was throttled in 43 % of 200 samples under load (sw_thermal_slowdown in 86): better cooled or fed it is faster.**"
        in head
    )
    assert line(text, "| GPU temperature, median under load |").split("|")[2].strip() == "**91 °C** (n = 200)"


@pytest.mark.parametrize("share", [None, figure(4.9, "%", 200), not_measured("%", "the driver does not tell")])
def test_a_moment_of_throttling_is_no_caution(house: House, share: Figure | None) -> None:
    use = memory_use()
    house.results["measure-vram"] = use.model_copy(update={"figures": {**use.figures, **({"gpu_throttled": share} if share else {})}})
    assert "**The GPU was throttled" not in house.text()


def test_gaps_errors_failed_requests_and_what_speaks_against_stability_are_told(house: House) -> None:
    use = memory_use()
    unstable = Figure(value=0, unit="%", n=300, reason="rises by at least 36 MiB/h")
    house.results["measure-vram"] = use.model_copy(
        update={
            "figures": {**use.figures, "vram_stable": unstable},
            "gaps": Gaps(count=2, longest_s=3.25, total_s=5),
            "gpu_errors": {"GpuIsLost": 12},
            "load": use.load.model_copy(update={"failed": 3, "error": "HTTP 500", "preempted": 4}),
        }
    )
    text = house.text()
    assert "- Samples are missing: 2 gaps, 3.25 s the longest, 5 s in all." in text
    assert "- NVML failed in 12 samples: GpuIsLost." in text
    assert "15 s of load, 40 requests, of which 3 failed (HTTP 500)." in text
    assert "- NOT STABLE, VRAM: rises by at least 36 MiB/h." in text
    assert "- Preemptions since the start: 0; under this load: 4." in text


def test_whole_samples_of_a_stable_server_are_no_news(house: House) -> None:
    text = house.text()
    assert all(words not in text for words in ("Samples are missing", "NVML failed", "NOT STABLE", "of which"))


def test_pictures_are_written_and_shown_with_the_stages_where_they_ran(house: House) -> None:
    write_samples(house.root)
    made = house.report()
    assert made.plots == ["report/verdict.svg", "report/memory.svg", "report/breakdown.svg"]
    text = (house.root / made.path).read_text(encoding="utf-8")
    for plot in made.plots[1:]:
        assert f"![Test 3: VRAM usage]({plot})" in text
    svg = (house.root / made.plots[1]).read_text(encoding="utf-8")
    assert "<title>bench, 12.3 s</title>" in svg
    x = [float(each) for each in re.findall(r'<rect class="band" x="([\d.]+)"', svg)]
    begin, end = 891, 949  # of the samples with processes; WHEN is 900
    assert x[0] == pytest.approx(70 + (900 - begin) / (end - begin) * 770, abs=0.1)
    assert report_present(made, Workspace(house.root))
    (house.root / made.plots[1]).unlink()
    assert not report_present(made, Workspace(house.root))


def test_pictures_are_linked_from_where_the_report_is(house: House) -> None:
    write_samples(house.root)
    house.output = "docs/out/REPORT.md"
    assert "](report/memory.svg)" in house.text()
    assert (house.root / "docs" / "out" / "report" / "memory.svg").is_file()


def test_without_samples_there_is_no_picture_and_an_old_one_goes(house: House) -> None:
    write_samples(house.root)
    house.results["measure-vram"] = memory_use().model_copy(update={"breakdown": Breakdown()})
    assert house.report().plots == ["report/verdict.svg", "report/memory.svg"]
    (house.root / "samples.jsonl").unlink()
    assert house.report().plots == ["report/verdict.svg"]
    assert not (house.root / "report" / "memory.svg").exists()
    assert "![Test" not in house.text()


def test_the_target_in_the_picture_is_that_of_what_is_shown(house: House) -> None:
    write_samples(house.root, gpu_used_mib=[4000.0], gpu_tree_mib=[3900.0])
    house.report()
    svg = (house.root / "report" / "memory.svg").read_text(encoding="utf-8")
    assert "target, VRAM: 4768 MiB" in svg
    write_samples(house.root)
    house.report()
    assert "target" not in (house.root / "report" / "memory.svg").read_text(encoding="utf-8").partition("</style>")[2]


def test_a_licence_that_forbids_commercial_use_stands_beside_the_model(house: House) -> None:
    assert "no commercial use" not in house.text()
    facts = model().facts.model_copy(update={"license": "qwen-research", "non_commercial": True})
    house.results["download-model"] = model().model_copy(update={"facts": facts})
    said = "licence qwen-research: no commercial use"
    assert f"**Model: {said}.**" in house.text()
    assert said in (house.root / "report.html").read_text(encoding="utf-8")
    environment = read_document((house.root / "report.json").read_bytes(), "report.json").environment
    assert (environment.license, environment.non_commercial) == ("qwen-research", True)
    house.language = "tr"
    assert "lisans qwen-research: ticari kullanım yasak" in house.text()


def test_the_plan_as_the_target_is_drawn_and_told_in_every_form(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATES, "vram", GATES["vram"].model_copy(update={"target": "plan", "statistic": "peak"}))
    write_samples(house.root, gpu_used_mib=[4000.0], gpu_tree_mib=[3900.0])
    assert "| < plan (peak) |" in house.text()
    assert ">&lt; plan <" in (house.root / "report.html").read_text(encoding="utf-8")
    assert "target" not in (house.root / "report" / "memory.svg").read_text(encoding="utf-8").partition("</style>")[2]
    house.results["serve"] = house.measured_on = server().model_copy(update={"plan": PLAN})
    house.results["measure-vram"] = memory_use().model_copy(update={"figures": {"vram_peak_mib": figure(4000, "MiB")}})
    assert "| < 4700 MiB (peak; the plan's 4550 + 150) |" in house.text()
    assert "target, VRAM: 4700 MiB" in (house.root / "report" / "memory.svg").read_text(encoding="utf-8")
    (shown,) = (gate for gate in read_document((house.root / "report.json").read_bytes(), "report.json").gates if gate.id == "vram")
    assert (shown.target, shown.verdict) == (4700, "PASS")
    house.language = "tr"
    assert "plandaki 4550 + 150" in house.text()


def test_random_weights_are_told_first_and_are_no_failure(house: House) -> None:
    assert RANDOM_WEIGHTS not in house.text()
    house.results["serve"] = house.measured_on = server().model_copy(update={"random_weights": True})
    house.results["test-router"] = Failure(kind=MeaninglessError.kind, message="the weights are random")
    text = house.text()
    assert text.index(RANDOM_WEIGHTS) < text.index("## Performance targets")
    assert "## Failures" not in text
    assert "NOT_MEASURED: the weights are random" in text


def test_what_a_reader_must_know_stands_above_every_figure(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    command = ["python", "-m", "vllm", "--host", "0.0.0.0", "--trust-remote-code"]
    house.results["serve"] = server.model_copy(update={"command": command})
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert "**The server ran code that came with the model (`serve.trust_remote_code`).**" in head
    assert "**The server listened on 0.0.0.0, open to everyone who reached that machine, with an API key.**" in head


def test_a_closed_server_needs_no_caution(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    house.results["serve"] = server.model_copy(update={"command": ["python", "--host", "127.0.0.1"]})
    assert "**The server" not in house.text()


def test_another_model_or_setting_than_asked_is_never_hidden(house: House) -> None:
    server = house.results["serve"]
    assert isinstance(server, Server)
    attempt = Attempt(cause="the server did not start: the GPU ran out of memory", changed="max_num_seqs 16 → 8", took_s=30, log="l")
    house.results["serve"] = server.model_copy(update={"attempts": [attempt]})
    house.fallbacks = ("Asked for profile big (A), took profile small: the GPU ran out of memory.",)
    text = house.text()
    head = text[: text.index("## Performance targets")]
    assert "**Asked for profile big (A), took profile small: the GPU ran out of memory.**" in head
    assert "**A start failed and was repeated with max_num_seqs 16 → 8: the server did not start: the GPU ran out of memory.**" in head


# The remedy for answers that differ.


def on_gpu(house: House, environment: dict[str, str], capability: str = "8.9") -> None:
    """Have everything measured on a GPU, by a server with this environment."""
    found = machine(driver="580.1", profile="rtx4050-6gb")
    gpus = [gpu.model_copy(update={"compute_capability": capability}) for gpu in found.gpus]
    house.results["check-gpu"] = found.model_copy(update={"gpus": gpus})
    house.results["serve"] = house.measured_on = server().model_copy(update={"distribution": "vllm", "environment": environment})


def test_arms_that_differ_name_the_remedy_of_the_processor(house: House) -> None:
    told = line(house.text(), "- Remedy for this device: ")
    assert told.startswith("- Remedy for this device: `VLLM_CPU_ATTN_SPLIT_KV=0` in `serve.env` (")
    assert told.endswith("; `./inv determinism-remedy` measures without and with it.")


def test_arms_that_differ_name_the_remedy_of_the_gpu(house: House) -> None:
    on_gpu(house, {"VLLM_CPU_ATTN_SPLIT_KV": "0"})
    assert line(house.text(), "- Remedy for this device: ").startswith(
        "- Remedy for this device: `VLLM_BATCH_INVARIANT=1` in `serve.env` ("
    )


def test_a_remedy_that_is_in_force_already_does_not_help(house: House) -> None:
    on_gpu(house, {"VLLM_BATCH_INVARIANT": "1"})
    told = line(house.text(), "- The remedy for this device, `VLLM_BATCH_INVARIANT=1`, is in force already and so does not help; ")
    assert "`./inv determinism-remedy`" in told


def test_an_old_gpu_and_a_server_of_somebody_else_have_no_remedy(house: House) -> None:
    on_gpu(house, {}, capability="7.5")
    told = "- No remedy is known here: VLLM_BATCH_INVARIANT=1 needs compute capability 8.0, and RTX 4050 has 7.5.\n"
    assert told in house.text()
    house.results["serve"] = house.measured_on = server().model_copy(update={"attached": "http://elsewhere"})
    assert "- No remedy is known here: the server at http://elsewhere is not ours to start with another environment.\n" in house.text()


@pytest.mark.parametrize("parted", ["D1", "D2", "D3", "D4", "D5", ""])
def test_a_remedy_is_named_where_an_answer_differs_that_should_not(house: House, parted: str) -> None:
    whole = determinism().prompts[0]
    split = whole.model_copy(update={"agreeing": 9, "distinct": 2, "first_divergence": 3})
    arms = [Arm(arm=name, what=name, prompts=[split if name == parted else whole]) for name in ("D2", "D3", "D4", "D5")]
    prompts = [split if parted == "D1" else whole]
    house.results["test-determinism"] = determinism().model_copy(update={"arms": arms, "prompts": prompts})
    assert ("Remedy for this device" in house.text()) is (parted not in ("", "D5"))


TITLE = "Answers equal to the sequential ones, and speed, without and with `A=1`"


def test_a_proof_of_this_model_and_vllm_stands_side_by_side(house: House) -> None:
    assert TITLE not in house.text()
    house.results[REMEDY_NOTE] = proof()
    text = house.text()
    assert TITLE in text
    row = line(text, "| D3, amid 4 others |")
    assert row.split(" | ")[1:] == ["13 of 14, first difference at token 9 (logprob gap of the two best there 0.0123)", "10 of 10 |"]
    assert line(text, "| launches |") == "| launches | without | remedied |"
    assert "| determinism-remedy |" not in text, "it is no stage"
    assert house.report().exit_code == 0


def test_a_proof_stands_also_where_the_stage_was_not_run(house: House) -> None:
    house.results |= {REMEDY_NOTE: proof(), "test-determinism": None}
    text = house.text()
    assert text.index("NOT_MEASURED: this stage never ran") < text.index(TITLE) < text.index("### Latency and throughput")


@pytest.mark.parametrize("other", [{"model": "another"}, {"vllm": "0.19.1"}])
def test_a_proof_of_another_model_or_vllm_is_not_shown(house: House, other: dict[str, str]) -> None:
    house.results[REMEDY_NOTE] = proof(**other)
    assert TITLE not in house.text()


def test_a_proof_of_our_servers_is_not_shown_for_somebody_elses(house: House) -> None:
    house.results[REMEDY_NOTE] = proof()
    house.results["serve"] = house.measured_on = server().model_copy(update={"attached": "http://elsewhere"})
    assert TITLE not in house.text()


def test_a_proof_without_a_server_on_record_is_not_shown(house: House) -> None:
    house.results |= {REMEDY_NOTE: proof(), "serve": None}
    assert TITLE not in house.text()


def test_requests_that_failed_and_a_start_that_was_repeated_are_told(house: House) -> None:
    attempt = Attempt(cause="the GPU ran out of memory", changed="max_num_seqs 16 → 8", took_s=30, log="l")
    house.results[REMEDY_NOTE] = proof(
        without=proof().without.model_copy(update={"errors": ["HTTP 500", "HTTP 500"], "attempts": [attempt]})
    )
    text = house.text()
    assert line(text, "| failed requests for speed |") == "| failed requests for speed | 2: HTTP 500 | no |"
    assert line(text, "| a failed start was repeated with |").endswith(" | max_num_seqs 16 → 8 | no |")


def test_a_simulated_side_and_one_that_failed_say_so(house: House) -> None:
    failed = proof().remedied.model_copy(update={"failure": Failure(kind="server", message="it broke"), "simulated": True})
    house.results[REMEDY_NOTE] = proof(remedied=failed)
    text = house.text()
    assert line(text, "| failed |") == "| failed | no | it broke |"
    assert line(text, "| SIMULATED, not a real vLLM |") == "| SIMULATED, not a real vLLM | no | yes |"
