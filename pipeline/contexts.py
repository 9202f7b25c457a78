"""Inputs of stages from the command line, the machine and the day."""

from datetime import date

from pipeline.config.gates import Gates, Waiver, Waivers
from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.engine.context import Context


class VisibleDevices(Context):
    """The server's CUDA_VISIBLE_DEVICES from serve.env; None if our environment decides."""

    devices: str | None = None


class RequestLimits(Context):
    """The most that a single request may take for the gates to pass; None where no gate sets a limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


class ActiveWaivers(Context):
    """The waivers on a given day, by the gates' ids: those in force and those that have expired."""

    in_force: dict[str, Waiver] = {}
    expired: dict[str, Waiver] = {}


class Invocation(Context):
    """How the command was called, and when.

    `assignments`: the settings from the environment and --set as KEY=VALUE, weakest first, without the profile. `fallbacks`: why a
    smaller profile replaced the requested one, one sentence each.
    """

    profile: str
    assignments: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    waivers: ActiveWaivers = ActiveWaivers()


def visible_devices(serve: ServeConfig) -> VisibleDevices:
    """Return the devices that serve.env makes visible to the server."""
    return VisibleDevices(devices=serve.env.get(CUDA_DEVICES))


def request_limits(gates: Gates) -> RequestLimits:
    """Return the limits for a single request that the gates imply, the strictest where there are several."""
    targets = [(gate.metric, gate.comparator, number) for gate in gates.root.values() for number in gate.numbers]
    at_most = [(metric, number) for metric, comparator, number in targets if comparator in ("<", "<=")]
    at_least = [(metric, number) for metric, comparator, number in targets if comparator in (">", ">=") and number > 0]
    limits = [(name, number) for name in RequestLimits.model_fields for metric, number in at_most if metric.startswith(f"bench.{name}_")]
    limits += [("tpot_ms", 1000 / number) for metric, number in at_least if metric.startswith("bench.decode_tok_s_")]
    return RequestLimits(**dict(sorted(limits, reverse=True)))  # the last of several with the same name wins: the smallest


def active_waivers(waivers: Waivers, day: date) -> ActiveWaivers:
    """Return the waivers as of that day."""
    in_force = {name: waiver for name, waiver in waivers.root.items() if day <= waiver.expires}
    return ActiveWaivers(in_force=in_force, expired={name: waiver for name, waiver in waivers.root.items() if name not in in_force})
