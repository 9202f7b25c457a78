"""A measured number with its unit, sample size and bounds."""

from pipeline.message import Sentence
from pipeline.values import Frozen


class Figure(Frozen):
    """A value with its unit, sample size and 95 % bounds; if it could not be measured, `value` is None and `reason` says why."""

    value: float | None
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    reason: Sentence = ""


def not_measured(unit: str, reason: str) -> Figure:
    """Return a figure without a value, with the reason."""
    return Figure(value=None, unit=unit, n=0, reason=reason)
