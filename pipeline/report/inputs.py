"""The inputs of the report's sections."""

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
    """The judged records of this server, the settings, the invocation, and the project folder with the raw data."""

    settings: ReportConfig
    alternatives: Sequence[Alternative]
    invocation: Invocation
    judged: Judged
    root: Path

    @property
    def outcomes(self) -> Outcomes:
        """Return the outcomes, without those of another server."""
        return self.judged.outcomes

    @cached_property
    def marks(self) -> Marks:
        """Return the targets of the gates by metric, across which no value may be rounded."""
        targets: dict[str, list[float]] = {}
        for row in self.judged.gates:
            targets.setdefault(row.gate.metric, []).extend(row.gate.numbers)
        return targets
