"""Which server of ours runs, on disk, so that any later command finds it or its remains."""

import os
import time
from datetime import datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import ServeConfig
from pipeline.record import write_atomic
from pipeline.workspace import Workspace

CLOCK_STEP_S = 0.05  # creation times come in clock ticks of 10 ms


class Launch(BaseModel):
    """One start of the server: its leader by pid and creation time, where it listens and logs, and how to start it again."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: str
    pid: int
    created: float
    host: str
    port: int
    model: str
    log: str
    command: list[str]
    settings: ServeConfig
    started: datetime
    sampler_pid: int | None = None
    sampler_created: float | None = None

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"


def launch_file(workspace: Workspace) -> Path:
    """Return the file that names the current launch."""
    return workspace.artifacts / "launch.json"


def read(workspace: Workspace) -> Launch | None:
    """Return the current launch, running or not; None when there is none."""
    try:
        return Launch.model_validate_json(launch_file(workspace).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def write(workspace: Workspace, launch: Launch) -> None:
    """Make `launch` the current one."""
    write_atomic(launch_file(workspace), launch.model_dump_json(indent=1) + "\n")


def clear(workspace: Workspace) -> None:
    """Forget the current launch."""
    launch_file(workspace).unlink(missing_ok=True)


def process(pid: int | None, created: float | None) -> psutil.Process | None:
    """Return the process of that pid and creation time, or None when it is gone or another one took the pid."""
    if pid is None or created is None:
        return None
    try:
        found = psutil.Process(pid)
        if abs(found.create_time() - created) < CLOCK_STEP_S and found.status() != psutil.STATUS_ZOMBIE:
            return found
    except psutil.Error:
        pass
    return None


def dies_within(pid: int, created: float, seconds: float) -> bool:
    """Tell whether the process is gone, or goes within `seconds`: a connection breaks a moment before its process ends."""
    deadline = time.monotonic() + seconds
    while process(pid, created) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def members(launch: Launch) -> list[psutil.Process]:
    """Return the living processes of the launch: its leader's session, which outlives the leader itself."""
    found: list[psutil.Process] = []
    if psutil.pid_exists(launch.pid) and not is_leader(launch):
        return found  # a session's id is not given anew while it has members, so ours has none
    for candidate in psutil.process_iter():
        try:
            in_session = os.getsid(candidate.pid) == launch.pid and candidate.create_time() >= launch.created - CLOCK_STEP_S
            if in_session and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
        except (OSError, psutil.Error):
            continue
    return found


def is_leader(launch: Launch) -> bool:
    """Tell whether the process with the leader's pid is the leader, alive or a zombie."""
    try:
        return abs(psutil.Process(launch.pid).create_time() - launch.created) < CLOCK_STEP_S
    except psutil.Error:
        return False


def is_running(launch: Launch) -> bool:
    """Tell whether the launch's leader lives."""
    return process(launch.pid, launch.created) is not None
