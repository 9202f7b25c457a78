"""Runs that are kept, found again, listed and pruned."""

import gzip
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import RunsConfig
from pipeline.engine.record import Store, now, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import PipelineError, RecordError
from pipeline.report.formats.document import Document, text_of
from pipeline.report.noise import NOISE_NOTE, RunNoise
from pipeline.runs import history
from pipeline.runs import kept as runs
from pipeline.terminal import Silent, plain
from tests.builders.documents import document, figure, gate

TOKEN = "hf_" + "a1B2" * 8


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, Silent())


def keep(made: Document, workspace: Workspace, most: int = 20, most_mib: int = 500) -> Path | None:
    """Keep the run of this document as `all` does."""
    report = workspace.root / "REPORT.md"
    write_atomic(report, "# A report\n")
    write_atomic(workspace.root / "report.json", text_of(made))
    return runs.keep(workspace.root / "report.json", report, RunsConfig(keep=most, max_mib=most_mib), workspace)


def kept(number: int, workspace: Workspace, **settings: int) -> Path:
    folder = keep(document(number=number), workspace, **settings)
    assert folder is not None
    return folder


def names(workspace: Workspace) -> list[str]:
    return [path.name for path in runs.kept(workspace)]


def test_a_run_has_report_records_stamps_and_logs_without_secrets(workspace: Workspace) -> None:
    for name, text in {
        "bench.json": "{}",
        "stop.json": "{}",
        "launch.json": "{}",
        "raw/bench.jsonl.gz": "x",
        "logs/install.log": "done",
        "launches/L1/server.log": f"token {TOKEN}",
        "launches/L1/samples.jsonl": "{}",
        "launches/L2/server.log": "of another",
    }.items():
        write_atomic(workspace.artifacts / name, text)
    write_atomic(workspace.root / "report" / "memory.svg", "<svg/>")
    folder = kept(1, workspace)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "REPORT.md",
        "logs/L1-samples.jsonl.gz",
        "logs/L1-server.log.gz",
        "logs/install.log.gz",
        "raw/bench.jsonl.gz",
        "records/bench.json",
        "records/stop.json",
        "report.json",
        "report/memory.svg",
    ]
    assert gzip.decompress((folder / "logs" / "L1-server.log.gz").read_bytes()) == b"token [redacted]"
    assert runs.read(folder, workspace).document == document(number=1)


def test_a_run_keeps_the_noise_that_was_measured_on_what_it_ran_on(workspace: Workspace) -> None:
    facts = {"model": "SmolLM2", "vllm": "0.32.0", "starts": 5, "simulated": False, "figures": {}}
    for number, device in enumerate(("A card", "Another card"), 1):
        noise = RunNoise.model_validate({**facts, "device": device})
        Store(workspace.artifacts).write(NOISE_NOTE, {}, now(), 1, noise)
        copy = kept(number, workspace) / "records" / "noise.json"
        assert copy.exists() == (device == "A card")
        if copy.exists():
            assert copy.read_bytes() == (workspace.artifacts / "noise.json").read_bytes()
    write_atomic(workspace.artifacts / "noise.json", '{"schema_version": 99}')
    assert not (kept(3, workspace) / "records" / "noise.json").exists(), "of a later version, and the run is kept all the same"


def test_a_run_that_is_kept_already_is_not_kept_again_nor_changed(workspace: Workspace) -> None:
    folder = kept(1, workspace)
    before = (folder / "report.json").stat().st_mtime_ns
    assert keep(document(number=1, exit_code=1), workspace) is None
    assert (folder / "report.json").stat().st_mtime_ns == before


def test_nothing_measured_is_no_run(workspace: Workspace) -> None:
    assert keep(document().model_copy(update={"run_id": None}), workspace) is None
    assert names(workspace) == []


def test_a_copy_that_breaks_off_leaves_no_run_and_what_a_killed_one_left_goes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = runs.folder_of(workspace) / f"{runs.UNFINISHED_PREFIX}-of-a-killed-command" / "report.json"
    write_atomic(left, "{}")
    assert names(workspace) == []
    with monkeypatch.context() as patch:
        patch.setattr(runs, "compress", lambda *_: 1 / 0)
        write_atomic(workspace.artifacts / "logs" / "install.log", "done")
        with pytest.raises(ZeroDivisionError):
            kept(1, workspace)
    assert list(runs.folder_of(workspace).iterdir()) == []
    kept(1, workspace)
    assert len(names(workspace)) == 1


def test_the_oldest_go_and_what_a_user_named_stays(workspace: Workspace) -> None:
    first = kept(1, workspace)
    mine = first.rename(first.with_name("before-the-new-driver"))
    for number in range(2, 6):
        kept(number, workspace, most=2)
    assert names(workspace) == [document(number=5).run_id, document(number=4).run_id, mine.name]


