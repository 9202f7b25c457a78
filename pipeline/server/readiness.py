"""Waiting for a started server: its phases are shown until it answers, and a death is diagnosed from its log."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.client.control import Control
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, OutOfMemoryError, ServerError
from pipeline.server import state
from pipeline.server.stall import Progress, stacks, work_done
from pipeline.server.state import Launch
from pipeline.vllm.diagnosis import diagnose, last_error
from pipeline.vllm.ladder import MEMORY_CAUSES
from pipeline.vllm.phases import Phases

POLL_S = 0.2
PROGRESS_CHECK_S = 2.0
DEATH_S = 3.0
SILENT = "it ended without a word, as after SIGKILL (by hand, or by the kernel for lack of memory: `sudo dmesg` tells)"


def wait_until_ready(launch: Launch, log: Path, control: Control, say: Callable[[str], None]) -> tuple[Phases, float]:
    """Wait for the first completion; return (phases, seconds until then). ServerError names the cause of a death or a hang."""
    settings = launch.settings
    start_s = last_check = time.monotonic()
    phases, progress = Phases(), Progress()
    with log.open(encoding="utf-8", errors="replace") as stream:
        pending = ""
        while True:
            answers = control.answers()  # before the log is read, which then holds every line up to the answer
            elapsed = time.monotonic() - start_s
            pending += stream.read()
            *lines, pending = pending.split("\n")
            for line in lines:
                phase = phases.see(line, elapsed)
                if phase:
                    say(f"{elapsed:5.1f} s  {phase}")
            if not state.is_running(launch):
                raise died(log)
            if answers:
                break
            if elapsed > settings.start_timeout_s:
                raise ServerError(
                    f"the server was not ready after {settings.start_timeout_s:g} s ({abort_and_locate(launch, log, phases)})",
                    "see its log; a slow machine may need a larger serve.start_timeout_s",
                    log,
                )
            if time.monotonic() - last_check > PROGRESS_CHECK_S:
                last_check = time.monotonic()
                if progress.idle_s(elapsed, log.stat().st_size, *work_done(launch)) > settings.stall_timeout_s:
                    raise ServerError(
                        f"the server hangs: nothing has moved for {settings.stall_timeout_s:g} s ({abort_and_locate(launch, log, phases)})",
                        "see its log, which ends with the stacks; serve.stall_timeout_s says how long to be patient",
                        log,
                    )
            time.sleep(POLL_S)
    try:
        completion = control.first_words(launch.model)
    except MeasureError as error:
        if state.dies_within(launch.pid, launch.created, DEATH_S):
            raise died(log) from error
        raise ServerError(f"the server listens but does not complete a request: {error.message}", log_words(log), log) from error
    random_weights = settings.load_format == "dummy"  # random tokens may decode to no text
    if not (random_weights and completion.usage.completion_tokens) and not completion.says_something:
        raise ServerError(
            f"the server's first completion says nothing: {completion.text!r}", "see its log; the model's files may be damaged", log
        )
    return phases, time.monotonic() - start_s


def abort_and_locate(launch: Launch, log: Path, phases: Phases) -> str:
    """Abort the server's processes; return the phase of the start and the innermost frame of each process."""
    return "; ".join([f"in phase {phases.began[-1][0]}", *stacks(launch, log)])


def died(log: Path, outcome: str = "did not start") -> ServerError:
    """Return the error for a server that ended by itself, with the cause that its log shows."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    cause = diagnose(text)
    if cause and cause.name in MEMORY_CAUSES:
        return OutOfMemoryError(f"the server {outcome}: {cause.says}", cause.fix, log, cause.name)
    if cause:
        return ServerError(f"the server {outcome}: {cause.says}", cause.fix, log)
    error_line = last_error(text)
    return ServerError(f"the server {outcome}: {error_line or SILENT}", "see its log for the whole story", log)


def log_words(log: Path) -> str:
    """Return what a server that still runs says last in its log beside information, as a hint."""
    words = last_error(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
    return f"its log says last: {words}" if words else "its log names no error; try again, and `./inv logs` shows it whole"


def gone(launch: Launch, workspace: Workspace) -> ServerError:
    """Return the error for a server that no longer runs although nobody stopped it."""
    if launch.boot != state.boot_id():
        return ServerError("the server died: the machine was restarted", "start it again: `invoke serve`")
    return died(workspace.root / launch.log, "died")
