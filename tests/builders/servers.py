"""A fake server that is up, and what a stopped one leaves."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.config.schema import ServeConfig
from pipeline.engine.record import Store, now
from pipeline.server import ports, state
from pipeline.server.stop import Closing
from pipeline.stages.serve import Server
from pipeline.vllm.environment import server_environment
from tests.fakes.environment import MODEL_NAME, FakeProject

PHASES = (
    "INFO non-default args: {'model': 'fake'}",
    "(EngineCore pid=7) INFO Initializing a V1 LLM engine (v0.32.0)",
    "(EngineCore pid=7) INFO Starting to load model /models/fake...",
    "(EngineCore pid=7) INFO Loading weights took 0.10 seconds",
    "(EngineCore pid=7) INFO CPU KV cache size: 11,000 tokens",
    "(EngineCore pid=7) INFO init engine (profile, create kv cache, warmup model) took 1.0 s",
)


def closing_note(project: FakeProject) -> Closing:
    note = Store(project.workspace.artifacts).outcome("stop", Closing).data
    assert note is not None
    return note


def assert_nothing_left(project: FakeProject, port: int) -> None:
    assert project.processes() == []
    assert state.read(project.workspace) is None
    assert ports.is_free("127.0.0.1", port)


@contextmanager
def started(project: FakeProject, settings: ServeConfig) -> Iterator[tuple[state.Launch, Path]]:
    """Run the server alone, without a sampler."""
    log = project.root / "server.log"
    words = [str(project.workspace.server_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(project.folder)]
    words += ["--served-model-name", MODEL_NAME, "--host", settings.host, "--port", str(settings.port)]
    with log.open("w", encoding="utf-8") as file:
        process = psutil.Popen(
            words,
            stdout=file,
            stderr=file,
            env=server_environment(settings.env, os.environ, project.root, project.workspace.server_python),
            start_new_session=True,
        )
    launch = state.Launch(
        id="alone",
        pid=process.pid,
        created=state.created_s(process.pid),
        boot=state.boot_id(),
        host=settings.host,
        port=settings.port,
        model=MODEL_NAME,
        log="server.log",
        command=words,
        settings=settings,
        started=now(),
    )
    try:
        yield launch, log
    finally:
        process.kill()
        process.wait()


KV = (
    "ValueError: To serve at least one request with the model's max seq len (8192), (0.98 GiB KV cache is needed, which is larger than the "
    "available KV cache memory (0.4 GiB)."
)


def served_and_recorded(project: FakeProject) -> Server:
    """Return a running server with its record, as the engine leaves it."""
    (project.root / "prompts.txt").write_text("Merhaba\n", encoding="utf-8")
    server = project.serve(project.settings())
    Store(project.workspace.artifacts).write("serve", {"why": "a test"}, now(), 1.0, server)
    return server
