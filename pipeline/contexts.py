"""What stages are given by the command line, the machine and the day, beside their settings."""

from datetime import date

from pipeline.config.gates import Gates, Waiver, Waivers
from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.engine.context import Context


class VisibleDevices(Context):
    """The devices that serve.env leaves the server, as CUDA_VISIBLE_DEVICES; None where our environment decides."""

    devices: str | None = None


class RequestLimits(Context):
    """What a single request may take for the gates to pass; None where no gate says."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


class ActiveWaivers(Context):
    """The waivers of a day, by the gates' ids: those in force and those that have expired."""

    in_force: dict[str, Waiver] = {}
    expired: dict[str, Waiver] = {}


class Invocation(Context):
    """How the command was called, and when.

    `assignments`: what the environment and --set say, as KEY=VALUE, weakest first; the profile aside. `fallbacks`: why a smaller
    profile took the place of the one asked for, one sentence each.
    """

    profile: str
    assignments: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    waivers: ActiveWaivers = ActiveWaivers()


def visible_devices(serve: ServeConfig) -> VisibleDevices:
    """Return which devices the server's own environment chooses."""
    return VisibleDevices(devices=serve.env.get(CUDA_DEVICES))


def request_limits(gates: Gates) -> RequestLimits:
    """Return the limits for a single request that the gates imply, the strictest where several do."""
    wanted = [(gate.metric, gate.comparator, number) for gate in gates.root.values() for number in gate.numbers]
    at_most = [(metric, number) for metric, comparator, number in wanted if comparator in ("<", "<=")]
    at_least = [(metric, number) for metric, comparator, number in wanted if comparator in (">", ">=") and number > 0]
    found = [(name, number) for name in RequestLimits.model_fields for metric, number in at_most if metric.startswith(f"bench.{name}_")]
    found += [("tpot_ms", 1000 / number) for metric, number in at_least if metric.startswith("bench.decode_tok_s_")]
    return RequestLimits(**dict(sorted(found, reverse=True)))  # of the same name the last stays, which is the smallest


def active_waivers(waivers: Waivers, day: date) -> ActiveWaivers:
    """Return how the waivers stand on that day."""
    in_force = {name: waiver for name, waiver in waivers.root.items() if day <= waiver.expires}
    return ActiveWaivers(in_force=in_force, expired={name: waiver for name, waiver in waivers.root.items() if name not in in_force})
