"""The records of a run, by type."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from pipeline.engine.record import Artifact, Measurement, Outcome

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of all stages, in order, and of the notes, which no stage makes; `edges` are (needed, needing) stages."""

    by_stage: Mapping[type[Artifact], Outcome[Any]]
    by_note: Mapping[type[Artifact], Outcome[Any]]
    edges: Sequence[tuple[str, str]] = ()

    def __getitem__(self, kind: type[A]) -> Outcome[A]:
        """Return the outcome of the stage or note that makes `kind`; KeyError if none does."""
        return cast(Outcome[A], self.by_stage[kind] if kind in self.by_stage else self.by_note[kind])

    def __iter__(self) -> Iterator[Outcome[Artifact]]:
        """Yield the stages' outcomes, then the notes'."""
        yield from self.by_stage.values()
        yield from self.by_note.values()

    @property
    def stages(self) -> list[Outcome[Artifact]]:
        """Return the stages' outcomes."""
        return list(self.by_stage.values())

    @property
    def measuring(self) -> list[Outcome[Measurement]]:
        """Return the outcomes of the stages that measure."""
        return [outcome for kind, outcome in self.by_stage.items() if issubclass(kind, Measurement)]

    def named(self, name: str) -> Outcome[Artifact] | None:
        """Return the outcome of that stage or note, None if there is none."""
        return next((outcome for outcome in self if outcome.stage == name), None)

    def having(self, changed: Mapping[str, Outcome[Any]]) -> "Outcomes":
        """Return a copy in which `changed` replaces the outcomes of the same name."""
        stages, notes = ({kind: changed.get(one.stage, one) for kind, one in part.items()} for part in (self.by_stage, self.by_note))
        return replace(self, by_stage=stages, by_note=notes)
