"""What a reader must know before any figure."""

from pipeline.config.schema import is_loopback
from pipeline.measure.digits import ends_of
from pipeline.message import Code, Message, _
from pipeline.report.cells import Text, comma_separated, glued, number
from pipeline.report.inputs import Inputs
from pipeline.stages.bench import BenchResult
from pipeline.stages.check_gpu import Machine
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server

THROTTLED_PERCENT = 5  # of the samples under load; a touch of the power limit is no news


def cautions(inputs: Inputs) -> list[Text]:
    """Return what a reader must know, the server's own first."""
    outcomes = inputs.outcomes
    server = outcomes[Server].data
    return [
        *inputs.invocation.fallbacks,
        *(of_server(server) if server is not None else []),
        *of_machine(outcomes[Machine].data, server),
        *uncounted(outcomes[BenchResult].data),
        *throttled(outcomes[MemoryUse].data),
    ]


def of_server(server: Server) -> list[Text]:
    """Return what is unlike what a reader would expect of the server."""
    found: list[Text] = []
    if server.attached:
        found.append(
            _(
                "Measured on the server at {address}, which someone else runs: its identity is what its endpoint shows, "
                "and its life cycle and memory were not ours to measure.",
                address=server.attached,
            )
        )
    found += [
        _("A start failed and was repeated with {changed}: {cause}.", changed=entry.changed, cause=entry.cause) for entry in server.attempts
    ]
    if server.random_weights:
        found.append(_("This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."))
    if "--trust-remote-code" in server.command:
        found.append(_("The server ran code that came with the model ({setting}).", setting=Code("serve.trust_remote_code")))
    host = server.command[server.command.index("--host") + 1] if "--host" in server.command else ""
    if host and not is_loopback(host):
        found.append(_("The server listened on {host}, open to everyone who reached that machine, with an API key.", host=host))
    return found


def of_machine(machine: Machine | None, server: Server | None) -> list[Text]:
    """Return what check-gpu found worth knowing about the devices, where they are the server's."""
    if machine is None or (server is not None and server.attached):
        return []
    return [glued(caution.fact, " → ", caution.fix) for caution in machine.cautions]


def uncounted(bench: BenchResult | None) -> list[Text]:
    """Return that client and server did not count the same, where both counted."""
    differ = [(count, count.server) for count in (bench.ledger if bench else []) if count.server is not None and not count.agrees]
    if not differ:
        return []
    counts = comma_separated(
        _("{name} {client} and {server}", name=Message(count.name), client=count.client, server=server) for count, server in differ
    )
    return [_("Client and server did not count the same ({counts}): others were served meanwhile, or requests failed.", counts=counts)]


def throttled(memory: MemoryUse | None) -> list[Text]:
    """Return that the GPU was slower than it could be for more than a moment of the load, where it was."""
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
