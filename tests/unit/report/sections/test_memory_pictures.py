"""The pictures of memory as the stage writes them."""

import re

import pytest

from pipeline.engine.workspace import Workspace
from pipeline.report.formats.document import read_document
from pipeline.report.sections.memory_pictures import charts, pictures
from pipeline.report.stage import report_present
from pipeline.report.words import ENGLISH
from pipeline.vllm.breakdown import Breakdown
from tests.builders.house import GATES, House, outcomes_of
from tests.builders.records import (
    PLAN,
    figure,
    memory_use,
    outcome,
    server,
    write_samples,
)


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


def test_memory_without_samples_says_so_and_shows_the_parts() -> None:
    outcomes = outcomes_of({"measure-vram": outcome("measure-vram", memory_use())})
    over_time, parts = charts(outcomes, [], pictures(outcomes, [], []))
    assert over_time.drawings == []
    assert "samples.jsonl" in over_time.note
    assert [drawing(ENGLISH)[:4] for drawing in parts.drawings] == ["<svg"]
    assert parts.tables[0].rows[0] == ["weights", "–", "258"]


def test_nothing_measured_no_charts_and_no_picture_to_show() -> None:
    nothing = outcomes_of({})
    drawn = pictures(nothing, [], [])
    assert [picture.drawing for picture in drawn] == [None, None]
    assert charts(nothing, [], drawn) == []
