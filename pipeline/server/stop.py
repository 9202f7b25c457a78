"""Stop a server of ours and whatever is left of it, and say what was left behind."""

import json
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.config import CUDA_DEVICES
from pipeline.gpu import nvml
from pipeline.record import Artifact, Store, now
from pipeline.server import ports, state
from pipeline.server.state import Launch
from pipeline.workspace import Workspace

NOTE = "stop"
POLL_S = 0.1
KILL_WAIT_S = 5.0
SAMPLER_WAIT_S = 6.0
PORT_WAIT_S = 3.0
SETTLE_S = 1.0  # the driver takes a moment to give a dead process's memory back


class Closing(Artifact):
    """How the last launch ended, and what the devices hold after it."""

    launch_id: str
    was_running: bool
    asked_nicely: bool
    killed: list[str]
    took_s: float
    port_free: bool
    gpu_used_before_mib: list[float] | None
    gpu_used_after_mib: list[float] | None

    def residual_mib(self) -> float | None:
        """Return what the devices hold above the baseline from before the start, MiB; None where one is unknown."""
        if self.gpu_used_before_mib is None or self.gpu_used_after_mib is None:
            return None
        return sum(self.gpu_used_after_mib) - sum(self.gpu_used_before_mib)


def stop_server(launch: Launch, workspace: Workspace) -> Closing:
    """SIGTERM the leader, wait, kill only what survives of its session; write the closing note and forget the launch."""
    started, clock = now(), time.perf_counter()
    leader = state.process(launch.pid, launch.created)
    remains = state.members(launch)
    if leader is not None:
        with suppress(psutil.Error):
            leader.terminate()
        # vLLM lets running requests end first, for as long as the setting says.
        wait_gone(launch, launch.settings.drain_timeout_s + launch.settings.stop_timeout_s)
    killed = []
    for process in state.members(launch):
        with suppress(psutil.Error):
            killed.append(f"{process.pid} {process.name()}")
            process.kill()
    if killed:
        wait_gone(launch, KILL_WAIT_S)
    chosen = launch.settings.env.get(CUDA_DEVICES)
    if remains and nvml.device_used_mib(chosen) is not None:
        time.sleep(SETTLE_S)
    deadline = time.monotonic() + PORT_WAIT_S
    while not (port_free := ports.is_free(launch.host, launch.port)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    closing = Closing(
        launch_id=launch.id,
        was_running=bool(remains),
        asked_nicely=leader is not None,
        killed=killed,
        took_s=round(time.perf_counter() - clock, 2),
        port_free=port_free,
        gpu_used_before_mib=baseline_mib(workspace.launches / launch.id / state.SAMPLES),
        gpu_used_after_mib=nvml.device_used_mib(chosen),
    )
    end_sampler(launch)
    Store(workspace.artifacts).write(NOTE, {"launch": launch.id}, started, closing.took_s, closing)
    state.clear(workspace, launch)
    return closing


def baseline_mib(samples: Path) -> list[float] | None:
    """Return each device's used MiB from the first sample, written before the server was started; None where not known."""
    try:
        with samples.open(encoding="utf-8") as file:
            used = json.loads(file.readline()).get("gpu_used_mib")
    except (OSError, ValueError):
        return None
    return used if used and None not in used else None


def wait_gone(launch: Launch, timeout_s: float) -> None:
    """Wait until the launch has no process left, at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and state.members(launch):
        reap(launch.pid)
        time.sleep(POLL_S)


def reap(pid: int) -> None:
    """Collect the child's exit status where it is our child, so that it does not stay a zombie."""
    import os

    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_sampler(launch: Launch) -> None:
    """Wait for the sampler, which ends by itself after the server; kill it when it does not."""
    deadline = time.monotonic() + SAMPLER_WAIT_S
    while (process := state.process(launch.sampler_pid, launch.sampler_created)) is not None:
        if launch.sampler_pid is not None:
            reap(launch.sampler_pid)
        if time.monotonic() > deadline:
            with suppress(psutil.Error):
                process.kill()
            return
        time.sleep(POLL_S)
