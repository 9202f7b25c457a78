"""Stopping our server with all its processes, and the record of what they leave behind."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.config.schema import CUDA_DEVICES
from pipeline.engine.record import Artifact, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.gpu import nvml
from pipeline.measure.figures import Figure, not_measured
from pipeline.message import _
from pipeline.server import ports, state
from pipeline.server.state import Launch

STOP_NOTE = "stop"
POLL_S = 0.1
KILL_WAIT_S = 5.0
SAMPLER_WAIT_S = 6.0
PORT_WAIT_S = 3.0
TOLERANCE_MIB = 64.0  # smaller changes by the driver and other programs are ignored
TAIL_BYTES = 256 * 1024  # of the samples; several seconds of them even with many devices
SETTLE_S = 1.0  # the driver frees the memory of a dead process after a moment


class Closing(Artifact):
    """How the last launch ended, and the memory in use on the devices before and after it."""

    launch_id: str
    was_running: bool
    asked_nicely: bool
    killed: list[str]
    took_s: float
    port_free: bool
    gpu_used_before_mib: list[float] | None
    gpu_used_after_mib: list[float] | None
    gpu_others_mib: list[float | None] | None = None

    def residual(self) -> Figure | None:
        """Return the memory on the server's devices above the baseline from before its start; None where they cannot be compared.

        `gpu_others_mib` is other programs' use of each device just before the stop: None for a device that the server did not
        use, None as a whole where it is unknown. The figure is NOT_MEASURED where other programs changed their use of one of
        the server's devices by more than TOLERANCE_MIB meanwhile, or may have. A smaller decrease is theirs and counts as no residual.
        """
        before, after, others = self.gpu_used_before_mib, self.gpu_used_after_mib, self.gpu_others_mib
        if before is None or after is None or len(before) != len(after) or (others is not None and len(others) != len(before)):
            return None
        devices = [number for number in range(len(before)) if others is None or others[number] is not None]
        changes_mib = {number: after[number] - before[number] for number in devices}
        others_changes_mib = {} if others is None else {number: (others[number] or 0.0) - before[number] for number in devices}
        changes = [*others_changes_mib.values(), *(mib for mib in changes_mib.values() if mib < 0)]
        largest = max(changes, key=abs, default=0.0)
        if abs(largest) > TOLERANCE_MIB:
            freed_reason, took_reason = (
                _("other programs freed {n} MiB meanwhile", n=round(-largest)),
                _("other programs took {n} MiB meanwhile", n=round(largest)),
            )
            return not_measured("MiB", freed_reason if largest < 0 else took_reason)
        total = max(0.0, sum(changes_mib.values()))
        if others is None and total > TOLERANCE_MIB:
            return not_measured("MiB", _("{n} MiB more are held, by the server or by others: the driver does not tell", n=round(total)))
        return Figure(value=total, unit="MiB", n=len(changes_mib))


def stop_server(launch: Launch, workspace: Workspace) -> Closing:
    """Send SIGTERM to the leader, wait, kill the survivors of its session; write the closing record and clear the launch."""
    started, clock = now(), time.perf_counter()
    leader = state.process(launch.pid, launch.created)
    processes = state.members(launch)
    samples = workspace.launches / launch.id / state.SAMPLES
    others = others_mib(samples) if processes else None  # unknown after a server that ended by itself
    if leader is not None:
        with suppress(psutil.Error):
            leader.terminate()
        # vLLM first lets running requests finish, for at most drain_timeout_s.
        wait_until_ended(launch, launch.settings.drain_timeout_s + launch.settings.stop_timeout_s)
    killed = []
    for process in state.members(launch):
        with suppress(psutil.Error):
            killed.append(f"{process.pid} {process.name()}")
            process.kill()
    if killed:
        wait_until_ended(launch, KILL_WAIT_S)
    devices = launch.settings.env.get(CUDA_DEVICES)
    if processes and nvml.device_used_mib(devices) is not None:
        time.sleep(SETTLE_S)
    deadline = time.monotonic() + PORT_WAIT_S
    while not (port_free := ports.is_free(launch.host, launch.port)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    closing = Closing(
        launch_id=launch.id,
        was_running=bool(processes),
        asked_nicely=leader is not None,
        killed=killed,
        took_s=round(time.perf_counter() - clock, 2),
        port_free=port_free,
        gpu_used_before_mib=used_before_mib(samples),
        gpu_used_after_mib=nvml.device_used_mib(devices),
        gpu_others_mib=others,
    )
    end_sampler(launch)
    Store(workspace.artifacts).write(STOP_NOTE, {"launch": launch.id}, started, closing.took_s, closing)
    state.clear(workspace, launch)
    return closing


def used_before_mib(samples: Path) -> list[float] | None:
    """Return each device's used MiB from the first sample, taken before the server's start; None where unknown."""
    try:
        with samples.open(encoding="utf-8") as file:
            used = json.loads(file.readline()).get("gpu_used_mib")
    except (OSError, ValueError):
        return None
    return used if used and None not in used else None


def others_mib(samples: Path) -> list[float | None] | None:
    """Return other programs' use of each device in MiB, from the last sample that has the server's own use.

    None for a device that the server did not use; None as a whole where the driver reports no use per process, as in WSL2.
    """
    try:
        with samples.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            sample = json.loads(line)
            pairs = list(zip(sample["gpu_used_mib"], sample["gpu_tree_mib"], strict=True))
            if any(used is not None and own is not None for used, own in pairs):
                return [None if used is None or own is None else used - own for used, own in pairs]
    return None


def wait_until_ended(launch: Launch, timeout_s: float) -> None:
    """Wait until the launch has no process left, for at most `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and state.members(launch):
        reap(launch.pid)
        time.sleep(POLL_S)


def reap(pid: int) -> None:
    """Collect the exit status of the process if it is our child, so that it does not stay a zombie."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def end_sampler(launch: Launch) -> None:
    """Wait for the sampler, which ends by itself after the server; kill it when it does not end in time."""
    deadline = time.monotonic() + SAMPLER_WAIT_S
    while (process := state.process(launch.sampler_pid, launch.sampler_created)) is not None:
        if launch.sampler_pid is not None:
            reap(launch.sampler_pid)
        if time.monotonic() > deadline:
            with suppress(psutil.Error):
                process.kill()
            return
        time.sleep(POLL_S)


def stop_current(workspace: Workspace) -> None:
    """Stop the current launch, if there is one."""
    launch = state.read(workspace)
    if launch is not None:
        stop_server(launch, workspace)
