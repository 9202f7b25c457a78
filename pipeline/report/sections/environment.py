"""The environment that the figures depend on: machine, installation, model, and the server's command and proofs."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine.outcomes import Outcomes
from pipeline.message import Digits, Message, _, plural
from pipeline.report.cells import Text, comma_separated, glued
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server

Fact = tuple[Text, Text]


@dataclass(frozen=True)
class EnvironmentPart:
    """Facts by name, the server's command (empty unless started here), and the proofs of its identity."""

    facts: list[Fact]
    command: str
    proofs: list[tuple[Text, Text, Text]]


def environment(outcomes: Outcomes) -> EnvironmentPart:
    """Return the environment on record."""
    machine, installation, model, server = (
        outcomes[Machine].data,
        outcomes[Installation].data,
        outcomes[Model].data,
        outcomes[Server].data,
    )
    facts = [
        *(machine_facts(machine) if machine else []),
        *(installation_facts(installation) if installation else []),
        *(model_facts(model) if model else []),
    ]
    if server and not server.attached:
        phases = comma_separated(glued(Message(name), " ", Digits(f"{seconds:.1f}")) for name, seconds in server.handle.phases_s.items())
        facts.append((_("Server ready after"), glued(Digits(f"{server.handle.ready_s:.1f}"), " s (", phases, ")")))
    if server and server.warm_ups:
        facts.append((_("Warm-up"), plural("1 request before any was timed", "{count} requests before any was timed", server.warm_ups)))
    envelope = outcomes[Machine].envelope
    if envelope:
        facts.append((_("Pipeline"), envelope.host))
    command = shell_command(server.environment, server.command) if server else ""
    return EnvironmentPart(facts, command, proofs_of(server) if server else [])


def proofs_of(server: Server) -> list[tuple[Text, Text, Text]]:
    """Return the proofs of the server's identity: claim, whether it holds, and the evidence."""
    return [(proof.claim, _("yes") if proof.holds else _("no"), proof.seen) for proof in server.proofs]


def machine_facts(machine: Machine) -> list[Fact]:
    """Return the facts of processor, devices and driver."""
    host, driver = machine.host, machine.driver
    processor = _(
        "{cpu}, {cores} cores, {vector}, {memory} MiB",
        cpu=host.cpu,
        cores=host.cores,
        vector=" ".join(host.vector) or _("no wide vectors"),
        memory=host.memory_mib,
    )
    devices: list[Fact] = [
        (
            "GPU",
            _(
                "{name}, {mib} MiB, compute capability {capability}",
                name=gpu.name,
                mib=f"{gpu.total_mib:.0f}",
                capability=f"{gpu.compute_capability}",
            ),
        )
        for gpu in machine.gpus
    ]
    none = _("none: {reason}", reason=machine.reason)
    return [
        (_("Processor"), processor),
        *devices,
        (_("NVIDIA driver"), glued(driver.version, " (CUDA ", driver.cuda, ")") if driver else none),
    ]


def installation_facts(installation: Installation) -> list[Fact]:
    """Return the versions of vLLM, torch and Python, and the pinned requirements."""
    pinned = f", sha256 {installation.requirements_sha256[:12]}" if installation.requirements_sha256 else ""
    return [
        ("vLLM", f"{installation.distribution} {installation.vllm}, torch {installation.torch}, Python {installation.python}"),
        (_("Requirements"), glued(_("set {name} ({reason})", name=installation.set, reason=installation.reason), pinned)),
    ]


def model_facts(model: Model) -> list[Fact]:
    """Return the origin and the facts of the model."""
    facts, size_mib = model.facts, sum(entry.bytes for entry in model.files) / 2**20
    shape = [
        f"{facts.architecture}",
        f"{facts.dtype}",
        facts.quantization or _("unquantised"),
        _("{tokens} tokens", tokens=f"{facts.context_length}"),
        f"{size_mib:.0f} MiB",
    ]
    licence = forbidding_licence(model) or _("licence {licence}", licence=facts.license or _("not stated"))
    return [
        (_("Model"), _("{name} from {origin}, {revision}", name=model.name, origin=model.origin, revision=f"{model.revision}")),
        (_("Model facts"), glued(comma_separated(shape), "; ", licence)),
    ]


def forbidding_licence(model: Model | None) -> Text:
    """Return a note on a licence that forbids commercial use; empty for any other."""
    if model is None or not model.facts.non_commercial:
        return ""
    return _("licence {licence}: no commercial use", licence=model.facts.license or _("not stated"))


def shell_command(variables: Mapping[str, str], words: Sequence[str]) -> str:
    """Return the exact shell command, one option per line."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    current = ""
    for word in words:
        if word.startswith("--") and current:
            lines.append(current)
            current = ""
        current = f"{current} {shlex.quote(word)}".strip()
    return " \\\n  ".join([*lines, current])
