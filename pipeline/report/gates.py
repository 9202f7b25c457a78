"""Gates against the records: find each gate's figure and judge it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import Gate
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.verdicts import Judgement, judge
from pipeline.record import Measurement, Outcome


@dataclass(frozen=True)
class JudgedGate:
    """A gate with the figure that it took and the verdict."""

    id: str
    gate: Gate
    figure: Figure | None
    judgement: Judgement


def judge_all(gates: Mapping[str, Gate], outcomes: Mapping[str, Outcome[Any]]) -> list[JudgedGate]:
    """Return each gate judged on the outcome of the stage that its metric names."""
    result = []
    for name, gate in gates.items():
        stage, _, metric = gate.metric.partition(".")
        figure, simulated = find(outcomes.get(stage), metric, gate.unit)
        judgement = judge(figure, gate.comparator, gate.target, gate.min_n, gate.judge_by == "bound", simulated)
        result.append(JudgedGate(name, gate, figure, judgement))
    return result


def find(outcome: Outcome[Measurement] | None, metric: str, unit: str) -> tuple[Figure, bool]:
    """Return (figure, simulated); a stage that failed or never ran gives a figure without value and the reason."""
    if outcome is None:
        return not_measured(unit, "no such stage"), False
    if outcome.data is None:
        reason = outcome.failure.message if outcome.failure else f"{outcome.stage} never ran"
        return not_measured(unit, reason), False
    figure = outcome.data.figures.get(metric)
    return figure or not_measured(unit, f"{outcome.stage} has no figure {metric}"), outcome.data.simulated
