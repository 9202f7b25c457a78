"""What a sweep's results say: recommendation, exit code, table, picture."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.record import SWEEP_NOTE, Failure, Outcome, Store, now
from pipeline.errors import MeaninglessError
from pipeline.measure.figures import Figure
from pipeline.message import _
from pipeline.report.cells import Cell
from pipeline.report.drawing.pareto import LINE, apart, front, pareto, shown_cells
from pipeline.report.formats.document import text_of
from pipeline.report.formats.markdown import TableCells
from pipeline.report.parts import CellRow, Picture, SweepPart
from pipeline.report.sections.sweep import sweep_part
from pipeline.report.sweep import (
    ACCURACY,
    DECODE,
    INTERRUPTED,
    LATENCY,
    VRAM,
    CellRecord,
    best_of,
    exit_code,
    recommendation,
    recommended,
    rule,
)
from pipeline.report.words import ENGLISH, words
from pipeline.sweep.results import disturbed, ended, read_cell, speed_passes, write_cell
from pipeline.sweep.summary import page
from tests.builders.documents import WHEN, document, figure, gate
from tests.builders.records import bench_result
from tests.builders.sweeps import GUIDE, cell, failed, skipped, sweep

ROOT = Path(__file__).resolve().parents[3]


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
    found = best_of(cells)
    assert (found.name if found else None) == best
    assert recommendation(cells).startswith(f"{best} (router accuracy" if best else "none, because ")


def random(name: str, decode: float | None, peak: float | None = 5000.0, **changes: Any) -> CellRecord:
    """Return a cell with random weights that passes on speed and memory."""
    figures = {VRAM: (peak, "MiB"), DECODE: (decode, "tok/s")}
    made = cell(name, None, None, passed=False, verdict="NOT MEASURED", random_weights=True, speed_passed=True)
    values = {metric: Figure(value=value, unit=unit, n=64) for metric, (value, unit) in figures.items()}
    return made.model_copy(update={"figures": {**made.figures, **values}, **changes})


@pytest.mark.parametrize(
    ("cells", "quickest"),
    [
        ([random("a", 200), random("b", 300)], "b"),
        ([random("a", 300, 6000), random("b", 300, 5000)], "b"),
        ([random("a", 300, speed_passed=False), random("b", 200)], "b"),
        ([random("a", None), random("b", 200)], "b"),
        ([random("a", 300, None), random("b", 200)], "b"),
        ([random("a", 300, random_weights=False)], None),
        ([random("a", 300, simulated=True, speed_passed=False), failed("b")], None),
    ],
)
def test_where_weights_are_random_speed_and_memory_alone_recommend(cells: list[CellRecord], quickest: str | None) -> None:
    found = recommended(cells)
    assert (found.name if found else None) == quickest
    said = recommendation(cells)
    assert exit_code(cells) in (1, 2), "no cell passes"
    if quickest is None:
        assert said.startswith("none, because ")
        assert rule(cells) == rule()
    else:
        assert said.startswith(f"{quickest}, by speed and memory alone (decode ")
        assert rule(cells).endswith("Their answers were not judged.")
        both = [*cells, cell("judged", 50)]
        assert recommendation(both).startswith("judged (router accuracy 50 %"), "a cell that passes every gate comes first"
        assert rule(both) == rule()


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


def section(*cells: CellRecord) -> SweepPart:
    return sweep_part(Outcome(SWEEP_NOTE, sweep(*cells), None), GUIDE)


def shown(cell: Cell, language: Literal["en", "tr"] = "en") -> str:
    return TableCells(words(language, ROOT / "templates")).figure(cell)


def figures_of(row: CellRow, made: SweepPart) -> dict[str, str]:
    return dict(zip(made.header, map(shown, row.figures), strict=True))


def test_section_has_a_row_per_cell_with_what_was_measured_beside_the_guide() -> None:
    made = section(cell("a"), failed("b"), skipped("c"))
    a, b, c = made.rows
    assert (a.name, a.state, a.model) == ("a", "measured 2026-01-02 03:04 UTC", "Model (guide: 1.5B, ~2GB, Router)")
    assert figures_of(a, made) == {
        "Model files": "**512 MiB**",
        "Memory, peak": "**900 MiB** (n = 64; host memory (PSS))",
        "TTFT, cold prefix cache, p95": "**40 ms** (n = 64)",
        "Decode, median": "**60 tok/s** (n = 64)",
        "Router accuracy": "**80 %** (n = 64)",
        "Router latency, p95": "**300 ms** (n = 64)",
        "Determinism": "**100 %** (n = 64)",
    }
    assert (shown(a.ruling), shown(a.source), a.source.metric) == ("✅ PASS (9 of 9 gates)", "`artifacts/sweep/a/report.json`", "sweep.a")
    assert (b.state, shown(b.source)) == ("failed: serve: the GPU ran out of memory", "no report")
    assert (c.state, c.model) == ("skipped: cannot fit: too large (by far)", "Other")
    assert made.facts[0] == "3 cells: 1 measured, 1 failed, 1 skipped; as of 2026-01-02 03:04:05 UTC."
    assert made.recommendation == "a (router accuracy 80 %, p95 300 ms)"
    assert made.rule == rule()


@pytest.mark.parametrize("other", [failed("b"), skipped("b"), cell("b", state="waiting", figures={}, size_mib=None, verdict=None)])
def test_a_cell_that_was_not_measured_says_so_in_every_place(other: CellRecord) -> None:
    (row,) = section(other.model_copy(update={"size_mib": None})).rows
    assert set(map(shown, row.figures)) == {"NOT_MEASURED"}
    assert shown(row.ruling) == "▫️ NOT_MEASURED"
    assert "measured 2026" not in shown(row.state)
    assert not any(text.strip(" –") == "" for text in map(shown, (row.state, row.model, row.source)))


def test_figures_that_a_failed_cell_left_are_shown_and_never_recommended() -> None:
    made = section(cell("a", state="failed", reason="bench: it died", passed=False, verdict="NOT MEASURED", gates_passed=2))
    (row,) = made.rows
    assert figures_of(row, made)["Router accuracy"] == "**80 %** (n = 64)"
    assert (shown(row.state), shown(row.ruling)) == ("failed: bench: it died", "▫️ NOT_MEASURED (2 of 9 gates)")
    assert made.recommendation.startswith("none, because ")


def test_memory_of_the_device_counts_where_it_was_measured() -> None:
    figures = {**cell("a").figures, VRAM: Figure(value=3600.0, unit="MiB", n=90)}
    made = section(cell("a", figures=figures))
    assert figures_of(made.rows[0], made)["Memory, peak"] == "**3600 MiB** (n = 90)"


def test_simulated_and_unlike_devices_are_told() -> None:
    made = section(cell("a", simulated=True, passed=False, verdict="NOT MEASURED"), cell("b", device="Another card"))
    assert (shown(made.rows[0].state), shown(made.rows[0].ruling)) == ("🚫 SIMULATED", "🚫 SIMULATED (9 of 9 gates)")
    assert any("A card, Another card" in fact for fact in made.facts)
    assert any(fact.startswith("SIMULATED cells") for fact in made.facts)


def test_a_sweep_that_goes_on_says_so() -> None:
    made = sweep(cell("a")).model_copy(update={"finished": None})
    told = sweep_part(Outcome(SWEEP_NOTE, made, None), GUIDE).facts
    assert "The sweep was not run to its end; the same command goes on with it." in told


def test_without_a_sweep_the_section_says_how_to_have_one() -> None:
    none = sweep_part(Outcome(SWEEP_NOTE, None, None), GUIDE)
    assert none.reason.startswith("no sweep is on record. `./inv sweep` runs")
    assert (none.rows, none.recommendation, none.picture) == ([], "", Picture("sweep.svg", None))
    broken = sweep_part(Outcome(SWEEP_NOTE, None, None, Failure(kind="record", message="sweep.json is no JSON")), GUIDE)
    assert broken.reason.startswith("the record of the sweep cannot be read: sweep.json is no JSON. `./inv sweep`")


def test_in_turkish_every_word_of_ours_is_turkish() -> None:
    fits = _("fits, {peak}", peak=_("peak {value} of {target} MiB", value=4000, target=6000))
    lacking = {"what": "1 GPU", "reason": _("and no node has one"), "name": "RTX", "fit": fits}
    reason = _("needs {what}, {reason}; on the guide's {name}: {fit}", **lacking)
    made = section(cell("a"), skipped("b", reason), cell("c", state="interrupted", reason=INTERRUPTED))
    assert shown(made.recommendation, "tr") == "a (router doğruluğu %80, p95 300 ms)"
    assert shown(made.rows[0].state, "tr") == "ölçüm zamanı 2026-01-02 03:04 UTC"
    assert shown(made.rows[1].state, "tr") == (
        "atlandı: 1 GPU gerekli, hiçbir düğümde yok; kılavuzun RTX kartında: sığar, en yüksek 6000 MiB içinde 4000 MiB"
    )
    assert shown(made.rows[2].state, "tr") == "yarıda kesildi: tarama yarıda kesildi; aynı komut kaldığı yerden sürdürür"


def test_page_keeps_its_columns_and_links_reports() -> None:
    odd = cell("a|b<c", state="failed", reason="x|y\nz", report=None)
    made = section(cell("a"), odd)
    text = page(made, {"a": "a/REPORT.md"}, "pareto.svg")
    table = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {len(made.header) + 6}
    assert "[REPORT.md](a/REPORT.md)" in text
    assert "![" in text
    assert "![" not in page(section(failed("a")), {}, None)


def test_front_holds_what_nothing_beats_in_both() -> None:
    assert front([(300, 80), (200, 80), (100, 50), (250, 70), (400, 90)]) == [(100, 50), (200, 80), (400, 90)]


def test_picture_shows_each_cell_once_with_the_models_size_as_area_and_the_same_bytes() -> None:
    small, large = cell("small", 70, 100, size_mib=250.0), cell("large", 90, 200, size_mib=1000.0)
    made = sweep(small, large, failed("broken"))
    assert made.recommended == "large"
    svg = pareto(made, ENGLISH)
    assert svg == pareto(made, ENGLISH)
    circles = [node for node in ET.fromstring(svg).iter() if node.tag.endswith("circle")]
    radii = [float(node.attrib["r"]) for node in circles]
    assert radii[0] / radii[1] == pytest.approx(2, rel=0.01), "four times the size is four times the area"
    assert [node.attrib["class"] for node in circles] == ["f2", "f0"]
    assert shown_cells(sweep(failed("broken")).cells) == []
    assert section(failed("broken")).picture == Picture("sweep.svg", None)


@given(st.lists(st.floats(56, 296), max_size=12))
def test_names_in_the_picture_never_touch(rows: list[float]) -> None:
    placed = apart(rows)
    assert all(high - low >= LINE - 1e-6 for low, high in pairwise(sorted(placed)))
    assert all(0 <= row <= 320 for row in placed)
    assert sorted(range(len(rows)), key=lambda index: rows[index]) == sorted(range(len(rows)), key=lambda index: placed[index])


def test_of_many_cells_only_those_that_nothing_beats_are_named() -> None:
    many = [cell(f"cell-{number}", 50, 300 + number) for number in range(20)]
    svg = pareto(sweep(*many), ENGLISH)
    assert svg.count("<circle") == 20
    assert [name for name in re.findall(r">([^<]*)</text>", svg) if name.startswith("cell-")] == ["cell-0"]


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
    assert (made.source, made.measured_at) == ("a/report.json", WHEN)
    write_cell(tmp_path / "a", made)
    assert read_cell(tmp_path / "a") == made


@pytest.mark.parametrize(
    ("gates", "decode", "passes"),
    [
        ((gate(), gate("b", "NOT_MEASURED", metric="test-router.constrained_route_accuracy")), 300.0, True),
        ((gate(), gate("b", "NOT_MEASURED", metric="test-determinism.identical")), 300.0, True),
        ((gate(), gate("b", "FAIL", metric="bench.ttft_ms_p95")), 300.0, False),
        ((gate(), gate("b", "INCONCLUSIVE", metric="measure-vram.vram_stable")), 300.0, False),
        ((gate(), gate("b", "FAIL", required=False, metric="bench.ttft_ms_p95")), 300.0, True),
        ((gate(),), None, False),
    ],
)
def test_speed_passes_where_every_gate_does_that_judges_no_answers(gates: tuple[Any, ...], decode: float | None, passes: bool) -> None:
    figures = {} if decode is None else {DECODE: figure(decode, "tok/s")}
    assert speed_passes(document(figures, gates, exit_code=2)) is passes


@pytest.mark.parametrize("invalid", ["", "late"])
def test_a_disturbed_cell_is_one_whose_client_was_late(tmp_path: Path, invalid: str) -> None:
    assert disturbed(tmp_path) == ""
    result = bench_result()
    levels = [level.model_copy(update={"invalid": invalid}) for level in result.levels]
    Store(tmp_path / "artifacts").write("bench", {}, now(), 1.0, result.model_copy(update={"levels": levels}))
    assert disturbed(tmp_path) == invalid


def test_shared_cells_and_those_run_again_are_told() -> None:
    made = section(cell("a", shared=True), cell("b", again="the client was late"))
    assert "Cells that shared a node, each with GPUs, cores and caches of its own: 1." in made.facts
    assert "b was INVALID beside its neighbour and was measured again alone: the client was late." in made.facts
    assert not any("shared" in fact or "neighbour" in fact for fact in section(cell("a")).facts)


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


@pytest.mark.parametrize("text", ["{", "{}", '{"name": 1}'])
def test_a_cells_record_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "cell.json").write_text(text, encoding="utf-8")
    assert read_cell(tmp_path) is None
