"""Records that older versions wrote: each is read, and a report of them shows each; a later version's is refused with the way out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.dag import NOTES, STAGES
from pipeline.engine import migrations
from pipeline.engine.record import Artifact, Store
from pipeline.engine.workspace import Workspace
from pipeline.report.formats.document import Document, read_document
from pipeline.server import state
from pipeline.stages.test_determinism import Determinism
from pipeline.terminal import Silent

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "tests" / "records"
FORMS = pytest.mark.parametrize("form", ["2026-11-23-first", "2026-11-23", "2026-11-24"])
REPORTS = sorted((RECORDS / "reports").glob("*.json"))
KINDS: dict[str, type[Artifact]] = {stage.name: stage.makes for stage in STAGES} | {name: kind for kind, name in NOTES.items()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("tasks.py", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("pipeline", "templates", "suites", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def invoke(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "HOME": str(project / "home"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *words], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def reported(project: Path, *words: str) -> tuple[str, Document]:
    """Return REPORT.md and report.json, which nothing was run for."""
    done = invoke(project, "report", "--only", "--profile", "cpu", *words)
    assert done.returncode in (0, 1, 2), done.stderr
    assert (project / "REPORT.md").is_file(), done.stderr
    return (project / "REPORT.md").read_text(encoding="utf-8"), read_document((project / "report.json").read_bytes(), "report.json")


@FORMS
def test_each_record_is_read(form: str) -> None:
    store = Store(RECORDS / form)
    names = sorted(path.stem for path in (RECORDS / form).glob("*.json"))
    assert names
    for name in names:
        kind = KINDS.get(name) or noise()
        outcome = store.outcome(name, kind)
        assert outcome.data is not None, outcome.failure
        assert outcome.data.identity()


@FORMS
def test_the_shares_of_determinism_count_prompts_in_old_records_too(form: str) -> None:
    made = Store(RECORDS / form).outcome("test-determinism", Determinism).data
    assert made is not None
    assert made.figures["identical"].n == len(made.prompts)
    for name in ("D2", "D3", "D4"):
        arms = [arm for arm in made.arms if arm.arm == name and arm.prompts]
        figure = made.figures.get(f"{name.lower()}_identical")
        if arms and figure is not None and figure.value is not None:
            assert figure.n == len({prompt for arm in arms for prompt in arm.by_prompt})


def noise() -> type[Artifact]:
    from pipeline.report.noise import RunNoise

    return RunNoise


@pytest.mark.parametrize(("form", "language"), [("2026-11-23-first", "en"), ("2026-11-23", "tr"), ("2026-11-24", "en")])
def test_the_report_shows_each(project: Path, form: str, language: str) -> None:
    shutil.copytree(RECORDS / form, project / "artifacts")
    text, document = reported(project, "--set", f"report.language={language}")
    assert {stage.stage: stage.status for stage in document.stages} == {stage.stage: "ok" for stage in document.stages}
    assert re.findall(r"no form|never ran|hiç çalışmadı|\bNone\b|\bnan\b", text) == []
    for stage in ("bench", "measure-vram", "test-determinism", "test-router"):
        assert f"artifacts/{stage}.json" in text
        values = {figure.name: figure.value for figure in document.figures if figure.stage == stage}
        record = json.loads((RECORDS / form / f"{stage}.json").read_text(encoding="utf-8"))
        recorded = {name: figure["value"] for name, figure in record["data"]["figures"].items()}
        judged_anew = dict.fromkeys(name for name in recorded if name.endswith("_stable"))  # NOT_MEASURED by today's rule
        assert values == {**recorded, **judged_anew}


def test_the_report_shows_what_no_stage_makes(project: Path) -> None:
    shutil.copytree(RECORDS / "2026-11-24", project / "artifacts")
    text, document = reported(project)
    assert document.sweep is not None
    assert [cell.state for cell in document.sweep.cells] == ["measured", "skipped"]
    for words in ("artifacts/soak.json", "artifacts/determinism-remedy.json", "skipped: needs 2 GPUs, no node has more than 1"):
        assert words in text


@pytest.mark.parametrize("change", [{"form": 99}, {"schema_version": 99}])
def test_a_record_of_a_later_version_is_refused_with_the_way_out(project: Path, change: dict[str, Any]) -> None:
    shutil.copytree(RECORDS / "2026-11-24", project / "artifacts")
    path = project / "artifacts" / "bench.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    before = path.read_bytes()
    for words in (["report", "--only"], ["why", "bench"]):
        done = invoke(project, *words, "--profile", "cpu")
        assert done.returncode == 2
        error, hint = done.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert "bench.json has " in error
        assert "99" in error
        assert hint == "  → update this program, or remove the file to run the stage again"
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_report_for_programs_is_read(path: Path) -> None:
    assert read_document(path.read_bytes(), path.name).figures


def test_history_and_compare_read_runs_that_older_versions_kept(project: Path) -> None:
    for number, path in enumerate(REPORTS, 1):
        run = project / "artifacts" / "runs" / f"2026112{number}T000000Z-00000{number}"
        run.mkdir(parents=True)
        shutil.copy(path, run / "report.json")
    listed = invoke(project, "history")
    assert listed.returncode == 0, listed.stderr
    assert all(f"00000{number}" in listed.stdout for number in range(1, len(REPORTS) + 1))
    compared = invoke(project, "compare", "previous", "latest", "--anyway")
    assert compared.returncode in (0, 1), compared.stderr
    assert "bench.ttft_ms_p50" in compared.stdout


def test_the_note_of_a_server_that_an_older_version_started_is_read(tmp_path: Path) -> None:
    """Else nothing could stop that server but its pid."""
    settings = {"port": 8123, "executor": "uni"}
    launch = {"id": "1", "pid": 1, "created": 1.0, "boot": "b", "host": "127.0.0.1", "port": 8123, "model": "m", "log": "l", "command": []}
    (tmp_path / "artifacts").mkdir()
    path = tmp_path / "artifacts" / "launch.json"
    path.write_text(json.dumps({**launch, "settings": settings, "started": "2026-11-24T17:00:00Z"}), encoding="utf-8")
    read = state.read(Workspace(tmp_path, Silent()))
    assert read is not None
    assert read.settings.distributed_executor_backend == "uni"


def test_every_form_that_has_steps_is_in_the_corpus() -> None:
    assert set(migrations.STEPS) - {"launch"} <= {
        path.stem for form in ("2026-11-23-first", "2026-11-24") for path in (RECORDS / form).glob("*.json")
    }
