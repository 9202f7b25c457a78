"""Runs by the command line: kept by `all`, listed, compared, told to CI, and left alone by `clean`."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pipeline.engine.record import write_atomic
from pipeline.measure.directions import direction_of
from pipeline.report.formats.document import SCHEMA_FILE, text_of
from tests.builders.documents import document, families, figure
from tests.builders.project import SMALL, Project
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

QUICK = Script(texts=('{"route": "chat"}',), inter_token_s=0.002)
SLOW = Script(texts=('{"route": "chat"}',), inter_token_s=0.008)
RATE = "bench.system_tok_s_c4"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def names(project: Project) -> list[str]:
    return sorted(path.name for path in (project.root / "artifacts" / "runs").glob("*"))


def put(project: Project, number: int, rate: float, device: str = "A card") -> str:
    """Put a run among those that are kept; return its id."""
    made = document({RATE: figure(rate, "tok/s")}, number=number, device=device)
    write_atomic(project.root / "artifacts" / "runs" / str(made.run_id) / "report.json", text_of(made))
    return str(made.run_id)


def test_each_all_that_measured_is_kept_listed_and_compared(project: Project) -> None:
    summary = project.root / "summary.md"
    script = project.root / "script.json"
    QUICK.save(script)
    with FakeVllm(script) as fake:
        words = ("all", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        first = project.invoke(*words, GITHUB_STEP_SUMMARY=str(summary))
        (kept,) = names(project)
        assert f"kept in artifacts/runs/{kept}" in first.stdout.splitlines()
        again = project.invoke(*words)
        assert "kept in" not in again.stdout
        assert names(project) == [kept]
        SLOW.save(script)
        project.invoke(*words, "--force")
    older, newer = names(project)
    assert older == kept
    told = json.loads("\n".join(project.says("history", "--json")))
    assert [run["id"] for run in told] == [newer, older]
    assert newer.rpartition("-")[2] in project.says("history")[1]
    only = ("--only", "bench.system_tok_s_c1,bench.system_tok_s_c8")
    compared = project.invoke("compare", "previous", "latest", *only)
    assert compared.returncode == 1, compared.stdout
    assert any(line.startswith("WORSE: bench.system_tok_s_c") for line in compared.stdout.splitlines())
    assert project.invoke("compare", newer, older, *only).returncode == 0
    as_json = json.loads(project.invoke("compare", "previous", "latest", "--json", "--set", f"compare.figures=[{only[1]}]").stdout)
    assert (as_json["a"], as_json["b"], as_json["exit_code"]) == (older, newer, 1)
    assert [row["metric"] for row in as_json["figures"] if row["decides"]] == only[1].split(",")
    assert [row["metric"] for row in as_json["figures"] if direction_of(row["metric"]) is None] == []
    folder = project.root / "artifacts" / "runs" / newer
    assert {path.name for path in folder.iterdir()} >= {"report.json", "REPORT.md", "records", "raw"}
    assert (folder / "records" / "bench.json").read_bytes() == (project.root / "artifacts" / "bench.json").read_bytes()
    text = (project.root / "report.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(json.loads(text))
    settings = {stage["stage"]: stage["settings"] for stage in json.loads(text)["stages"]}
    assert settings["bench"]["bench"]["output_tokens"] > 1
    assert summary.read_text(encoding="utf-8").startswith("### ")
    assert summary.read_text(encoding="utf-8").count("\n| ") == 1 + len(json.loads(text)["gates"]) + 1
    cases = list(ET.parse(project.root / "artifacts" / "junit.xml").iter("testcase"))
    assert [case.attrib["name"] for case in cases] == [gate["id"] for gate in json.loads(text)["gates"]]
    told_names = {one.name for one in families((project.root / "artifacts" / "metrics.prom").read_text("utf-8"))}
    assert {"vllm_poc_figure", "vllm_poc_gate", "vllm_poc_run"} <= told_names


def test_a_run_that_failed_is_kept_too(project: Project) -> None:
    done = project.invoke("all", "--attach", "http://127.0.0.1:1", "--profile", "cpu", *SMALL)
    assert done.returncode == 2
    (kept,) = names(project)
    assert json.loads(project.invoke("history", "--json").stdout)[0]["exit_code"] == 2
    assert project.invoke("compare", kept, kept).returncode == 2, "nothing to compare"


def test_history_of_an_empty_project(project: Project) -> None:
    assert project.says("history") == ["no run is kept yet; `./inv all` keeps one"]


def test_compare_says_what_it_cannot_compare(project: Project) -> None:
    assert project.refuses("compare", "latest", "previous") == [
        "error: no run is kept yet, so there is none that is latest",
        "  → `./inv all` keeps one",
    ]
    a, b = put(project, 1, 100), put(project, 2, 100, device="Another")
    assert project.refuses("compare", a, b) == [
        f"error: {a} and {b} differ in device (A card against Another)",
        "  → compare them all the same with --anyway",
    ]
    assert "NOT ALIKE: these runs differ in device (A card against Another)." in project.says("compare", a, b, "--anyway", "--only", RATE)
    assert project.refuses("compare", a, "nowhere")[0] == "error: no run, path or git ref is called 'nowhere'"
    put(project, 3, 50)
    assert project.invoke("compare", "000001", "000003").returncode == 2, "no figure has a gate, so none decides"
    assert project.invoke("compare", "000001", "000003", "--only", RATE).returncode == 1
    assert project.refuses("compare", "000001", "000003", "--only", "bench.system_tok_c4")[0] == (
        "error: neither run has a figure 'bench.system_tok_c4'; did you mean 'bench.system_tok_s_c4'?"
    )
    assert project.refuses("compare", "000001", "000003", "--only", ",")[0].startswith("error: --only: expected figures, as in bench.")


def test_compare_draws_what_it_compared_and_no_older_picture_stays(project: Project) -> None:
    a, b, empty = put(project, 1, 100), put(project, 2, 50), put(project, 3, 0)
    picture = project.root / "artifacts" / "compare.svg"
    done = project.invoke("compare", a, b, "--only", RATE)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "plot: artifacts/compare.svg")
    first = picture.read_bytes()
    assert f"<title>{b} (B) against {a} (A)</title>" in first.decode()
    assert "0.500 worse" in first.decode()
    as_json = json.loads(project.invoke("compare", a, b, "--json", "--only", RATE).stdout)
    assert as_json["plot"] == "artifacts/compare.svg"
    assert picture.read_bytes() == first
    assert json.loads(project.invoke("compare", empty, b, "--json").stdout)["plot"] is None, "nothing has a ratio to 0"
    assert not picture.exists()


def test_a_picture_that_cannot_be_written_changes_no_verdict(project: Project) -> None:
    a, b = put(project, 1, 100), put(project, 2, 50)
    (project.root / "artifacts" / "compare.svg").mkdir()
    done = project.invoke("compare", a, b, "--only", RATE)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "no plot: artifacts/compare.svg cannot be written (Is a directory)")
    as_json = json.loads(project.invoke("compare", a, b, "--json", "--only", RATE).stdout)
    assert (as_json["plot"], as_json["exit_code"]) == (None, 1)


def test_a_summary_that_cannot_be_written_changes_no_verdict(project: Project) -> None:
    words = ("report", "--only", "--profile", "cpu")
    full = project.root / "full.md"
    full.write_bytes(b"x" * 2**20)
    done = project.invoke(*words, GITHUB_STEP_SUMMARY=str(full))
    assert done.returncode == project.invoke(*words).returncode == 2
    assert "no job summary: what this step has written to it leaves no room (GitHub takes 1 MiB)" in done.stdout
    assert full.stat().st_size == 2**20
    done = project.invoke(*words, GITHUB_STEP_SUMMARY=str(project.root / "no" / "such" / "folder"))
    assert done.returncode == 2
    assert "no job summary: GITHUB_STEP_SUMMARY names a file that cannot be written (No such file or directory)" in done.stdout


def test_a_report_among_the_records_is_refused(project: Project) -> None:
    (line,) = project.refuses("report", "--only", "--set", "report.output=artifacts/REPORT.md")
    assert line == (
        "error: --set report.output: report.output: artifacts/ holds the records, report.json among them: choose another folder"
    )


def test_clean_keeps_runs_and_their_noise_unless_everything_goes(project: Project) -> None:
    run = put(project, 1, 100)
    write_atomic(project.root / "artifacts" / "noise.json", "{}")
    project.fail("serve", "it died")
    project.says("clean")
    assert names(project) == [run]
    assert (project.root / "artifacts" / "noise.json").exists()
    assert not (project.root / "artifacts" / "serve.json").exists()
    project.says("clean", "--everything")
    assert names(project) == []
    assert not (project.root / "artifacts" / "noise.json").exists()


def test_starts_of_no_number_are_one_line(project: Project) -> None:
    assert project.refuses("calibrate-noise", "--starts", "one") == [
        "error: --starts: expected a number from 2 on, got 'one'",
        "  → for example --starts 3",
    ]
