"""A measured number with its unit, sample size and bounds."""

from collections.abc import Mapping

from pipeline.message import Sentence
from pipeline.values import Frozen


class Figure(Frozen):
    """A value with its unit, sample size and 95 % bounds; `value` is None when it could not be measured, with the reason.

    `failed` counts the requests that gave no value, beside the n that did. `invalid` says what contradicts the value.
    """

    value: float | None
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    reason: Sentence = ""
    failed: int = 0
    starts: int = 1  # of the server, over which it was measured
    invalid: Sentence = ""

    @property
    def valid(self) -> float | None:
        """Return the value unless something contradicts it."""
        return None if self.invalid else self.value


def not_measured(unit: str, reason: str) -> Figure:
    """Return a figure without a value, with the reason."""
    return Figure(value=None, unit=unit, n=0, reason=reason)


def invalidated(figures: Mapping[str, Figure], reason: str) -> dict[str, Figure]:
    """Return the figures, those with a value marked as contradicted for `reason`; an earlier reason stays, an empty one marks none."""
    return {
        name: figure.model_copy(update={"invalid": reason}) if reason and figure.value is not None and not figure.invalid else figure
        for name, figure in figures.items()
    }
