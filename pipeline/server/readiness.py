"""Wait until a started server really answers, showing its phases; a dead one is diagnosed from its log."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.client.control import Completion, Control
from pipeline.errors import MeasureError, ServerError
from pipeline.server import state
from pipeline.server.diagnosis import diagnose, last_error
from pipeline.server.phases import Phases
from pipeline.server.state import Launch
from pipeline.workspace import Workspace

POLL_S = 0.2
FIRST_ANSWER_S = 120.0
DEATH_S = 3.0
SILENT = "it ended without a word, as after SIGKILL (by hand, or by the kernel for lack of memory: `sudo dmesg` tells)"


def wait_until_ready(launch: Launch, log: Path, control: Control, timeout_s: float, say: Callable[[str], None]) -> tuple[Phases, float]:
    """Return (phases, seconds until a completion came back); ServerError with the classified cause when it dies."""
    began = time.monotonic()
    phases = Phases()
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
            if elapsed > timeout_s:
                raise ServerError(
                    f"the server was not ready after {timeout_s:.0f} s (in phase {phases.began[-1][0]})",
                    "see its log; a slow machine may need a larger serve.start_timeout_s",
                    log,
                )
            time.sleep(POLL_S)
    try:
        first = first_completion(control, launch.model)
    except MeasureError as error:
        if state.dies_within(launch.pid, launch.created, DEATH_S):
            raise died(log) from error
        raise ServerError(f"the server listens but does not complete a request: {error.message}", "see its log", log) from error
    text = first.choices[0].message.content if first.choices else None
    noise = launch.settings.load_format == "dummy"  # may decode to nothing
    if not (text or noise) or first.usage.completion_tokens < 1:
        raise ServerError("the server's first completion is empty", "see its log; the model's files may be damaged", log)
    return phases, time.monotonic() - began


def first_completion(control: Control, model: str) -> Completion:
    """Return the answer to one short request."""
    messages = [{"role": "user", "content": "Say hello."}]
    return control.chat({"model": model, "messages": messages, "temperature": 0, "max_tokens": 8}, FIRST_ANSWER_S)


def died(log: Path, when: str = "did not start") -> ServerError:
    """Return the error for a server that ended by itself, with the cause that its log shows."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    cause = diagnose(text)
    if cause:
        return ServerError(f"the server {when}: {cause.says}", cause.fix, log)
    last = last_error(text)
    return ServerError(f"the server {when}: {last or SILENT}", "see its log for the whole story", log)


def gone(launch: Launch, workspace: Workspace) -> ServerError:
    """Return what became of a server that nobody stopped and that runs no more."""
    if launch.boot != state.boot_id():
        return ServerError("the server died: the machine was restarted", "start it again: `invoke serve`")
    return died(workspace.root / launch.log, "died")
