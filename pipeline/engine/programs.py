"""Programs that a stage runs to their end."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

LOOK_S = 0.1


def run_program(command: Sequence[str], output: int | IO[str] = subprocess.PIPE) -> tuple[int, str, str]:
    """Return (exit code, standard output, standard error); with `output` a file, both go there.

    Unlike `subprocess.run` it looks up now and then, so that an interrupt reaches it in any thread; the program then ends too.
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
