"""serve: the OpenAI-compatible server, started, proven to be ours, and ready."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.client.control import ModelCard
from pipeline.config.schema import CUDA_DEVICES, AttachConfig, ModelConfig, ServeConfig
from pipeline.engine.record import Artifact, Store
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, MeasureError, ModelError, OutOfMemoryError, ServerError
from pipeline.gpu import nvml
from pipeline.gpu.compatibility import CPU_SET, set_named
from pipeline.gpu.host import Host
from pipeline.gpu.plan import SHORTEST_CONTEXT, Demand, Plan, crowded, deciding, demand, refusal, unplanned
from pipeline.load.generator import Target
from pipeline.message import _
from pipeline.model.shape import read_shape, weight_bytes
from pipeline.server import launch as launching
from pipeline.server import ports, state
from pipeline.server.identity import Proof, is_real, prove, show
from pipeline.server.keys import control_of, key_file, key_of
from pipeline.server.readiness import DEATH_S, died, first_completion, gone, says_something, wait_until_ready
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import stop_server
from pipeline.stages.check_gpu import CPU_PROFILE, Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.vllm import compilers
from pipeline.vllm.environment import quick_start
from pipeline.vllm.kernels import is_monitored
from pipeline.vllm.ladder import FEWEST_SEQUENCES, HOPELESS, MOST_ATTEMPTS, PLANNED, Attempt, smaller
from pipeline.vllm.parallel import check, read_parts
from pipeline.vllm.warm_up import warm_up

# From here on vLLM's binding of threads to cores should pay for a worker process of its own; measured on 2 cores only.
MOST_UNBOUND_CORES = 4
ALL_THE_SAME = "or try all the same: --set serve.force_start=true"


class Server(Artifact):
    """What is served, by what, with which flags and proofs; and the handle of the launch."""

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
    attempts: list[Attempt] = []
    plan: Plan | None
    real: bool
    proofs: list[Proof]
    handle: Handle

    def identity(self) -> dict[str, Any]:
        """Return all but the handle and the address: what is measured does not depend on the port."""
        facts = self.model_dump(mode="json", exclude={"handle", "proofs", "command", "plan", "attempts"})
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
    if settings.node_rank:
        raise ServerError(f"node {settings.node_rank} answers no requests: node 0 does", "start its share of the model with `./inv join`")
    settings = settled(settings, machine.host, installation.distribution, installation.versions)
    insist_on_parts(settings, machine, installation, workspace.root / model.folder)
    insist_on_machine(settings, machine, installation, workspace)
    clear_old(workspace)
    if not ports.is_free(settings.host, settings.port):
        raise ServerError(
            f"port {settings.port} is taken by {ports.describe_owner(settings.host, settings.port)}",
            f"end it, or choose another port: --set serve.port={settings.port + 1}",
        )
    python = workspace.root / installation.interpreter
    folder = workspace.root / model.folder
    for caution in cautions(settings, workspace):
        workspace.say(f"caution: {caution}")
    workspace.say(f"starting {installation.distribution} {installation.vllm} with {model.name} on port {settings.port}")
    attempts: list[Attempt] = []
    while True:
        words = launching.command(settings, python, folder, model.name, installation.distribution)
        began = time.monotonic()
        try:
            refuse_crowded(settings, machine, installation.distribution)
            refuse_hopeless(settings, machine, installation.distribution, folder)
            made = planned(settings, machine, installation.distribution, folder)  # before the start, for a gate may ask for its peak
            proofs, handle = launched(settings, words, model.name, installation.vllm, folder, workspace)
            break
        except OutOfMemoryError as error:
            settings, attempt = next_attempt(settings, error, round(time.monotonic() - began, 1), attempts, workspace)
            attempts.append(attempt)
    return Server(
        model=model.name,
        vllm=installation.vllm,
        distribution=installation.distribution,
        device=device_of(machine, installation),
        max_model_len=settings.max_model_len,
        command=shown_command(words, workspace),
        environment=dict(settings.env),
        random_weights=settings.load_format == "dummy",
        attempts=attempts,
        plan=made,
        real=is_real(proofs),
        proofs=proofs,
        handle=handle,
    )


def joined(settings: ServeConfig, machine: Machine, installation: Installation, model: Model, workspace: Workspace) -> Launch:
    """Start this node's share of a server that node 0 answers for; the server's processes are what can be known of it."""
    if not settings.node_rank:
        raise ServerError("node 0 answers the requests, and does not join", "`./inv serve` here; --set serve.node_rank=1 on the next host")
    settings = settled(settings, machine.host, installation.distribution, installation.versions)
    folder = workspace.root / model.folder
    insist_on_parts(settings, machine, installation, folder)
    insist_on_machine(settings, machine, installation, workspace)
    clear_old(workspace)
    workspace.say(f"node {settings.node_rank} of {settings.nnodes} joins {settings.master_addr}:{settings.master_port} with {model.name}")
    words = launching.headless(
        launching.command(settings, workspace.root / installation.interpreter, folder, model.name, installation.distribution)
    )
    return launching.start(settings, words, model.name, workspace)


def insist_on_parts(settings: ServeConfig, machine: Machine, installation: Installation, folder: Path) -> None:
    """Raise ServerError where the model cannot be spread as the settings ask; on processors vLLM takes cores, which are not counted."""
    if settings.world_size * settings.data_parallel_size > 1:
        check(settings, read_parts(folder), None if installation.distribution == CPU_SET.distribution else len(machine.gpus))


def insist_on_machine(settings: ServeConfig, machine: Machine, installation: Installation, workspace: Workspace) -> None:
    """Raise ServerError where the machine lacks what the start would fail for after a minute: device, driver or compiler."""
    if settings.force_start:
        return
    trouble = lacking(settings, machine, installation, workspace)
    if trouble:
        raise ServerError(f"not started: {trouble[0]}", f"{trouble[1]}; {ALL_THE_SAME}")


def lacking(settings: ServeConfig, machine: Machine, installation: Installation, workspace: Workspace) -> tuple[str, str] | None:
    """Return (what the machine lacks for this start, what to do); None where nothing is known to be lacking."""
    chosen = set_named(installation.set)
    on_gpu = installation.distribution != CPU_SET.distribution
    if chosen is not None and chosen.min_driver:
        if not machine.gpus:
            return f"{chosen.name} needs a GPU: {machine.reason}", f"{machine.fix}; without a GPU use --profile cpu"
        major = machine.driver.version.split(".", 1)[0] if machine.driver else ""
        if machine.driver and major.isdecimal() and int(major) < chosen.min_driver:
            why = f"the NVIDIA driver {machine.driver.version} is too old for {chosen.name}, which needs {chosen.min_driver}"
            return why, f"leave install.set at auto, or update the driver to {chosen.min_driver} or newer"
    compiler = compilers.needed(settings, installation.distribution)
    if compiler is None or (on_gpu and not machine.gpus):
        return None
    environment = {**os.environ, **settings.env}
    fix = compiler.install + ("" if on_gpu else "; or set serve.enforce_eager=true")
    if compiler.path(environment) is None:
        return compiler.missing(environment), fix
    if not compilers.has_headers(str(workspace.root / installation.interpreter), environment):
        return compiler.headers_missing, fix
    return None


def next_attempt(
    settings: ServeConfig, error: OutOfMemoryError, took_s: float, before: list[Attempt], workspace: Workspace
) -> tuple[ServeConfig, Attempt]:
    """Return smaller settings and the failed attempt; the error itself where none are wanted or none are left."""
    log = error.log
    text = log.read_text(encoding="utf-8", errors="replace") if log else error.message
    rung = smaller(settings, error.cause, text) if falls_back(settings) else None
    if rung is None or len(before) >= MOST_ATTEMPTS:
        tried = "; ".join(attempt.changed for attempt in before)
        raise OutOfMemoryError(f"{error.message} (tried in vain: {tried})", error.hint, log, error.cause) if tried else error
    less, changed = rung
    workspace.say(f"{error.message}; trying again with {changed}")
    return less, Attempt(cause=error.message, changed=changed, took_s=took_s, log=workspace.relative(log) if log else "")


def refuse_hopeless(settings: ServeConfig, machine: Machine, distribution: str, folder: Path) -> None:
    """Raise OutOfMemoryError for a start that cannot succeed by the plan, even where its error is in the start's favour."""
    share = settings.gpu_memory_utilization
    asked = demanded(settings, machine, distribution, folder)
    if asked is None or settings.force_start:
        return
    refused = refusal(asked, share)
    if refused is not None:
        why, fitting = refused
        least = asked.model_copy(update={"max_model_len": SHORTEST_CONTEXT, "max_num_seqs": FEWEST_SEQUENCES})
        cause = HOPELESS if least.at(share).cannot_fit else PLANNED
        raise OutOfMemoryError(f"not started: {why}", f"{fitting}; {ALL_THE_SAME}", None, cause)


