"""install and download-model side by side: one fails and the other finishes; Ctrl-C ends both."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.builders.project import Project
from tests.fakes.environment import until
from tests.fakes.fake_hub import FakeHub
from tests.fakes.forkserver import Process
from tests.integration.commands.busy import tiny_hub


@contextmanager
def at_work(project: Project, hub: FakeHub, python: Path) -> Iterator[Process]:
    """Have `all` at work on a model that the hub does not yet give and a server's environment that somebody else made."""
    model = {"name": "tiny", "source": "hub", "repo": hub.repo, "min_free_gib": 0.01}
    project.configure(profile="cpu", profiles={"cpu": {"model": model, "install": {"python": str(python)}}})
    process = project.start("all", HF_ENDPOINT=hub.endpoint)
    try:
        assert hub.stalling.wait(60)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def states(project: Project) -> dict[str, str]:
    return {name: project.record(name)["status"] for name in ("install", "download-model") if project.has(name)}


def test_install_fails_while_the_model_is_fetched_which_goes_on(project: Project) -> None:
    with tiny_hub() as hub, at_work(project, hub, Path("/nowhere/python")) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("✗ install failed")):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert states(project) == {"install": "failed"}
        hub.go_on.set()
        _, err = process.communicate(timeout=60)
    shown = "".join(lines) + err
    assert process.returncode == 2
    assert "✓ download-model made" in shown
    assert "✗ serve blocked: needs install, which failed" in shown
    assert "▶ install: never ran" in shown
    assert "▶ download-model: never ran" in shown
    assert states(project) == {"install": "failed", "download-model": "ok"}


def test_ctrl_c_ends_both_and_what_they_started_and_leaves_no_record(project: Project) -> None:
    note = project.root / "pid"
    python = project.root / "python"
    python.write_text(f'#!/bin/sh\necho "$$ " > {note}\nexec sleep 600\n', encoding="utf-8")
    python.chmod(0o755)
    with tiny_hub() as hub, at_work(project, hub, python) as process:
        until(lambda: note.exists() and note.read_text(encoding="utf-8").endswith(" \n"), "the program to start")
        os.kill(process.pid, signal.SIGINT)  # to this process alone, as `kill` does; a terminal's Ctrl-C reaches the others too
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert not psutil.pid_exists(int(note.read_text(encoding="utf-8")))
    assert states(project) == {}
    assert project.says("status")[2].split(maxsplit=1) == ["install", "never ran"]
