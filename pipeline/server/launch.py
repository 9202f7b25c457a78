"""Launching the server and its memory sampler, each in its own session."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.engine.record import now
from pipeline.engine.workspace import Workspace
from pipeline.server import state
from pipeline.server.keys import make_or_read_key
from pipeline.server.state import Launch
from pipeline.vllm.environment import server_environment

KEPT_LAUNCHES = 10


def start(
    settings: ServeConfig, command: list[str], model_name: str, workspace: Workspace, request_fields: Mapping[str, Any] | None = None
) -> Launch:
    """Start sampler and server; the launch is on disk before this returns, so that every later command finds it."""
    started = now()
    api_key = make_or_read_key(workspace) if settings.is_open else None
    folder = new_folder(workspace.launches, f"{started:%Y%m%d-%H%M%S}-{os.getpid()}")
    prune_launches(folder, KEPT_LAUNCHES)
    sampler = start_sampler(folder, settings, workspace)
    log = folder / "server.log"
    server: subprocess.Popen[bytes] | None = None
    try:
        with log.open("w", encoding="utf-8") as file:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=server_environment(settings.env, os.environ, workspace.cache, Path(command[0]), api_key),
                cwd=workspace.root,
                start_new_session=True,
            )
        launch = Launch(
            id=folder.name,
            pid=server.pid,
            created=state.created_s(server.pid),
            boot=state.boot_id(),
            host=settings.host,
            port=settings.port,
            model=model_name,
            log=workspace.relative(log),
            command=command,
            settings=settings,
            started=started,
            request_fields=dict(request_fields or {}),
            sampler_pid=sampler.pid,
            sampler_created=creation_time(sampler),
        )
        state.write(workspace, launch)
    except BaseException:  # the launch is not on record, so no later command could end them
        for process in (server, sampler):
            if process is not None:
                process.kill()
                process.wait()
        raise
    (folder / "session").write_text(str(launch.pid), encoding="utf-8")
    return launch


def creation_time(process: subprocess.Popen[bytes]) -> float | None:
    """Return the creation time of our child process; None when it has already ended."""
    try:
        return state.created_s(process.pid)
    except psutil.Error:
        return None


def new_folder(parent: Path, name: str) -> Path:
    """Create and return a folder of that name, with a number appended when the name is taken."""
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        with suppress(FileExistsError):
            (parent / f"{name}{suffix}").mkdir(parents=True)
            return parent / f"{name}{suffix}"
    raise FileExistsError(parent / name)


def start_sampler(folder: Path, settings: ServeConfig, workspace: Workspace) -> subprocess.Popen[bytes]:
    """Start the sampler and wait, at most 10 s, for its first sample: the baseline before the server starts."""
    devices = {name: value for name, value in settings.env.items() if name == CUDA_DEVICES}  # so that the sampler sees the server's devices
    with (folder / "sampler.log").open("w", encoding="utf-8") as file:
        sampler = subprocess.Popen(
            [sys.executable, "-m", "pipeline.gpu.sampler", str(folder), str(settings.memory_samples_per_s)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **devices},
            cwd=workspace.root,
            start_new_session=True,
        )
    samples = folder / state.SAMPLES
    deadline = time.monotonic() + 10
    while sampler.poll() is None and time.monotonic() < deadline and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.02)
    return sampler


def prune_launches(newest: Path, keep: int) -> None:
    """Remove all launches but the last `keep`; `newest` is one of them even where a step of the clock makes its name older."""
    others = sorted(path for path in newest.parent.iterdir() if path.is_dir() and path != newest)
    for folder in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(folder, ignore_errors=True)