def test_the_newest_stays_however_large_and_whatever_the_clock_says(workspace: Workspace) -> None:
    kept(2, workspace)
    write_atomic(workspace.artifacts / "raw" / "bench.jsonl.gz", bytes(2**20 + 1))
    assert kept(1, workspace, most_mib=1).exists()
    assert names(workspace) == [document(number=1).run_id]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(1, 30), st.integers(1, 500))
def test_as_many_runs_stay_as_both_limits_allow(sizes: list[int], most: int, most_bytes: int) -> None:
    count = runs.count_to_keep(sizes, most, most_bytes)
    allowed = [n for n in range(1, len(sizes) + 1) if n == 1 or (n <= most and sum(sizes[:n]) <= most_bytes)]
    assert count == max(allowed)


# Finding one.


def test_runs_are_found_by_word_id_beginning_and_path(workspace: Workspace) -> None:
    first, second = kept(1, workspace), kept(0xABC, workspace)
    for words in ("latest", second.name, "000abc", "000a", str(second), f"artifacts/runs/{second.name}/report.json"):
        assert runs.find(words, workspace).document == document(number=0xABC), words
    assert runs.find("previous", workspace).folder == first
    assert runs.find("report.json", workspace).document == document(number=0xABC)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nowhere", "no run, path or git ref is called 'nowhere'"),
        ("", "no run, path or git ref is called ''"),
        ("git:", "no run, path or git ref is called ''"),
        ("--help", "no run, path or git ref is called '--help'"),
        ("000", "000 may be "),
        ("2026", "2026 may be "),
        ("empty", "empty holds no report.json"),
    ],
)
def test_what_names_no_run_is_one_line(workspace: Workspace, words: str, says: str) -> None:
    kept(1, workspace)
    kept(2, workspace)
    (workspace.root / "empty").mkdir()
    with pytest.raises(PipelineError) as caught:
        runs.find(words, workspace)
    assert caught.value.message.startswith(says)
    assert caught.value.hint


def test_there_is_no_latest_or_previous_run_yet(workspace: Workspace) -> None:
    with pytest.raises(PipelineError, match=r"^no run is kept yet, so there is none that is latest$"):
        runs.find("latest", workspace)
    kept(1, workspace)
    with pytest.raises(PipelineError, match=r"^only one run is kept, so there is none that is previous$"):
        runs.find("previous", workspace)


def test_a_git_ref_that_holds_a_report(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words], cwd=workspace.root, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "nothing")
    with pytest.raises(PipelineError, match=r"^git ref HEAD holds no report\.json$"):
        runs.find("git:HEAD", workspace)
    write_atomic(workspace.root / "report.json", text_of(document(number=7)))
    git("add", "report.json")
    git("commit", "--quiet", "-m", "a report")
    git("tag", "v1")
    for words in ("v1", "git:v1", "git:HEAD"):
        found = runs.find(words, workspace)
        assert (found.name, found.document, found.folder) == (f"git:{words.removeprefix('git:')}", document(number=7), None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PipelineError, match="no run, path or git ref is called 'v1'"):
        runs.find("v1", workspace)


# history.


def test_history_lists_the_newest_first_with_verdict_and_figures(workspace: Workspace) -> None:
    kept(1, workspace)
    keep(document({"bench.decode_tok_s_p50": figure(75.44, "tok/s")}, (gate("a"), gate("b", "FAIL")), number=2, exit_code=1), workspace)
    header, second, first = plain(history.lines(workspace))
    assert " ".join(header.split()) == "time (UTC) id profile device model verdict TTFT p95 decode router p50 VRAM peak"
    assert second.startswith("2026-01-02 05:05:05  000002  cpu ")
    assert "NOT PASSED (1 of 2 gates)" in second
    assert "75.44 tok/s" in second
    assert first.startswith("2026-01-02 04:05:05  000001  cpu ")
    told = history.data(workspace)
    assert [(run["id"], run["exit_code"]) for run in told] == [(document(number=2).run_id, 1), (document(number=1).run_id, 0)]
    assert told[0]["figures"]["bench.decode_tok_s_p50"] == 75.44


def test_history_of_nothing(workspace: Workspace) -> None:
    assert history.lines(workspace) == ["no run is kept yet; `./inv all` keeps one"]
    assert history.data(workspace) == []


def test_a_run_that_cannot_be_read_is_told_and_hides_no_other(workspace: Workspace) -> None:
    kept(1, workspace)
    write_atomic(kept(2, workspace) / "report.json", "{")
    lines = plain(history.lines(workspace))
    assert len(lines) == 3
    assert lines[-1].startswith("cannot be read: artifacts/runs/20260102T050405Z-000002/report.json is not readable JSON")
    assert "is not readable JSON" in history.data(workspace)[0]["error"]
    with pytest.raises(RecordError):
        runs.find("latest", workspace)