def refuse_crowded(settings: ServeConfig, machine: Machine, distribution: str) -> None:
    """Raise OutOfMemoryError where others hold so much of the GPU now that vLLM would refuse, after a minute."""
    if distribution == CPU_SET.distribution or settings.force_start or not machine.gpus:
        return
    now = {gpu.uuid: gpu for gpu in nvml.read(settings.env.get(CUDA_DEVICES)).gpus}
    refused = crowded([now[gpu.uuid] for gpu in machine.gpus if gpu.uuid in now], settings)
    if refused is not None:
        raise OutOfMemoryError(f"not started: {refused[0]}", f"{refused[1]}; {ALL_THE_SAME}", None, "free-vram")


def falls_back(settings: ServeConfig) -> bool:
    """Tell whether a start that lacks memory is tried again with less: `auto` does, except in CI."""
    return settings.on_oom == "fallback" or (settings.on_oom == "auto" and not os.environ.get("CI"))


def attached(settings: AttachConfig, model: ModelConfig, workspace: Workspace) -> Server:
    """Use the server that someone else runs at `attach.url`: nothing is started, and its endpoint is all that is known of it."""
    url = settings.url or ""
    card, version, proofs = seen(url, model.name, workspace)
    for replica in settings.replicas:
        other, its_version, more = seen(replica, card.id, workspace)
        if (other.id, its_version) != (card.id, version):
            raise ServerError(
                f"{replica} is no replica of {url}: it serves {other.id} with vLLM {its_version}, not {card.id} with {version}",
                "name servers of the same model and version in attach.replicas",
            )
        proofs += [proof.model_copy(update={"claim": _("{claim} ({address})", claim=proof.claim, address=replica)}) for proof in more]
    workspace.say(f"attached to {', '.join((url, *settings.replicas))}: {card.id}, vLLM {version}")
    return Server(
        model=card.id,
        vllm=version,
        distribution="not known",
        device=f"the server at {url}{and_replicas(len(settings.replicas))}",
        max_model_len=card.max_model_len or 0,
        command=[],
        environment={},
        random_weights=False,
        attached=url,
        replicas=settings.replicas,
        plan=None,
        real=is_real(proofs),
        proofs=proofs,
        handle=handle_of(url),
    )


