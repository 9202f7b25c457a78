"""Commands where nothing is on record, or the disk refuses."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.builders.project import STAGE_NAMES, Project


def test_status_of_an_empty_project(untouched: Project) -> None:
    lines = untouched.says("status", "--profile", "cpu")
    assert lines[0] == "server: not running"
    states = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:-1]}
    assert tuple(states) == STAGE_NAMES
    assert states.pop("check-gpu") == "looks at the machine each time"
    assert set(states.values()) == {"never ran"}
    assert lines[-1] == "profile cpu (--profile)"


def test_status_without_a_profile_chosen_yet(untouched: Project) -> None:
    assert untouched.says("status")[-1] == "profile auto (check-gpu has not chosen one)"


def test_why_of_an_empty_project(project: Project) -> None:
    lines = project.says("why", "--profile", "cpu")
    assert [line.split()[0] for line in lines[:-1]] == list(STAGE_NAMES)
    assert [line.split(maxsplit=1)[1] for line in lines[1:-1]] == ["never ran"] * 8
    assert [path.name for path in (project.root / "artifacts").glob("[a-z]*.json")] == ["check-gpu.json"]


def test_why_of_one_stage_names_that_stage_alone(project: Project) -> None:
    lines = project.says("download-model", "--why", "--profile", "cpu")
    assert [line.split() for line in lines[:-1]] == [["download-model", "never", "ran"]]
    assert not (project.root / "models").exists()


@pytest.mark.parametrize("task", ["stop", "status", "logs"])
def test_a_note_of_the_server_that_cannot_be_read_is_not_taken_for_no_server(project: Project, task: str) -> None:
    (project.root / "artifacts").mkdir(exist_ok=True)
    note = project.root / "artifacts" / "launch.json"
    note.write_text('{"pid": 7}', encoding="utf-8")
    assert project.refuses(task)[0].startswith("error: artifacts/launch.json does not tell which server runs here")
    assert note.exists()


def test_logs_before_the_first_server(untouched: Project) -> None:
    assert untouched.refuses("logs") == ["error: no server log yet", "  → start a server with `./inv serve`"]


def test_logs_of_the_last_server(project: Project) -> None:
    for launch, text in (("2026-01-01", "old\n"), ("2026-01-02", "new\n")):
        folder = project.root / "artifacts" / "launches" / launch
        folder.mkdir(parents=True)
        (folder / "server.log").write_text(text, encoding="utf-8")
    assert project.says("logs", "--follow") == ["new"]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Have a small file system of its own mounted there."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs rights that this user lacks: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_enough_room_is_all_it_takes(project: Project) -> None:
    folder = project.root / "artifacts"
    with mounted(folder, "size=256k"):
        project.says("check-gpu")
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        done = project.invoke("check-gpu")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-2:] == [
            "error: No space left on device",
            "  → free some disk space, then run the same command again",
        ]
        filler.unlink()
        project.says("check-gpu")


def test_a_read_only_disk_is_one_line(project: Project) -> None:
    with mounted(project.root / "artifacts", "ro"):
        assert project.refuses("check-gpu") == [
            f"error: {project.root}/artifacts/.lock: Read-only file system",
            "  → the file system is mounted read-only: mount it for writing, or move the project",
        ]


def test_a_folder_where_the_report_belongs_is_one_line(project: Project) -> None:
    (project.root / "REPORT.md").mkdir()
    done = project.invoke("report", "--only", "--profile", "cpu")
    assert done.returncode == 2
    assert "REPORT.md: Is a directory (move it away: a file is to stand there)" in done.stderr


def test_stop_with_nothing_running(untouched: Project) -> None:
    assert untouched.says("stop") == ["no server of ours is running"]


def test_the_remedy_of_a_server_of_somebody_else_is_refused(untouched: Project) -> None:
    assert untouched.refuses("determinism-remedy", "--set", "attach.url=http://gpu-box:8000") == [
        "error: the server at http://gpu-box:8000 is not ours to start with another environment",
        "  → unset attach.url for a server of our own",
    ]


def test_the_memory_of_a_server_of_somebody_else_is_not_soaked(untouched: Project) -> None:
    assert untouched.refuses("soak", "--attach", "http://gpu-box:8000") == [
        "error: the server at http://gpu-box:8000 is not ours to measure the memory of",
        "  → unset attach.url for a server of our own",
    ]


def test_a_soak_of_no_hours_is_refused(untouched: Project) -> None:
    assert untouched.refuses("soak", "--hours", "a few") == [
        "error: --hours: expected a number above 0, got 'a few'",
        "  → for example --hours 4, or --hours 0.5",
    ]


def test_clean_of_an_empty_project(project: Project) -> None:
    assert project.says("clean") == ["removed nothing"]


def test_clean_removes_records_and_keeps_what_was_dear(project: Project) -> None:
    project.fail("serve", "it died")
    (project.root / "artifacts" / ".gitignore").write_text("*\n", encoding="utf-8")
    (project.root / "artifacts" / "launches" / "one").mkdir(parents=True)
    dear = [project.root / name for name in ("models", "venv-vllm", ".cache")]
    for folder in dear:
        (folder / "inner").mkdir(parents=True)
    project.says("clean")
    assert {path.name for path in (project.root / "artifacts").iterdir()} <= {".gitignore", ".lock"}
    assert all((folder / "inner").is_dir() for folder in dear)
    elsewhere = project.root.parent / "another disk"
    (project.root / "models").rename(elsewhere)
    (project.root / "models").symlink_to(elsewhere)
    project.says("clean", "--everything")
    assert (elsewhere / "inner").is_dir(), "a link goes, what it leads to stays"
    assert not any(folder.exists() for folder in dear)
    assert (project.root / "artifacts" / ".gitignore").exists()
