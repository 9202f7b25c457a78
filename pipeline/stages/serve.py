"""serve: Start the OpenAI-compatible server, prove that it is ours, and wait until it is ready."""

import os
import re
import time
from pathlib import Path
from typing import Any

from pipeline.client.control import ModelCard
from pipeline.config.attach import AttachConfig
from pipeline.config.requests import RequestsConfig
from pipeline.config.schema import PLAIN, ModelConfig, ServeConfig
from pipeline.engine.record import Artifact, Store
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, MeasureError, OutOfMemoryError, ServerError
from pipeline.message import _
from pipeline.model.chat import PLAIN_TEMPLATE, lacks_chat_template
from pipeline.server import launch as launching
from pipeline.server import ports, state
from pipeline.server.keys import control_of, key_file, key_of
from pipeline.server.start import await_ready, clear_old, relaunch
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import stop_server
from pipeline.server.watch import watched
from pipeline.stages.check_gpu import CPU_PROFILE, Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.vllm.command import headless_command, server_command, without_host_and_port
from pipeline.vllm.environment import API_KEY
from pipeline.vllm.identity import Proof, is_real, shows_vllm
from pipeline.vllm.ladder import Attempt, next_attempt
from pipeline.vllm.numbers import by_number
from pipeline.vllm.plan import Plan
from pipeline.vllm.preflight import Site, insist_on_site, plan_start
from pipeline.vllm.sets import CPU_SET
from pipeline.vllm.settle import release, settle
from pipeline.vllm.warm_up import MOST_TOGETHER, warm_up

LET_THROUGH = "a proxy must let /v1, /version, /metrics and /health through below attach.url; or attach to the server itself"


class Server(Artifact):
    """The served model, the vLLM that serves it, its flags, the proofs of its identity, and the handle of its launch.

    `warm_ups` counts an attached server's answered warm-up requests; None where an older version sent none, and for a server of ours.
    """

    model: str
    vllm: str
    distribution: str
    device: str
    max_model_len: int
    command: list[str]
    environment: dict[str, str]
    random_weights: bool
    attached: str | None = None
    replicas: tuple[str, ...] = ()
    warm_ups: int | None = None
    attempts: list[Attempt] = []
    plan: Plan | None
    real: bool
    takes_system: bool = True  # an older version did not ask
    proofs: list[Proof]
    handle: Handle

    def identity(self) -> dict[str, Any]:
        """Return what measurements depend on, so without host and port, the launch and how it came about."""
        left_out = {"handle", "proofs", "command", "plan", "attempts", "warm_ups", "takes_system"}
        facts = self.model_dump(mode="json", exclude=left_out)
        fields = {"request_fields": self.handle.request_fields} if self.handle.request_fields else {}
        return {**facts, **fields, "flags": " ".join(without_host_and_port(self.command))}


def serve(
    settings: ServeConfig,
    requests: RequestsConfig,
    machine: Machine,
    installation: Installation,
    model: Model,
    workspace: Workspace,
) -> Server:
    """Start vLLM, wait until it answers, and prove that it is ours."""
    if settings.node_rank:
        raise ServerError(f"node {settings.node_rank} answers no requests: node 0 does", "start its share of the model with `./inv join`")
    for caution in start_cautions(settings, workspace):
        workspace.say(f"caution: {caution}")
    site = site_of(machine, installation, model, workspace)
    settings = prepare(settings, site, workspace)
    if not ports.is_free(settings.host, settings.port):
        raise ServerError(
            f"port {settings.port} is taken by {ports.describe_owner(settings.host, settings.port)}",
            f"end it, or choose another port: --set serve.port={settings.port + 1}",
        )
    workspace.say(f"starting {installation.distribution} {installation.vllm} with {model.name} on port {settings.port}")
    attempts: list[Attempt] = []
    while True:
        command = server_command(settings, site.python, site.model, model.name, site.distribution, installation.vllm)
        start_s = time.monotonic()
        try:
            plan = plan_start(settings, site)  # also refuses a start that cannot succeed; a gate may judge the planned peak
            launching.start(settings, command, model.name, workspace, requests.fields)
            ready = await_ready(installation.vllm, workspace)
            break
        except OutOfMemoryError as error:
            log = workspace.relative(error.log) if error.log else ""
            settings, attempt = next_attempt(settings, error, attempts, round(time.monotonic() - start_s, 1), log)
            attempts.append(attempt)
            workspace.say(f"{error.message}; trying again with {attempt.changed}")
    return Server(
        model=model.name,
        vllm=installation.vllm,
        distribution=installation.distribution,
        device=device_of(machine, installation),
        max_model_len=settings.max_model_len,
        command=relative_command(command, workspace),
        environment=dict(settings.env),
        random_weights=settings.load_format == "dummy",
        attempts=attempts,
        plan=plan,
        **ready._asdict(),
    )


