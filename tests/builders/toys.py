"""Toy stages in a project folder of their own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Artifact, Outcome
from pipeline.engine.stage import Result, Stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.terminal import Silent


class KnobConfig(BaseModel):
    level: int = 10
    colour: str = "red"

    def files(self) -> tuple[str, ...]:
        return ("data",)


class Base(Artifact):
    tens: int


class Thing(Artifact):
    tens: int


class Use(Artifact):
    tens: int


class Other(Artifact):
    tens: int


class Summary(Artifact):
    words: str


class Note(Artifact):
    text: str


class Orphan(Artifact):
    pass


@dataclass
class ToyHouse:
    """A project folder with toy stages: base → thing (a resource) → use, base → other, summary of use and other."""

    root: Path
    knob: KnobConfig = field(default_factory=KnobConfig)
    calls: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    interrupted: set[str] = field(default_factory=set)
    troubled: dict[str, OSError] = field(default_factory=dict)
    gone: bool = False
    seen: list[Outcome[Any]] = field(default_factory=list)
    reported: list[Result] = field(default_factory=list)

    def called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.interrupted:
            raise KeyboardInterrupt
        if name in self.troubled:
            raise self.troubled[name]
        if name in self.failing:
            log = self.root / "server.log"
            log.write_text("\n".join(f"line {number}" for number in range(100)), encoding="utf-8")
            raise ServerError(f"{name} broke", "mend it", log)

    def stages(self) -> list[Stage]:
        def base(settings: KnobConfig) -> Base:
            """Tens only, so that a small change of the level changes nothing downstream."""
            self.called("base")
            return Base(tens=settings.level // 10)

        def thing(base: Base) -> Thing:
            """A resource."""
            self.called("thing")
            self.gone = False
            return Thing(tens=base.tens)

        def use(thing: Thing, workspace: Workspace) -> Use:
            """Uses the resource."""
            assert workspace.root == self.root
            assert not self.gone
            self.called("use")
            return Use(tens=thing.tens)

        def other(base: Base) -> Other:
            """Does without the resource."""
            self.called("other")
            return Other(tens=base.tens)

        def summary(use: Outcome[Use], other: Outcome[Other], note: Outcome[Note]) -> Summary:
            """Takes whatever there is."""
            self.called("summary")
            self.seen = [use, other, note]
            return Summary(words=f"{use.data and use.data.tens} {other.data and other.data.tens}")

        # not in the order of their needs
        return [
            Stage(summary),
            Stage(use),
            Stage(thing, present=lambda _thing, _workspace: not self.gone),
            Stage(base),
            Stage(other),
        ]

    def pipeline(self) -> Pipeline:
        """Return a pipeline over the same folder, as each command makes one."""
        return Pipeline(self.stages(), Workspace(self.root, Silent()), lambda _kind: self.knob, {Note: "note"}, report=self.reported.append)

    def run(self, *names: str, **options: Any) -> dict[str, str]:
        """Run as one command; return each stage's state. `calls` and `reported` are those of this run."""
        self.calls.clear()
        self.reported.clear()
        return {result.stage: result.state for result in self.pipeline().ensure(names or ("summary",), **options)}

    def why(self, name: str) -> str:
        pipeline = self.pipeline()
        return pipeline.why(pipeline.stage(name))