def seen(url: str, model: str, workspace: Workspace) -> tuple[ModelCard, str, list[Proof]]:
    """Return (model card, vLLM's version, proofs) of what answers at `url`; ServerError where that is no vLLM that says something."""
    handle = handle_of(url)
    control = control_of(handle, workspace)
    try:
        card = chosen(control.models(), model)
        version = control.version()
        if not says_something(first_completion(control, card.id)):
            raise ServerError(f"the completion of the server at {url} says nothing", "ask whoever runs it")
        return card, version, show(card, version, control)
    except MeasureError as error:
        key = "" if key_of(handle, workspace) else "; a server that wants an API key takes it from VLLM_API_KEY"
        raise ServerError(error.message, f"is it a vLLM server, and up?{key}") from error


def and_replicas(count: int) -> str:
    """Return the words for so many servers more."""
    return f" and {count} replica{'s' if count > 1 else ''}" if count else ""


def handle_of(url: str) -> Handle:
    """Return how to reach a server that someone else runs."""
    return Handle(launch_id=url, base_url=url, pid=None, created=None, log="", samples="", ready_s=0, phases_s={})


def chosen(cards: list[ModelCard], name: str) -> ModelCard:
    """Return the served model of that name, or the only one there is; ServerError names what there is."""
    found = [card for card in cards if card.id == name] or (cards if len(cards) == 1 else [])
    if not found:
        raise ServerError(f"the server serves {', '.join(card.id for card in cards) or 'no model'}", "choose one: --set model.name=NAME")
    return found[0]


