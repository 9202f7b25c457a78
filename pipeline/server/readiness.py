"""Wait until a started server really answers, showing its phases; a dead one is diagnosed from its log."""

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
    """Return (phases, seconds until a completion came back); ServerError with the cause when it dies, or where it hangs."""
    settings = launch.settings
    began = looked = time.monotonic()
    phases, progress = Phases(), Progress()
    with log.open(encoding="utf-8", errors="replace") as lines:
        pending = ""
        while True:
            elapsed = time.monotonic() - began
            pending += lines.read()
            *whole, pending = pending.split("\n")
            for line in whole:
                phase = phases.see(line, elapsed)
                if phase:
                    say(f"{elapsed:5.1f} s  {phase}")
            if not state.is_running(launch):
                raise died(log)
            if control.answers():
                break
            if elapsed > settings.start_timeout_s:
                raise ServerError(
                    f"the server was not ready after {settings.start_timeout_s:g} s ({standing(launch, log, phases)})",
                    "see its log; a slow machine may need a larger serve.start_timeout_s",
                    log,
                )
            if time.monotonic() - looked > PROGRESS_CHECK_S:
                looked = time.monotonic()
                if progress.idle_s(elapsed, log.stat().st_size, *work_done(launch)) > settings.stall_timeout_s:
                    raise ServerError(
                        f"the server hangs: nothing has moved for {settings.stall_timeout_s:g} s ({standing(launch, log, phases)})",
                        "see its log, which ends with the stacks; serve.stall_timeout_s says how long to be patient",
                        log,
                    )
            time.sleep(POLL_S)
    try:
        first = control.greet(launch.model)
    except MeasureError as error:
        if state.dies_within(launch.pid, launch.created, DEATH_S):
            raise died(log) from error
        raise ServerError(f"the server listens but does not complete a request: {error.message}", "see its log", log) from error
    noise = settings.load_format == "dummy"  # may decode to nothing
    if not (noise and first.usage.completion_tokens) and not first.says_something:
        text = first.choices[0].message.content if first.choices else None
        raise ServerError(f"the server's first completion says nothing: {text!r}", "see its log; the model's files may be damaged", log)
    return phases, time.monotonic() - began


def standing(launch: Launch, log: Path, phases: Phases) -> str:
    """Return the phase that a start is in and where its processes stand, which ends them."""
    return "; ".join([f"in phase {phases.began[-1][0]}", *stacks(launch, log)])


def died(log: Path, when: str = "did not start") -> ServerError:
    """Return the error for a server that ended by itself, with the cause that its log shows."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    cause = diagnose(text)
    if cause and cause.name in MEMORY_CAUSES:
        return OutOfMemoryError(f"the server {when}: {cause.says}", cause.fix, log, cause.name)
    if cause:
        return ServerError(f"the server {when}: {cause.says}", cause.fix, log)
    last = last_error(text)
    return ServerError(f"the server {when}: {last or SILENT}", "see its log for the whole story", log)


def gone(launch: Launch, workspace: Workspace) -> ServerError:
    """Return what became of a server that nobody stopped and that runs no more."""
    if launch.boot != state.boot_id():
        return ServerError("the server died: the machine was restarted", "start it again: `invoke serve`")
    return died(workspace.root / launch.log, "died")
