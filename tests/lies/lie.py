"""What a lie is: a server that tells something untrue or breaks something, the gate it is after, and its honest twin."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from pipeline.config.gates import Gate
from pipeline.measure.verdicts import Verdict
from tests.builders.stages import gates
from tests.fakes.script import Script
from tests.lies.front import Twist

Stage = Literal["bench", "test-router", "test-determinism", "measure-vram"]
NO_PASS: frozenset[Verdict] = frozenset({"FAIL", "INVALID", "INCONCLUSIVE", "NOT_MEASURED"})
FAILS: frozenset[Verdict] = frozenset({"FAIL"})
UNBELIEVED: frozenset[Verdict] = frozenset({"INVALID", "NOT_MEASURED"})
INVALID: frozenset[Verdict] = frozenset({"INVALID"})
LONG_MS = 20_000.0  # no honest answer of these tests takes so long, however loaded the machine is


@dataclass(frozen=True, eq=False)
class Situation:
    """A server, by the fake's script and a proxy's twist, and what happens around it.

    `identity` is how its identity is proven: not at all (`told`), as a server that we started, or as one that we attach to.
    `around` is entered for the whole measurement. `host_mib` is the memory of its processes by seconds of load; `load_s` is how
    long earlier tests have loaded it. `visits` is how often the same is measured, the last time counts.
    """

    script: Callable[[], Script] = Script
    twist: Callable[[], Twist] | None = None
    identity: Literal["told", "started", "attached"] = "told"
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    host_mib: Callable[[float], float] | None = None
    load_s: float = 0.0
    visits: int = 1


@dataclass(frozen=True, eq=False)
class Twin:
    """The honest twin of a lie, which must get PASS: judged by the lie's gate, settings and margin where it has none of its own."""

    server: Situation
    gate: Gate | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None


HONEST = Twin(Situation(lambda: Script(inter_token_s=0.005)))


@dataclass(frozen=True, eq=False)
class Lie:
    """One lie, and beside it a twin that does the same honestly.

    `allowed` are the verdicts that may come out on `gate`. Where the figure itself may stand, it lies within `truth`, in its unit.
    With a `margin`, the gate's target lies so far below the figure, relative.
    """

    name: str
    says: str
    stage: Stage
    gate: Gate
    server: Situation
    allowed: frozenset[Verdict]
    truth: tuple[float, float] | None = None
    twin: Twin = HONEST
    settings: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None


@dataclass(frozen=True)
class Unseen:
    """A lie that cannot be seen over HTTP, and why."""

    name: str
    says: str
    why: str


@cache
def shipped() -> Mapping[str, Gate]:
    return gates()


def gate(name: str, **changes: Any) -> Gate:
    """Return a shipped gate, with changes that fit a small test."""
    return shipped()[name].model_copy(update=changes)


def gate_on(metric: str, comparator: str, target: float, unit: str = "%", **more: Any) -> Gate:
    """Return a gate on a figure for which none is shipped."""
    return Gate.model_validate(
        {"label": metric, "metric": metric, "comparator": comparator, "target": target, "unit": unit, "judge_by": "point", **more}
    )