def restarted(server: Server, workspace: Workspace) -> Server:
    """Stop the server, start it again with the same command and put its new handle on record; its identity stays."""
    store = Store(workspace.artifacts)
    launch, envelope = state.current(workspace, server.handle.launch_id), store.read("serve")
    if launch is None or envelope is None:
        raise ServerError("the server to restart is not the one on record", "start it with `invoke serve`")
    workspace.say(f"restarting the server (pid {launch.pid})")
    stop_server(launch, workspace)
    changes = relaunched(launch, server.vllm, workspace)
    handle = changes["handle"].model_copy(update={"earlier": server.handle.launches})
    again = server.model_copy(update={**changes, "handle": handle})
    store.write("serve", envelope.because, envelope.started, envelope.duration_s, again)
    return again


def relaunched(launch: Launch, version: str, workspace: Workspace) -> dict[str, Any]:
    """Start what was stopped again, with the same command and environment; return what changes in the server's record."""
    folder = launching.model_folder(launch.command)
    proofs, handle = launched(launch.settings, launch.command, launch.model, version, folder, workspace)
    started = state.read(workspace)
    if started is not None:
        state.write(workspace, started.model_copy(update={"stays": launch.stays}))
    return {"real": is_real(proofs), "proofs": proofs, "handle": handle}


def launched(
    settings: ServeConfig, words: list[str], model: str, version: str, folder: Path, workspace: Workspace
) -> tuple[list[Proof], Handle]:
    """Start `words` and wait; return the proofs and the handle of a launch that is ready and ours, or leave nothing running."""
    launch = launching.start(settings, words, model, workspace)
    try:
        return await_server(launch, version, folder, workspace)
    except BaseException:  # also Ctrl-C: what we started must not outlive us
        stop_server(launch, workspace)
        raise


def cautions(settings: ServeConfig, workspace: Workspace) -> list[str]:
    """Return what whoever starts this should know."""
    found = []
    if settings.trust_remote_code:
        found.append("serve.trust_remote_code runs code that came with the model")
    if settings.is_open:
        file = key_file(workspace).name
        found.append(f"host {settings.host} is open to everyone who reaches this machine; clients need the key in {file}")
    return found


def log_of(server: Server, workspace: Workspace) -> Path | None:
    """Return the server's log, where it is ours to read."""
    return workspace.root / server.handle.log if server.handle.log else None


def settled(settings: ServeConfig, host: Host, distribution: str, versions: Mapping[str, str] = MappingProxyType({})) -> ServeConfig:
    """Return the settings with what `auto` leaves to the machine decided, as benchmarks/README.md found it to pay.

    `versions` are those of the packages of the server's environment.
    """
    on_cpu = distribution == CPU_SET.distribution
    eager, executor = settings.enforce_eager, settings.distributed_executor_backend
    alone = settings.world_size == settings.data_parallel_size == 1
    if eager == "auto":
        eager = on_cpu and "avx512_vnni" not in host.vector
    if executor == "auto" and on_cpu and alone and host.physical_cores <= MOST_UNBOUND_CORES:
        executor = "uni"
    # vLLM takes another executor for the CPU than the one asked for, unless this is set; it then leaves the threads to us.
    threads = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(host.physical_cores)}
    env = {**({} if on_cpu else quick_start(versions, alone)), **(threads if on_cpu and executor == "uni" else {}), **settings.env}
    return settings.model_copy(update={"enforce_eager": eager, "distributed_executor_backend": executor, "env": env})