def join_node(settings: ServeConfig, machine: Machine, installation: Installation, model: Model, workspace: Workspace) -> Launch:
    """Start this node's share of a server whose requests node 0 answers; here only its processes can be observed."""
    if not settings.node_rank:
        raise ServerError("node 0 answers the requests, and does not join", "`./inv serve` here; --set serve.node_rank=1 on the next host")
    site = site_of(machine, installation, model, workspace)
    settings = prepare(settings, site, workspace)
    workspace.say(f"node {settings.node_rank} of {settings.nnodes} joins {settings.master_addr}:{settings.master_port} with {model.name}")
    command = headless_command(server_command(settings, site.python, site.model, model.name, site.distribution, installation.vllm))
    return launching.start(settings, command, model.name, workspace)


def site_of(machine: Machine, installation: Installation, model: Model, workspace: Workspace) -> Site:
    """Return the site of a server, from the records that it depends on."""
    return Site(
        host=machine.host,
        gpus=machine.gpus,
        driver=machine.driver,
        reason=machine.reason,
        fix=machine.fix,
        set=installation.set,
        distribution=installation.distribution,
        versions=installation.versions,
        python=workspace.root / installation.interpreter,
        model=workspace.root / model.folder,
    )


def prepare(settings: ServeConfig, site: Site, workspace: Workspace) -> ServeConfig:
    """Stop our earlier server and return the settings with `auto` resolved for this machine; ServerError where none can start."""
    settings = settle(settings, site.host, site.distribution, site.versions, site.gpus)
    if not site.on_cpu:
        settings = by_number(settings, os.environ, site.gpus, release(site.versions))
    settings = with_chat_template(settings, site.model, workspace)
    insist_on_site(settings, site)
    clear_old(workspace)
    return settings


def with_chat_template(settings: ServeConfig, folder: Path, workspace: Workspace) -> ServeConfig:
    """Return the settings with the chat template as vLLM takes it: a file, or a plain one where the model has none."""
    name = settings.chat_template
    if name is None and lacks_chat_template(folder):
        workspace.say("caution: the model has no chat template, so it gets the messages' texts one below the other (serve.chat_template)")
        name = PLAIN
    if name is None:
        return settings
    if name != PLAIN and not (workspace.root / name).is_file():
        raise ServerError(f"serve.chat_template: {name} is not a file", f"name a Jinja file, or {PLAIN}")
    return settings.model_copy(update={"chat_template": PLAIN_TEMPLATE if name == PLAIN else str(workspace.root / name)})


def restart(server: Server, workspace: Workspace) -> Server:
    """Stop the server, start it again with the same command and record its new handle; its identity stays the same."""
    store = Store(workspace.artifacts)
    launch, envelope = state.current(workspace, server.handle.launch_id), store.read("serve")
    if launch is None or envelope is None:
        raise ServerError("the server to restart is not the one on record", "start it with `invoke serve`")
    workspace.say(f"restarting the server (pid {launch.pid})")
    stop_server(launch, workspace)
    ready = relaunch(launch, server.vllm, workspace)
    handle = ready.handle.model_copy(update={"earlier": server.handle.launches})
    new_server = server.model_copy(update={**ready._asdict(), "handle": handle})
    store.write("serve", envelope.because, envelope.started, envelope.duration_s, new_server)
    return new_server


def start_cautions(settings: ServeConfig, workspace: Workspace) -> list[str]:
    """Return warnings about settings that weaken security."""
    cautions = []
    if settings.trust_remote_code:
        cautions.append("serve.trust_remote_code runs code that came with the model")
    if settings.is_open:
        file = key_file(workspace).name
        cautions.append(f"host {settings.host} is open to everyone who reaches this machine; clients need the key in {file}")
    return cautions


def log_of(server: Server, workspace: Workspace) -> Path | None:
    """Return the path of the server's log; None for a server that someone else runs."""
    return workspace.root / server.handle.log if server.handle.log else None


def insist_on_answers(server: Server) -> None:
    """Raise MeaninglessError when the weights are random, which makes the answers noise."""
    if server.random_weights:
        raise MeaninglessError(_("the weights are random (serve.load_format: dummy), so the answers are noise"))


def server_present(server: Server, workspace: Workspace) -> bool:
    """Tell whether the launch on record still runs and answers, or the attached ones still serve the same model and version."""
    if server.attached:
        controls = [control_of(attached_handle(url, RequestsConfig()), workspace) for url in (server.attached, *server.replicas)]
        try:
            return all(
                control.version() == server.vllm and any(card.id == server.model for card in control.models()) for control in controls
            )
        except MeasureError:
            return False
    launch = state.current(workspace, server.handle.launch_id)
    if launch is None or not state.is_running(launch):
        return False
    return control_of(server.handle, workspace).answers()


def relative_command(command: list[str], workspace: Workspace) -> list[str]:
    """Return the command with paths relative to the project folder."""
    return [word.removeprefix(f"{workspace.root}/") for word in command]


