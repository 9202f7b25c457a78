"""The current launch, kept on disk so that every later command finds our server or its remains."""

import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from pipeline.config.schema import ServeConfig
from pipeline.engine.migrations import migrated
from pipeline.engine.record import write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.values import Frozen

SAMPLES = "samples.jsonl"  # in the launch's folder
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TICKS = 19  # index of starttime among the fields after the name in /proc/<pid>/stat


class Launch(Frozen):
    """One start of the server: its leading process, where it listens and logs, and how to start it again.

    The leader is identified by pid, creation time and boot. Creation times are seconds since boot, which a step of the wall
    clock does not change. A launch that `stays` was started by `serve`; any other belongs to the command that started it,
    or to the next command if that one was killed.
    """

    id: str
    pid: int
    created: float
    boot: str
    host: str
    port: int
    model: str
    log: str
    command: list[str]
    settings: ServeConfig
    started: datetime
    request_fields: dict[str, Any] = {}
    sampler_pid: int | None = None
    sampler_created: float | None = None
    stays: bool = False

    @property
    def base_url(self) -> str:
        """Return the URL for requests; a wildcard address is replaced by the loopback address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def keyed(self) -> bool:
        """Tell whether the server requires our API key."""
        return self.settings.is_open


class Left(Frozen):
    """The files of a launch: its log, whose first `log_start` bytes cover start and warm-up, and its memory samples."""

    launch_id: str
    log: str
    log_start: int = 0
    samples: str


class Handle(Left):
    """How to reach a launch; changes with every start. An attached server has no pid, and "" for log and samples.

    `request_fields` are those of every request. `earlier` holds the launches of the same server before its restarts within a run,
    oldest first.
    """

    base_url: str
    keyed: bool = False
    pid: int | None
    created: float | None
    ready_s: float
    phases_s: dict[str, float]
    request_fields: dict[str, Any] = {}
    earlier: list[Left] = []

    @property
    def launches(self) -> list[Left]:
        """Return all launches of this server, this one last."""
        own = Left(launch_id=self.launch_id, log=self.log, log_start=self.log_start, samples=self.samples)
        return [*self.earlier, own]


def launch_file(workspace: Workspace) -> Path:
    """Return the file that names the current launch."""
    return workspace.artifacts / "launch.json"


def read(workspace: Workspace) -> Launch | None:
    """Return the current launch, running or not; None when there is none, ServerError when its file cannot be read."""
    path = launch_file(workspace)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Launch.model_validate(migrated("launch", 0, data, {}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # not UTF-8, not JSON, or of an unknown form
        raise ServerError(
            f"{workspace.relative(path)} does not tell which server runs here ({next(iter(str(error).splitlines()), '')})",
            "end the server by its pid in that file, if it runs, and remove the file",
        ) from error


def current(workspace: Workspace, launch_id: str) -> Launch | None:
    """Return the launch of that id if it is still on record; None when it was stopped or replaced."""
    launch = read(workspace)
    return launch if launch is not None and launch.id == launch_id else None


def write(workspace: Workspace, launch: Launch) -> None:
    """Record `launch` as the current one."""
    write_atomic(launch_file(workspace), launch.model_dump_json(indent=1) + "\n")


def clear(workspace: Workspace, launch: Launch) -> None:
    """Remove `launch` from the record, unless another launch has replaced it."""
    if current(workspace, launch.id) is not None:
        launch_file(workspace).unlink(missing_ok=True)


def boot_id() -> str:
    """Return the kernel's id of the current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def created_s(pid: int) -> float:
    """Return the creation time of the process in seconds since boot; psutil.NoSuchProcess when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return int(text.rpartition(")")[2].split()[START_TICKS]) / TICKS_PER_S  # the name may hold spaces and brackets


def process(pid: int | None, created: float | None) -> psutil.Process | None:
    """Return the process of that pid and creation time; None when it has ended or the pid belongs to another."""
    if pid is None or created is None:
        return None
    try:
        candidate = psutil.Process(pid)
        if created_s(pid) == created and candidate.status() != psutil.STATUS_ZOMBIE:
            return candidate
    except psutil.Error:
        pass
    return None


def dies_within(pid: int, created: float, seconds: float) -> bool:
    """Tell whether the process has ended or ends within `seconds`: connections break a moment before their process ends."""
    deadline = time.monotonic() + seconds
    while process(pid, created) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def members(launch: Launch) -> list[psutil.Process]:
    """Return the living processes of the launch: its leader's session, which outlives the leader itself."""
    if launch.boot != boot_id():
        return []
    if psutil.pid_exists(launch.pid) and not is_leader(launch):
        return []  # the kernel reuses no session id that still has members, so ours has none
    return session(launch.pid, launch.created)


def session(leader: int | None, created: float | None) -> list[psutil.Process]:
    """Return the living processes of the leader's session, including the leader if it lives."""
    processes: list[psutil.Process] = []
    if leader is None or created is None:
        return processes
    for candidate in psutil.process_iter():
        try:
            in_session = os.getsid(candidate.pid) == leader and created_s(candidate.pid) >= created
            if in_session and candidate.status() != psutil.STATUS_ZOMBIE:
                processes.append(candidate)
        except (OSError, psutil.Error):
            continue
    return processes


def is_leader(launch: Launch) -> bool:
    """Tell whether the process with the leader's pid is the leader, alive or a zombie."""
    try:
        return created_s(launch.pid) == launch.created
    except psutil.Error:
        return False


def is_running(launch: Launch) -> bool:
    """Tell whether the launch's leader lives."""
    return launch.boot == boot_id() and process(launch.pid, launch.created) is not None
