"""A stage: a function whose parameters name what it needs, and whose return type names what it makes."""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.engine.context import Context
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import Artifact, Measurement, Outcome
from pipeline.engine.workspace import Workspace

StageState = Literal["made", "unchanged", "left out", "failed", "blocked"]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline, described by the signature of its function.

    `observes` marks a stage that inspects the machine and so always runs. `present` tells from a record whether the thing that it
    describes (an environment, files, a running server) still exists; it is called only when that thing is needed. `called` replaces
    the function's name, for a stage that takes the place of another. An `exclusive` stage never runs beside another, as measurements
    require.
    """

    function: Callable[..., Artifact]
    observes: bool = False
    present: Callable[[Any, Workspace], bool] | None = None
    called: str | None = None
    exclusive: bool = True

    @property
    def name(self) -> str:
        return self.called or self.function.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.function)

    @cached_property
    def makes(self) -> type[Artifact]:
        return typing.cast(type[Artifact], self._hints["return"])

    @cached_property
    def needs(self) -> dict[str, type[Artifact]]:
        """Return the parameters that require another stage's data."""
        return {name: hint for name, hint in self._parameters if isinstance(hint, type) and issubclass(hint, Artifact)}

    @cached_property
    def reads(self) -> dict[str, type[Artifact]]:
        """Return the parameters that take another stage's outcome, whatever it is."""
        return {name: typing.get_args(hint)[0] for name, hint in self._parameters if typing.get_origin(hint) is Outcome}

    @cached_property
    def contexts(self) -> dict[str, type[Context]]:
        """Return the parameters that take a context: the command line, the machine or the day."""
        return {name: hint for name, hint in self._parameters if isinstance(hint, type) and issubclass(hint, Context)}

    @cached_property
    def settings(self) -> dict[str, type[BaseModel]]:
        """Return the parameters that take a section of the configuration."""
        return {
            name: hint
            for name, hint in self._parameters
            if isinstance(hint, type) and issubclass(hint, BaseModel) and not issubclass(hint, Artifact | Context)
        }

    @cached_property
    def gathers(self) -> list[str]:
        """Return the parameters that take the outcomes of all other stages."""
        return [name for name, hint in self._parameters if hint is Outcomes]

    @cached_property
    def workspaces(self) -> list[str]:
        return [name for name, hint in self._parameters if hint is Workspace]

    @property
    def measures(self) -> bool:
        """Tell whether its record is a measurement."""
        return issubclass(self.makes, Measurement)

    @property
    def _parameters(self) -> list[tuple[str, Any]]:
        return [(name, hint) for name, hint in self._hints.items() if name != "return"]


@dataclass(frozen=True)
class Result:
    """What this run did with a stage, and why."""

    stage: str
    state: StageState
    reason: str
    duration_s: float = 0.0
