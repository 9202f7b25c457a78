"""Start the server and its memory sampler, each in a session of its own."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.engine.record import now
from pipeline.engine.workspace import Workspace
from pipeline.server import state
from pipeline.server.keys import make_or_read_key
from pipeline.server.state import Launch
from pipeline.vllm.environment import server_environment

KEPT_LAUNCHES = 10


def start(settings: ServeConfig, words: list[str], model_name: str, workspace: Workspace) -> Launch:
    """Start sampler and server; the launch is on disk before this returns, so that any later command finds it."""
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
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=server_environment(settings.env, os.environ, workspace.cache, Path(words[0]), api_key),
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
            command=words,
            settings=settings,
            started=started,
            sampler_pid=sampler.pid,
            sampler_created=created_of(sampler),
        )
        state.write(workspace, launch)
    except BaseException:  # no note names them yet, so nobody else can end them
        for process in (server, sampler):
            if process is not None:
                process.kill()
                process.wait()
        raise
    (folder / "session").write_text(str(launch.pid), encoding="utf-8")
    return launch


def created_of(process: subprocess.Popen[bytes]) -> float | None:
    """Return the creation time of our child; None when it has ended already and left nothing to stop."""
    try:
        return state.created_s(process.pid)
    except psutil.Error:
        return None


def new_folder(parent: Path, name: str) -> Path:
    """Make and return a folder of that name, numbered when it is taken."""
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        with suppress(FileExistsError):
            (parent / f"{name}{suffix}").mkdir(parents=True)
            return parent / f"{name}{suffix}"
    raise FileExistsError(parent / name)


def start_sampler(folder: Path, settings: ServeConfig, workspace: Workspace) -> subprocess.Popen[bytes]:
    """Start the sampler and wait until its first sample, the baseline before the server, is written."""
    seen = {name: value for name, value in settings.env.items() if name == CUDA_DEVICES}  # it watches the server's devices
    with (folder / "sampler.log").open("w", encoding="utf-8") as file:
        sampler = subprocess.Popen(
            [sys.executable, "-m", "pipeline.gpu.sampler", str(folder), str(settings.memory_samples_per_s)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **seen},
            cwd=workspace.root,
            start_new_session=True,
        )
    samples = folder / state.SAMPLES
    deadline = time.monotonic() + 10
    while sampler.poll() is None and time.monotonic() < deadline and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.02)
    return sampler


def prune_launches(newest: Path, keep: int) -> None:
    """Remove all but `keep` launches: `newest`, whatever its name after a step of the clock, and the last ones before it."""
    others = sorted(path for path in newest.parent.iterdir() if path.is_dir() and path != newest)
    for old in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
