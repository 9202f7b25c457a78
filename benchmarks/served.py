"""Servers of the installed vLLM for the benchmarks, each in its own folder below .cache/benchmarks, with its own caches."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.client.endpoint import Endpoint
from pipeline.config.layers import load_layers
from pipeline.config.schema import ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.gpu import host
from pipeline.server import launch as launching
from pipeline.server import ports, state
from pipeline.server.keys import control_of
from pipeline.server.readiness import wait_until_ready
from pipeline.server.stop import stop_server
from pipeline.stages.download_model import embed
from pipeline.terminal import Silent
from pipeline.vllm.command import server_command
from pipeline.vllm.sets import CPU_SET
from pipeline.vllm.settle import settle

ROOT = Path(__file__).resolve().parents[1]
NAME = "model"


@dataclass(frozen=True)
class Up:
    """A server that is ready: its endpoint, the seconds of its start, and the file of its memory samples."""

    target: Endpoint
    ready_s: float
    samples: Path


def checkpoint(quantization: str) -> Path:
    """Return the folder of the embedded model with `int8` or `none` (bf16) weights, converted if it is missing."""
    folder = ROOT / "models" / f"benchmark-{quantization}"
    if not (folder / "LICENSE").is_file():
        embed(quantization, folder, Workspace(ROOT))
    return folder


def place(name: str) -> Workspace:
    """Return the workspace of that name as an earlier `fresh` and its servers left it."""
    return Workspace(ROOT / ".cache" / "benchmarks" / name, Silent())


def fresh(name: str) -> Workspace:
    """Return an empty workspace that shares only environment and code with the project."""
    root = place(name).root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / ".cache").mkdir()
    for shared in ("venv-vllm", "pipeline"):
        (root / shared).symlink_to(ROOT / shared)
    return place(name)


def profile(name: str = "cpu") -> ServeConfig:
    """Return the profile's settings of the server, with "auto" values decided for this machine."""
    return settle(load_layers(ROOT / "config.yaml", {}, (), name).config(name).serve, host.read(), CPU_SET.distribution)


def command(
    settings: ServeConfig, folder: Path, workspace: Workspace, bare: bool = False, distribution: str = CPU_SET.distribution
) -> list[str]:
    """Return the server's command line; `bare` leaves out every flag but the model's and the address."""
    words = server_command(settings, workspace.server_python, folder, NAME, distribution)
    return words[: words.index("--dtype")] if bare else words


@contextmanager
def served(settings: ServeConfig, words: list[str], workspace: Workspace) -> Iterator[Up]:
    """Run a server for the block, and stop it afterwards."""
    if not ports.is_free(settings.host, settings.port):
        raise SystemExit(f"port {settings.port} is taken by {ports.describe_owner(settings.host, settings.port)}; free it first")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    launch = launching.start(settings, words, NAME, workspace)
    try:
        _, ready_s = wait_until_ready(launch, workspace.root / launch.log, control_of(launch, workspace), lambda _: None)
        yield Up(Endpoint(launch.base_url), ready_s, workspace.launches / launch.id / state.SAMPLES)
    finally:
        stop_server(launch, workspace)
