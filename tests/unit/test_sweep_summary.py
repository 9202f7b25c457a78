"""What a sweep's results say: recommendation, exit code, table, picture."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Alternative
from pipeline.errors import MeaninglessError, RecordError
from pipeline.measure.figures import Figure
from pipeline.record import Failure, Store, now
from pipeline.report.document import text_of
from pipeline.sweep.results import (
    ACCURACY,
    DECODE,
    HOST,
    IDENTICAL,
    LATENCY,
    TTFT,
    VRAM,
    CellRecord,
    Sweep,
    ended,
    exit_code,
    read_cell,
    read_sweep,
    recommendation,
    recommended,
    write_cell,
)
from pipeline.sweep.summary import HEAD, front, markdown, pareto, sweep_section
from tests.unit.documents import WHEN, document, figure, gate


def cell(name: str, accuracy: float | None = 80, latency: float | None = 300, **changes: Any) -> CellRecord:
    """Return a cell that was measured and passes, unless `changes` say otherwise."""
    values = {ACCURACY: (accuracy, "%"), LATENCY: (latency, "ms"), VRAM: (None, "MiB"), HOST: (900.0, "MiB")}
    values |= {TTFT: (40.0, "ms"), DECODE: (60.0, "tok/s"), IDENTICAL: (100.0, "%")}
    figures = {metric: Figure(value=value, unit=unit, n=64) for metric, (value, unit) in values.items()}
    made = CellRecord(
        name=name,
        folder=name,
        values={},
        profile="small",
        fingerprint="f",
        fit="fits",
        state="measured",
        report=f"artifacts/sweep/{name}/REPORT.md",
        passed=True,
        verdict="PASS",
        model="Model",
        device="A card",
        size_mib=512.0,
        gates_passed=9,
        gates=9,
        figures=figures,
    )
    return made.model_copy(update=changes)


def failed(name: str) -> CellRecord:
    return cell(name, state="failed", passed=False, figures={}, reason="serve: the GPU ran out of memory", report=None)


def sweep(*cells: CellRecord) -> Sweep:
    best = recommended(cells)
    return Sweep(
        started=WHEN,
        finished=WHEN,
        axes={"profile": ["small"]},
        cells=list(cells),
        recommended=best.name if best else None,
        recommendation=recommendation(cells),
        exit_code=exit_code(cells),
    )


GUIDE = [Alternative(model="Qwen", size="1.5B", vram="~2GB", use_case="Router", profile="small")]


@pytest.mark.parametrize(
    ("cells", "best"),
    [
        ([cell("a", 80), cell("b", 90)], "b"),
        ([cell("a", 90, 300), cell("b", 90, 200)], "b"),
        ([cell("a", 99, passed=False), cell("b", 50)], "b"),
        ([cell("a", None), cell("b", 50)], "b"),
        ([cell("b"), cell("a")], "a"),
        ([cell("a", passed=False), failed("b")], None),
        ([cell("a", None)], None),
        ([], None),
    ],
)
def test_recommended_is_the_most_accurate_that_passes_and_of_equals_the_quickest(cells: list[CellRecord], best: str | None) -> None:
    found = recommended(cells)
    assert (found.name if found else None) == best
    assert recommendation(cells).startswith(f"{best}: " if best else "none: ")


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        ([cell("a"), failed("b")], 0),
        ([cell("a", passed=False), failed("b")], 1),
        ([cell("a", passed=False, simulated=True)], 2),
        ([failed("a")], 2),
        ([], 2),
    ],
)
def test_exit_code_follows_the_best_cell(cells: list[CellRecord], code: int) -> None:
    assert exit_code(cells) == code


def test_section_has_a_row_per_cell_with_what_was_measured_beside_the_guide() -> None:
    section = sweep_section(sweep(cell("a"), failed("b"), cell("c", state="skipped", reason="cannot fit", figures={})), GUIDE)
    a, b, c = (dict(zip(HEAD, row, strict=True)) for row in section.rows)
    assert (a["Guide: size, VRAM, use"], a["Model files"]) == ("Qwen: 1.5B, ~2GB, Router", "512 MiB")
    assert (a["Memory peak"], a["Router accuracy"]) == ("900 MiB (host, PSS), n = 64", "80 %, n = 64")
    assert (a["Determinism"], a["Verdict"]) == ("100 %, n = 64", "PASS (9 of 9 gates)")
    assert b["Verdict"] == "FAILED: serve: the GPU ran out of memory"
    assert b["Router accuracy"] == "NOT_MEASURED"
    assert c["Verdict"] == "SKIPPED: cannot fit"
    assert section.facts == ["3 cells: 1 measured, 1 failed, 1 skipped."]
    assert section.recommendation == "a: router accuracy 80 %, p95 300 ms"


def test_simulated_and_unlike_devices_are_told() -> None:
    simulated = cell("a", simulated=True, passed=False, verdict="NOT MEASURED")
    section = sweep_section(sweep(simulated, cell("b", device="Another card")), GUIDE)
    assert section.rows[0][10] == "SIMULATED (9 of 9 gates)"
    assert any("A card, Another card" in fact for fact in section.facts)
    assert any(fact.startswith("SIMULATED cells") for fact in section.facts)


def test_markdown_keeps_its_columns_and_links_reports() -> None:
    odd = cell("a|b<c", state="failed", reason="x|y\nz", report=None)
    text = markdown(sweep_section(sweep(cell("a"), odd), GUIDE), "pareto.svg")
    table = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {len(HEAD) + 1}
    assert "[REPORT.md](a/REPORT.md)" in text
    assert "![" in text
    assert "![" not in markdown(sweep_section(sweep(failed("a")), GUIDE), None)


def test_front_holds_what_nothing_beats_in_both() -> None:
    assert front([(300, 80), (200, 80), (100, 50), (250, 70), (400, 90)]) == [(100, 50), (200, 80), (400, 90)]


def test_picture_shows_each_cell_once_with_memory_as_area_and_the_same_bytes() -> None:
    small = cell("small", 70, 100)
    large = cell("large", 90, 200, figures={**cell("x", 90, 200).figures, VRAM: Figure(value=3600.0, unit="MiB", n=1)})
    svg = pareto([small, large, failed("broken")], "large")
    assert svg == pareto([small, large, failed("broken")], "large")
    circles = [node for node in ET.fromstring(svg).iter() if node.tag.endswith("circle")]
    radii = [float(node.attrib["r"]) for node in circles]
    assert radii[1] / radii[0] == pytest.approx(2, rel=0.01), "four times the memory is four times the area"
    assert [node.attrib["class"] for node in circles] == ["f0", "f2"]
    assert pareto([failed("broken")], None) == ""


def ended_cell(folder: Path, code: int, **facts: Any) -> CellRecord:
    figures = {ACCURACY: figure(80.0, "%"), LATENCY: figure(300.0)}
    made = document(figures, (gate(), gate("b", "FAIL", required=False)), exit_code=code, **facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(text_of(made), encoding="utf-8")
    (folder / "REPORT.md").write_text("", encoding="utf-8")
    return ended(cell("a", figures={}, passed=False), code, folder.parent, folder, "")


def test_a_cell_that_ended_is_read_from_its_own_report(tmp_path: Path) -> None:
    made = ended_cell(tmp_path / "a", 0)
    assert (made.state, made.passed, made.gates, made.gates_passed) == ("measured", True, 1, 1)
    assert (made.value(ACCURACY), made.report, made.size_mib) == (80.0, "a/REPORT.md", None)
    write_cell(tmp_path / "a", made)
    assert read_cell(tmp_path / "a") == made


def test_simulated_figures_never_pass(tmp_path: Path) -> None:
    made = ended_cell(tmp_path / "a", 0, simulated=True)
    assert (made.state, made.passed, made.simulated) == ("measured", False, True)


@pytest.mark.parametrize(("kind", "state"), [("server", "failed"), (MeaninglessError.kind, "measured")])
def test_a_stage_that_failed_makes_a_failed_cell_and_one_left_out_does_not(tmp_path: Path, kind: str, state: str) -> None:
    folder = tmp_path / "a"
    made = document({}, (gate(),), exit_code=2)
    broken = made.stages[0].model_copy(update={"status": "failed", "reason": "no server"})
    folder.mkdir()
    (folder / "report.json").write_text(text_of(made.model_copy(update={"stages": [broken, made.stages[1]]})), encoding="utf-8")
    Store(folder / "artifacts").write("test-router", {}, now(), 1.0, Failure(kind=kind, message="no server"))
    found = ended(cell("a", figures={}), 2, tmp_path, folder, "")
    assert (found.state, found.reason) == (state, "test-router: no server" if state == "failed" else "")


@pytest.mark.parametrize(
    ("log", "reason"), [("a\nerror: no disk\n  → free some\n", "no disk"), ("words\n", "words"), ("", "exit code 7 and no report")]
)
def test_a_cell_without_a_report_says_why(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "cell.log").write_text(log, encoding="utf-8")
    found = ended(cell("a"), 7, tmp_path, tmp_path, "")
    assert (found.state, found.reason, found.exit_code) == ("failed", reason, 7)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ('{"schema_version": 2}', "has sweep schema 2"), ('{"schema_version": 1}', "is not a sweep")],
)
def test_a_sweep_that_cannot_be_read_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=told):
        read_sweep(tmp_path / "sweep.json")
    (tmp_path / "cell.json").write_text(text, encoding="utf-8")
    assert read_cell(tmp_path) is None
