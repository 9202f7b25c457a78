"""The report: what it shows of good, failed and missing records."""

from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.engine.record import Artifact, Failure
from pipeline.engine.workspace import Workspace
from pipeline.report.formats.markdown import MARKS, TableCells
from pipeline.report.gates import judge_all
from pipeline.report.stage import report_present
from pipeline.report.view import gate_row
from pipeline.terminal import Silent
from tests.builders.house import GATES, House, outcomes_of
from tests.builders.records import (
    STAGES,
    all_good,
    bench_result,
    figure,
    memory_use,
    outcome,
    server,
)
from tests.builders.reports import line


@pytest.mark.parametrize("now", [None, Failure(kind="server", message="it did not start"), "other"])
def test_figures_of_another_server_pass_for_nothing(house: House, now: Any) -> None:
    house.results["serve"] = server().model_copy(update={"model": "another"}) if now == "other" else now
    assert "was measured on another server than the one on record" in house.text()
    assert {gate.verdict for gate in house.report().gates} == {"NOT_MEASURED"}
    assert house.report().exit_code == 2


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


def test_pipe_of_a_gates_label_stays_in_its_cell(house: House) -> None:
    assert line(house.text(), "| JSON").startswith("| JSON \\| parses[^valid] |")


def test_report_is_present_while_its_file_is(house: House) -> None:
    made = house.report()
    workspace = Workspace(house.root, Silent())
    assert report_present(made, workspace)
    (house.root / made.path).unlink()
    assert not report_present(made, workspace)


# The remedy for answers that differ.
