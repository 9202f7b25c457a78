"""Which server of ours runs, on disk, so that any later command finds it or its remains."""

import json
import os
import time
from datetime import datetime
from pathlib import Path

import psutil

from pipeline.config.schema import ServeConfig
from pipeline.engine.migrations import migrated
from pipeline.engine.record import write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.values import Frozen

SAMPLES = "samples.jsonl"  # in the launch's folder
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TICKS = 19  # of the fields that follow the name in /proc/<pid>/stat, counted from 0


class Launch(Frozen):
    """One start of the server: its leader by pid, creation time and boot, where it listens and logs, and how to start it again.

    Creation times are seconds after the boot, which a step of the wall clock does not move. A launch that `stays` was
    asked for by `serve`; any other belongs to the command that started it, and to the next one if that was killed.
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
    sampler_pid: int | None = None
    sampler_created: float | None = None
    stays: bool = False

    @property
    def base_url(self) -> str:
        """Return where we reach it: an address that stands for all is bound, not called."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def keyed(self) -> bool:
        """Tell whether the server wants our API key."""
        return self.settings.is_open


class Left(Frozen):
    """What a launch writes: its log, of which the first `log_start` bytes are of the start and its warm-up, and its memory samples."""

    launch_id: str
    log: str
    log_start: int = 0
    samples: str


class Handle(Left):
    """How to reach this launch; changes with every start. A server that someone else runs has no process, and "" for log and samples.

    `earlier` are the launches of the same server before a restart in mid-run, the first one first.
    """

    base_url: str
    keyed: bool = False
    pid: int | None
    created: float | None
    ready_s: float
    phases_s: dict[str, float]
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
    """Return the current launch, running or not; None when there is none, ServerError when its note cannot be read."""
    path = launch_file(workspace)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Launch.model_validate(migrated("launch", 0, data, {}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # not UTF-8, not JSON, or of no known form
        raise ServerError(
            f"{workspace.relative(path)} does not tell which server runs here ({next(iter(str(error).splitlines()), '')})",
            "end the server by its pid in that file, if it runs, and remove the file",
        ) from error


def current(workspace: Workspace, launch_id: str) -> Launch | None:
    """Return the launch of that id while it is the one on record: neither stopped nor replaced."""
    launch = read(workspace)
    return launch if launch is not None and launch.id == launch_id else None


def write(workspace: Workspace, launch: Launch) -> None:
    """Make `launch` the current one."""
    write_atomic(launch_file(workspace), launch.model_dump_json(indent=1) + "\n")


def clear(workspace: Workspace, launch: Launch) -> None:
    """Forget `launch`, unless another one has taken its place."""
    if current(workspace, launch.id) is not None:
        launch_file(workspace).unlink(missing_ok=True)


def boot_id() -> str:
    """Return the kernel's name for the present boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def created_s(pid: int) -> float:
    """Return when the process was created, in seconds after the boot; psutil.NoSuchProcess when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return int(text.rpartition(")")[2].split()[START_TICKS]) / TICKS_PER_S  # the name may hold spaces and brackets


def process(pid: int | None, created: float | None) -> psutil.Process | None:
    """Return the process of that pid and creation time, or None when it is gone or another one took the pid."""
    if pid is None or created is None:
        return None
    try:
        found = psutil.Process(pid)
        if created_s(pid) == created and found.status() != psutil.STATUS_ZOMBIE:
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
    if launch.boot != boot_id():
        return []
    if psutil.pid_exists(launch.pid) and not is_leader(launch):
        return []  # a session's id is not given anew while it has members, so ours has none
    return session(launch.pid, launch.created)


def session(leader: int | None, created: float | None) -> list[psutil.Process]:
    """Return the living processes of the session that the leader began, itself among them if it lives."""
    found: list[psutil.Process] = []
    if leader is None or created is None:
        return found
    for candidate in psutil.process_iter():
        try:
            in_session = os.getsid(candidate.pid) == leader and created_s(candidate.pid) >= created
            if in_session and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
        except (OSError, psutil.Error):
            continue
    return found


def is_leader(launch: Launch) -> bool:
    """Tell whether the process with the leader's pid is the leader, alive or a zombie."""
    try:
        return created_s(launch.pid) == launch.created
    except psutil.Error:
        return False


def is_running(launch: Launch) -> bool:
    """Tell whether the launch's leader lives."""
    return launch.boot == boot_id() and process(launch.pid, launch.created) is not None
