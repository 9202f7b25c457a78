"""What the sections of the report read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.config.schema import Alternative, ReportConfig
from pipeline.contexts import Invocation
from pipeline.engine.outcomes import Outcomes
from pipeline.report.figures import Marks
from pipeline.report.gates import Judged


@dataclass(frozen=True)
class Inputs:
    """The records of this server, judged; settings; how the command was called; and the project folder, where raw data are."""

    settings: ReportConfig
    alternatives: Sequence[Alternative]
    invocation: Invocation
    judged: Judged
    root: Path

    @property
    def outcomes(self) -> Outcomes:
        """Return the records, without what belongs to another server."""
        return self.judged.outcomes

    @cached_property
    def marks(self) -> Marks:
        """Return what the gates ask of each metric, which no rounding may hide."""
        found: dict[str, list[float]] = {}
        for row in self.judged.gates:
            found.setdefault(row.gate.metric, []).extend(row.gate.numbers)
        return found
