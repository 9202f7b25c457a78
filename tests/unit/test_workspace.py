"""Progress with the time that is left."""

from pathlib import Path

import pytest

from pipeline.workspace import Workspace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_comes_after_two_seconds_and_then_every_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    told = Workspace(tmp_path).progress("bench", 10, clock)
    for done in range(1, 11):
        clock.now = float(done)
        told(done)
    assert capsys.readouterr().err == "  bench: 2 of 10, 8 s left\n  bench: 7 of 10, 3 s left\n"


def test_progress_on_a_terminal_overwrites_itself_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = Clock()
    told = Workspace(tmp_path).progress("bench", 2, clock)
    clock.now = 3.0
    told(1)
    told(2)
    said = capsys.readouterr().err
    assert said == "  bench: 1 of 2, 3 s left\x1b[K\r\x1b[K\r"


def test_a_quick_or_quiet_one_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    Workspace(tmp_path).progress("bench", 2, clock)(1)
    quiet = Workspace(tmp_path, quiet=True).progress("bench", 2, clock)
    clock.now = 60
    quiet(1)
    assert capsys.readouterr().err == ""
