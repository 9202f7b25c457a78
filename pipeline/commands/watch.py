"""serve --watch: restart a server that crashes, until it crashes too often."""

import time
from datetime import datetime
from pathlib import Path

from pipeline.commands.chain import run_stage
from pipeline.commands.session import Options, Session, locked
from pipeline.commands.words import say, stop_line
from pipeline.engine.record import now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.server import state
from pipeline.server.keys import control_of
from pipeline.server.readiness import DEATH_S, gone
from pipeline.server.restarts import Crash, note, pause_s, recent
from pipeline.server.state import Launch
from pipeline.server.stop import stop_server
from pipeline.server.watch import Watch
from pipeline.stages.serve import Server
from pipeline.terminal import Output, show

WATCH_S = 0.5


def keep_running(root: Path, options: Options) -> Output:
    """Start the server and restart it after each crash.

    Ends on Ctrl-C, when another command stops the server, or with ServerError after too many crashes.
    """
    session = Session(root, options)
    workspace = session.workspace
    try:
        start = run_stage(root, options, "serve")
        if start.code:
            return start
        show(start.parts)
        crashes: list[datetime] = []
        while (launch := state.read(workspace)) is not None:
            await_end(launch, workspace)
            cause = clean_up(launch, workspace)
            while cause:
                crashes = record_crash(launch, cause, crashes, session)
                time.sleep(pause_s(len(crashes)))
                output = run_stage(root, options, "serve", wait=True)
                show(output.parts)
                failure = session.pipeline.outcome(Server).failure
                cause = failure.message if output.code and failure else ""
    except KeyboardInterrupt:
        current = state.read(workspace)
        if current is not None and current.stays:  # any other belongs to a running command
            say(stop_line(current, stop_server(current, workspace)))
        raise
    return Output(0, ["the server was stopped by another command"], None)


def await_end(launch: Launch, workspace: Workspace) -> None:
    """Wait until the launch's server, its engine or a worker has died."""
    watch = Watch(launch, control_of(launch, workspace))
    while watch.alive():
        time.sleep(WATCH_S)


def clean_up(launch: Launch, workspace: Workspace) -> str:
    """Clean up after a server that ended; return why it died, or an empty text if another command stopped or replaced it."""
    with locked(workspace, wait=True):
        if state.current(workspace, launch.id) is None:
            return ""
        state.dies_within(launch.pid, launch.created, DEATH_S)  # let it finish writing its log
        cause = gone(launch, workspace).message
        stop_server(launch, workspace)
        return cause


def record_crash(launch: Launch, cause: str, crashes: list[datetime], session: Session) -> list[datetime]:
    """Record a crash and return the crashes that still count; ServerError if there are too many."""
    settings, at = session.config.watch, now()
    crashes_in_window = [earlier for earlier in [*crashes, at] if recent(earlier, at, settings)]
    crash = Crash(at=at, launch_id=launch.id, cause=cause, restart=len(crashes_in_window) <= settings.max_restarts)
    note(session.workspace, crash)
    if not crash.restart:
        count_text = f"{len(crashes_in_window)} crashes within {settings.window_s:g} s, so a restart does not help"
        raise ServerError(f"{cause}; {count_text}", "see `./inv logs`")
    say(f"{at:%Y-%m-%d %H:%M:%S} UTC  {cause}; starting again in {pause_s(len(crashes_in_window)):g} s")
    return crashes_in_window
