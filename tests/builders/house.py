"""A project folder whose records are what a test sets, and its report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.config.gates import Gate, Gates
from pipeline.config.schema import Alternative, Alternatives, ReportConfig
from pipeline.contexts import ActiveWaivers, Invocation
from pipeline.dag import NOTES
from pipeline.dag import STAGES as DAG
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import Artifact, Failure, Outcome
from pipeline.engine.workspace import Workspace
from pipeline.report.stage import Report, report
from pipeline.terminal import Silent
from tests.builders.records import outcome

GATES = {
    "ttft": Gate(label="First token", metric="bench.ttft_ms_p95", statistic="p95", comparator="<", target=500, unit="ms", min_n=59),
    "vram": Gate(
        label="VRAM", metric="measure-vram.vram_peak_mib", comparator="<", target=4768, unit="MiB", judge_by="point", required=False
    ),
    "json": Gate(
        label="JSON | parses",
        metric="test-router.constrained_schema_valid",
        comparator="==",
        target=100,
        unit="%",
        judge_by="point",
        table="criteria",
    ),
}


ALTERNATIVES = (
    Alternative(model="Small", size="1B", vram="~1GB", use_case="Router", profile="cpu"),
    Alternative(model="Large", size="7B", vram="~8GB", use_case="Chat", profile="large"),
    Alternative(model="Unknown", size="9B", vram="~9GB", use_case="Chat"),
)


@dataclass
class House:
    """A project folder whose records are what a test sets."""

    root: Path
    results: dict[str, Artifact | Failure | None] = field(default_factory=dict)
    measured_on: Artifact | Failure | None = None
    fallbacks: tuple[str, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    language: Literal["en", "tr"] = "en"
    output: str = "REPORT.md"
    waivers: ActiveWaivers = field(default_factory=ActiveWaivers)

    def outcomes(self) -> Outcomes:
        """Return the records as the engine gives them to the report."""
        return outcomes_of({name: outcome(name, result, self.measured_on) for name, result in self.results.items()}, self.edges)

    def report(self) -> Report:
        invocation = Invocation(profile="cpu", fallbacks=self.fallbacks, waivers=self.waivers)
        settings = ReportConfig(output=self.output, language=self.language)
        workspace = Workspace(self.root, Silent())
        return report(settings, Gates(GATES), Alternatives(ALTERNATIVES), invocation, self.outcomes(), workspace)

    def text(self) -> str:
        return (self.root / self.report().path).read_text(encoding="utf-8")


def outcomes_of(named: Mapping[str, Outcome[Any]], edges: Sequence[tuple[str, str]] = ()) -> Outcomes:
    """Return these outcomes by their type; whatever is not among them never ran."""
    stages = {stage.makes: named.get(stage.name, Outcome(stage.name, None, None)) for stage in DAG if stage.name != "report"}
    notes = {kind: named.get(name, Outcome(name, None, None)) for kind, name in NOTES.items()}
    return Outcomes(stages, notes, edges)
