"""Programs that a stage runs to completion."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

LOOK_S = 0.1


def run_program(command: Sequence[str], output: int | IO[str] = subprocess.PIPE) -> tuple[int, str, str]:
    """Run the program and return (exit code, standard output, standard error); if `output` is a file, both streams go there.

    Unlike `subprocess.run` it polls, so that an interrupt reaches it in any thread; the program is then killed.
    """
    errors = subprocess.PIPE if output == subprocess.PIPE else subprocess.STDOUT
    with subprocess.Popen(command, stdout=output, stderr=errors, text=True) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    out, err = process.communicate(timeout=LOOK_S)
                    return process.returncode, out or "", err or ""
        except BaseException:
            process.kill()
            raise
