"""One measured number with what makes it a measurement: unit, n, bounds."""

from pipeline.message import Sentence
from pipeline.values import Frozen


class Figure(Frozen):
    """A value with its unit, sample size and 95 % bounds; `value` is None when it could not be measured, with the reason."""

    value: float | None
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    reason: Sentence = ""


def not_measured(unit: str, reason: str) -> Figure:
    """Return the figure that says why there is no value."""
    return Figure(value=None, unit=unit, n=0, reason=reason)