def planned(settings: ServeConfig, machine: Machine, distribution: str, folder: Path) -> Plan | None:
    """Return what the start will take of the device that decides; None where it is not known."""
    asked = demanded(settings, machine, distribution, folder)
    return asked.at(settings.gpu_memory_utilization) if asked else None


def demanded(settings: ServeConfig, machine: Machine, distribution: str, folder: Path) -> Demand | None:
    """Return what the start asks of the device that decides; None without one, or where model or flags do not tell."""
    device = deciding(machine.gpus, settings)
    if distribution == CPU_SET.distribution or device is None or unplanned(settings):
        return None
    try:
        shape = read_shape(folder)
        weights, source = weight_bytes(folder, shape, settings.dtype)
    except ModelError:
        return None
    return demand(settings, shape, weights, source, device.total_mib)


def insist_on_answers(server: Server) -> None:
    """Raise MeaninglessError when the server's answers are noise."""
    if server.random_weights:
        raise MeaninglessError(_("the weights are random (serve.load_format: dummy), so the answers are noise"))


def server_present(server: Server, workspace: Workspace) -> bool:
    """Tell whether the recorded launch still runs and answers, or the server of another's still serves the same."""
    if server.attached:
        control = control_of(server.handle, workspace)
        try:
            return control.version() == server.vllm and any(card.id == server.model for card in control.models())
        except MeasureError:
            return False
    launch = state.current(workspace, server.handle.launch_id)
    if launch is None or not state.is_running(launch):
        return False
    return control_of(server.handle, workspace).answers()


def clear_old(workspace: Workspace) -> None:
    """Stop our own earlier server, or what is left of it."""
    old = state.read(workspace)
    if old is None:
        return
    if state.is_running(old):
        workspace.say(f"stopping our earlier server (pid {old.pid}, port {old.port})")
    else:
        workspace.say(f"our earlier {gone(old, workspace).message.removeprefix('the ')} (pid {old.pid})")
    for killed in stop_server(old, workspace).killed:
        workspace.say(f"killed what was left of it: {killed}")


def await_server(launch: Launch, version: str, folder: Path, workspace: Workspace) -> tuple[list[Proof], Handle]:
    """Return (proofs, handle) of a launch once it is ready and proven; ServerError otherwise."""
    log = workspace.root / launch.log
    control = control_of(launch, workspace)
    phases, ready_s = wait_until_ready(launch, log, control, workspace.say)
    try:
        proofs = prove(launch, control, Path(launch.command[0]), version, folder, launch.settings.max_model_len)
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
    if is_monitored(log.read_text(encoding="utf-8", errors="replace")):
        began = time.monotonic()
        target = Target(launch.base_url, lambda: state.is_running(launch), key_of(launch, workspace))
        count = warm_up(target, launch.model, launch.settings.max_num_seqs, launch.settings.max_model_len)
        workspace.say(f"warmed up with {count} requests in {time.monotonic() - began:.1f} s")
    return proofs, Handle(
        launch_id=launch.id,
        base_url=launch.base_url,
        keyed=launch.keyed,
        pid=launch.pid,
        created=launch.created,
        log=launch.log,
        log_start=log.stat().st_size,
        samples=workspace.relative(workspace.launches / launch.id / state.SAMPLES),
        ready_s=round(ready_s, 2),
        phases_s={name: round(seconds, 2) for name, seconds in phases.durations(ready_s).items()},
    )


def shown_command(words: list[str], workspace: Workspace) -> list[str]:
    """Return the command as a person in the project folder types it."""
    return [word.removeprefix(f"{workspace.root}/") for word in words]


def device_of(machine: Machine, installation: Installation) -> str:
    """Return the name of what the server computes on."""
    if installation.distribution == CPU_SET.distribution or machine.profile == CPU_PROFILE or not machine.gpus:
        return machine.host.cpu
    return machine.gpus[0].name
