"""The cautions at the top of the report."""

from pipeline.config.schema import is_loopback
from pipeline.measure.digits import ends_of
from pipeline.message import Code, Message, _
from pipeline.report.cells import Text, comma_separated, glued, number
from pipeline.report.inputs import Inputs
from pipeline.stages.bench import BenchResult
from pipeline.stages.check_gpu import Machine
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server

THROTTLED_PERCENT = 5  # of the samples under load; touching the power limit briefly is normal


def cautions(inputs: Inputs) -> list[Text]:
    """Return the cautions: fallbacks of the profile first, then server, devices, ledger and throttling."""
    outcomes = inputs.outcomes
    server = outcomes[Server].data
    return [
        *inputs.invocation.fallbacks,
        *(server_cautions(server) if server is not None else []),
        *machine_cautions(outcomes[Machine].data, server),
        *ledger_cautions(outcomes[BenchResult].data),
        *throttling_cautions(outcomes[MemoryUse].data),
    ]


def server_cautions(server: Server) -> list[Text]:
    """Return cautions about an attached, retried, random-weight, remote-code or open server."""
    result: list[Text] = []
    if server.attached:
        result.append(
            _(
                "Measured on the server at {address}, which someone else runs: its identity is what its endpoint shows, "
                "and its life cycle and memory were not ours to measure.",
                address=server.attached,
            )
        )
        if not server.warm_ups:
            result.append(
                _(
                    "That server got no warm-up requests: the first of each kind may have waited for kernels to compile ({setting}).",
                    setting=Code("attach.warm_up"),
                )
            )
    result += [
        _("A start failed and was repeated with {changed}: {cause}.", changed=entry.changed, cause=entry.cause) for entry in server.attempts
    ]
    if server.random_weights:
        result.append(_("This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."))
    if "--trust-remote-code" in server.command:
        result.append(_("The server ran code that came with the model ({setting}).", setting=Code("serve.trust_remote_code")))
    host = server.command[server.command.index("--host") + 1] if "--host" in server.command else ""
    if host and not is_loopback(host):
        result.append(_("The server listened on {host}, open to everyone who reached that machine, with an API key.", host=host))
    return result


def machine_cautions(machine: Machine | None, server: Server | None) -> list[Text]:
    """Return the cautions of check-gpu about the devices; empty for an attached server."""
    if machine is None or (server is not None and server.attached):
        return []
    return [glued(caution.fact, " → ", caution.fix) for caution in machine.cautions]


def ledger_cautions(bench: BenchResult | None) -> list[Text]:
    """Return a caution if the counts of client and server differ."""
    differences = [(count, count.server) for count in (bench.ledger if bench else []) if count.server is not None and not count.agrees]
    if not differences:
        return []
    counts = comma_separated(
        _("{name} {client} and {server}", name=Message(count.name), client=count.client, server=server) for count, server in differences
    )
    return [_("Client and server did not count the same ({counts}): others were served meanwhile, or requests failed.", counts=counts)]


def throttling_cautions(memory: MemoryUse | None) -> list[Text]:
    """Return a caution if the GPU was throttled in at least THROTTLED_PERCENT of the samples under load."""
    share = memory.figures.get("gpu_throttled") if memory else None
    if memory is None or share is None or share.value is None or share.value < THROTTLED_PERCENT:
        return []
    return [
        _(
            "The GPU was throttled in {share} % of {n} samples under load ({reasons}): better cooled or fed it is faster.",
            share=number(share.value, ends_of("%")),
            n=share.n,
            reasons=comma_separated(_("{name} in {count}", name=name, count=count) for name, count in memory.throttled.items()),
        )
    ]
