"""The outcome of each stage."""

from pipeline.engine.record import BLOCKED, Artifact, Outcome
from pipeline.errors import MeaninglessError
from pipeline.message import _
from pipeline.report.cells import amount, number
from pipeline.report.gates import Judged
from pipeline.report.parts import FailureNote, StageRow
from pipeline.report.sections.common import moment


def stage_row(outcome: Outcome[Artifact]) -> StageRow:
    """Return the row of a stage: how it ended, how long it took, and when it started."""
    envelope, failure = outcome.envelope, outcome.failure
    kind = "ok" if failure is None else "skipped" if failure.kind in (BLOCKED, MeaninglessError.kind) else "failed"
    if envelope is None:
        if failure is None:
            return StageRow(outcome.stage, _("never ran"))
        return StageRow(outcome.stage, failure.message, kind=kind)
    state = "ok" if envelope.data else _("failed: {message}", message=failure.message if failure else "")
    took = amount([number(envelope.duration_s), " s"], envelope.duration_s)
    return StageRow(outcome.stage, state, took, moment(envelope.started), kind)


def failure_notes(judged: Judged) -> list[FailureNote]:
    """Return the failures, without stages that were only blocked or had nothing to measure."""
    return [FailureNote(name, failure) for name, failure in judged.failures]