def device_of(machine: Machine, installation: Installation) -> str:
    """Return the name of the device that the server computes on."""
    if installation.distribution == CPU_SET.distribution or machine.profile == CPU_PROFILE or not machine.gpus:
        return machine.host.cpu
    return machine.gpus[0].name


def attach_server(settings: AttachConfig, requests: RequestsConfig, model: ModelConfig, workspace: Workspace) -> Server:
    """Attach to the server that someone else runs at `attach.url`; nothing is started, and only its endpoint is known."""
    url = settings.url or ""
    handle = attached_handle(url, requests)
    card, version, proofs = inspect_endpoint(handle, model.name, workspace)
    for replica in settings.replicas:
        replica_card, replica_version, replica_proofs = inspect_endpoint(attached_handle(replica, requests), card.id, workspace)
        if (replica_card.id, replica_version) != (card.id, version):
            raise ServerError(
                f"{replica} is no replica of {url}: it serves {replica_card.id} with vLLM {replica_version}, not {card.id} with {version}",
                "name servers of the same model and version in attach.replicas",
            )
        proofs += [
            proof.model_copy(update={"claim": _("{claim} ({address})", claim=proof.claim, address=replica)}) for proof in replica_proofs
        ]
    workspace.say(f"attached to {', '.join((url, *settings.replicas))}: {card.id}, vLLM {version}")
    handles = [handle, *(attached_handle(replica, requests) for replica in settings.replicas)]
    warm_ups = sum(warm_up_attached(each, card, workspace) for each in handles) if settings.warm_up else 0
    return Server(
        model=card.id,
        vllm=version,
        distribution="not known",
        device=f"the server at {url}{replica_suffix(len(settings.replicas))}",
        max_model_len=card.max_model_len or 0,
        command=[],
        environment={},
        random_weights=False,
        attached=url,
        replicas=settings.replicas,
        warm_ups=warm_ups,
        plan=None,
        real=is_real(proofs),
        takes_system=control_of(handle, workspace).takes_system(card.id),
        proofs=proofs,
        handle=handle,
    )


def warm_up_attached(handle: Handle, card: ModelCard, workspace: Workspace) -> int:
    """Send the server the kinds of requests that the tests send; return how many were answered, which it may refuse."""
    with watched(handle, workspace) as target:
        start_s = time.monotonic()
        count = warm_up(target, card.id, MOST_TOGETHER, card.max_model_len or 0)
        workspace.say(f"warmed up {handle.base_url} with {count} requests in {time.monotonic() - start_s:.1f} s")
    return count


def inspect_endpoint(handle: Handle, model: str, workspace: Workspace) -> tuple[ModelCard, str, list[Proof]]:
    """Return (model card, vLLM version, proofs) of the attached server; ServerError unless it is a vLLM that completes a request."""
    url = handle.base_url
    control = control_of(handle, workspace)
    try:
        card = find_card(control.models(), model)
        version = control.version()
        if not control.first_words(card.id).says_something:
            raise ServerError(f"the completion of the server at {url} says nothing", "ask whoever runs it")
        proofs = shows_vllm(card, version, control)
    except MeasureError as error:
        raise ServerError(error.message, attach_hint(error.message, bool(key_of(handle, workspace)))) from error
    if not control.answers():
        raise ServerError(f"{url}/health does not answer, by which we see that the server lives", LET_THROUGH)
    return card, version, proofs


def attach_hint(trouble: str, has_key: bool) -> str:
    """Return what to do where an attached server does not answer as vLLM does."""
    if "chat template" in trouble:
        return "its model has no chat template: whoever runs it starts it with --chat-template FILE"
    if re.search(r"/(version|metrics): (HTTP 40[345]|not JSON)|/metrics: 40[345]", trouble):
        return LET_THROUGH
    return "is it a vLLM server, and up?" + ("" if has_key else f"; a server that wants an API key takes it from {API_KEY}")


def replica_suffix(count: int) -> str:
    """Return " and N replicas"; empty without any."""
    return f" and {count} replica{'s' if count > 1 else ''}" if count else ""


def attached_handle(url: str, requests: RequestsConfig) -> Handle:
    """Return the handle of a server that someone else runs."""
    nothing = Handle(launch_id=url, base_url=url, pid=None, created=None, log="", samples="", ready_s=0, phases_s={})
    return nothing.model_copy(update={"request_fields": requests.fields})


def find_card(cards: list[ModelCard], name: str) -> ModelCard:
    """Return the model card of that name, or the only model's; of a LoRA adapter with the length of the model that it adapts.

    ServerError lists the served models.
    """
    models = [card for card in cards if card.parent is None]
    matches = [card for card in cards if card.id == name] or (models if len(models) == 1 else [])
    if not matches:
        raise ServerError(f"the server serves {', '.join(card.id for card in cards) or 'no model'}", "choose one: --set model.name=NAME")
    found = matches[0]
    adapted = next((card for card in models if card.id == found.parent or found.parent in (card.root, None)), None)
    return found if found.max_model_len or adapted is None else found.model_copy(update={"max_model_len": adapted.max_model_len})
