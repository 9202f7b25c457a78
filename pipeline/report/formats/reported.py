"""A gate of report.json as plain text: its target, its figure, its verdict. Pure."""

from pipeline.report.cells import Measured, Target
from pipeline.report.formats.document import ReportedGate
from pipeline.report.formats.plain import Plain

PLAIN = Plain()


def target_words(gate: ReportedGate) -> str:
    """Return the gate's target."""
    return PLAIN.text(Target(gate.comparator, gate.target, gate.unit, (gate.statistic,) if gate.statistic else ()))


def measured_words(gate: ReportedGate) -> str:
    """Return the gate's figure."""
    if gate.value is None:
        return "not measured" if gate.low is None or gate.high is None else "undecided"
    marks = () if isinstance(gate.target, str) else (gate.target,)
    return PLAIN.text(Measured(gate.value, gate.unit, gate.n, gate.low, gate.high, marks))


def verdict_words(gate: ReportedGate) -> str:
    """Return the verdict with its waiver and its reason."""
    waiver = f" ({gate.waiver})" if gate.waiver else ""
    suffix = "" if gate.required else " (not required)"
    return f"{gate.verdict}{waiver}{suffix}" + (f": {gate.reason}" if gate.reason else "")
