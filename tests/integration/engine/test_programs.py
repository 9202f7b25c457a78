"""A program that a stage runs: its output, and its end when the stage is interrupted in a thread."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pipeline.engine.programs import run_program
from pipeline.engine.stage_run import end
from tests.fakes.environment import until


def test_it_returns_code_output_and_errors() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_program([sys.executable, "-c", code]) == (3, "out\n", "err\n")


def test_it_writes_both_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file:
        assert run_program([sys.executable, "-c", "import sys; print('err', file=sys.stderr)"], file) == (0, "", "")
    assert path.read_text(encoding="utf-8") == "err\n"


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        run_program(["/nowhere/program"])


@pytest.mark.parametrize("into_file", [False, True])
def test_an_interrupt_of_the_thread_ends_the_program(tmp_path: Path, into_file: bool) -> None:
    path = tmp_path / "log"
    note = tmp_path / "pid"
    program = [sys.executable, "-c", f"import os, time; open({str(note)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)"]

    def work() -> None:
        with path.open("w", encoding="utf-8") as file, pytest.raises(SystemExit):
            run_program(program, file if into_file else subprocess.PIPE)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: note.exists() and note.read_text(encoding="utf-8").endswith(" "), "the program to start")
    end(thread)
    thread.join(60)
    assert not thread.is_alive()
    assert not psutil.pid_exists(int(note.read_text(encoding="utf-8")))
