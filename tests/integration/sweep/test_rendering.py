"""What a sweep does to the report that is there when it ends: shows itself in it, or leaves it alone and says what to do."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.commands.clean import clean
from pipeline.commands.session import Options, Session
from pipeline.engine.record import SWEEP_NOTE, Store
from pipeline.report.formats.document import read_document
from pipeline.sweep.rendering import render_again
from tests.builders.documents import WHEN
from tests.builders.project import Project
from tests.builders.sweeps import SWEPT
from tests.fakes.environment import code_of
from tests.unit.report.sections.test_sweep import part

CPU = Options(profile="cpu")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    Store(made.root / "artifacts").write(SWEEP_NOTE, {"axes": {}}, WHEN, 1.0, SWEPT)
    return made


def reported(project: Project) -> None:
    """Leave a report as it was before the sweep."""
    note = project.root / "artifacts" / "sweep.json"
    aside = note.rename(note.with_name("aside"))
    Session(project.root, CPU, silent=True).pipeline.ensure(["report"], alone=True)
    aside.rename(note)


def ended(project: Project, options: Options = CPU) -> str:
    return render_again(Session(project.root, options, silent=True).pipeline, "REPORT.md")


def test_a_report_on_record_shows_the_sweep_and_keeps_its_verdict(project: Project) -> None:
    reported(project)
    path = project.root / "REPORT.md"
    before, document = path.read_text(encoding="utf-8"), read_document((project.root / "report.json").read_bytes(), "report.json")
    assert "no sweep is on record" in part(before)
    assert ended(project) == "REPORT.md: shows the sweep"
    after = path.read_text(encoding="utf-8")
    assert "**Recommendation: b (router accuracy 90 %, p95 290 ms).**" in part(after)
    now = read_document((project.root / "report.json").read_bytes(), "report.json")
    assert (now.headline, now.exit_code, now.gates, now.run_id) == (document.headline, document.exit_code, document.gates, document.run_id)
    assert now.sweep == SWEPT


def test_without_a_report_on_record_the_one_that_lies_there_is_left_alone(project: Project) -> None:
    path = project.root / "REPORT.md"
    path.write_text("a good report from elsewhere", encoding="utf-8")
    assert ended(project) == (
        "REPORT.md: left alone, as there is no report on record here; `./inv all` makes one, and shows the sweep in it"
    )
    assert path.read_text(encoding="utf-8") == "a good report from elsewhere"
    assert not (project.root / "report.json").exists()


def test_a_report_of_other_settings_is_left_alone(project: Project) -> None:
    reported(project)
    before = (project.root / "REPORT.md").read_bytes()
    told = ended(project, Options(profile="quick"))
    assert told.startswith("REPORT.md: left alone, as it is of something else (")
    assert told.endswith("); `./inv report --only` shows the sweep in it")
    assert (project.root / "REPORT.md").read_bytes() == before


def test_a_report_whose_records_have_changed_since_is_left_alone(project: Project) -> None:
    reported(project)
    project.fail("bench", "it died")
    assert "(bench changed: never ran → failed: it died)" in ended(project)


def test_a_report_that_cannot_be_written_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    reported(project)
    monkeypatch.setattr("pipeline.report.stage.write_atomic", full)
    told = ended(project)
    assert told.startswith("REPORT.md: not rendered: ")
    assert "\n" not in told


def test_clean_keeps_the_sweep_with_its_cells(project: Project) -> None:
    cell = project.root / "artifacts" / "sweep" / "a" / "report.json"
    cell.parent.mkdir(parents=True)
    cell.touch()
    assert code_of(clean(project.root, everything=False)) == 0
    assert Store(project.root / "artifacts").read(SWEEP_NOTE) is not None
    assert cell.exists()
    assert code_of(clean(project.root, everything=True)) == 0
    assert Store(project.root / "artifacts").read(SWEEP_NOTE) is None
