"""Rounding of figures to the digits that their uncertainty supports. Pure.

A value is rounded at the decimal place of the second significant digit of its uncertainty: half the width of its bounds, or the
distance to its only bound. It has at most three significant digits, and no decimals from 100 on; without bounds it is rounded
to just that. Bounds are rounded at the value's place. If rounding would move a number onto its target or across it, digits are
added until it does not; a share is never rounded to 0 or 100 %.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal

from pipeline.message import Digits

SIGNIFICANT = 3  # digits of a value without bounds
OF_UNCERTAINTY = 2
MOST_PLACES = 12
EXACT = Context(prec=1000)  # enough for the largest float
NONE = Digits("")


@dataclass(frozen=True)
class Shown:
    """A value and its bounds as text; a missing bound is empty."""

    value: Digits
    low: Digits = NONE
    high: Digits = NONE


def shown(value: float, low: float | None = None, high: float | None = None, marks: Collection[float] = ()) -> Shown:
    """Return the value and its bounds, rounded so that each stays on its side of every mark."""
    bounds = [bound for bound in (low, high) if bound is not None and math.isfinite(bound)]
    if not math.isfinite(value):
        return Shown(Digits(value), *(NONE if bound is None else number(bound, marks) for bound in (low, high)))
    at = min(places(value), place_from_bounds(value, bounds))
    return Shown(round_at(value, at, marks), *(NONE if bound is None else round_at(bound, at, marks) for bound in (low, high)))


def number(value: float, marks: Collection[float] = ()) -> Digits:
    """Return `value` with three significant digits, without decimals from 100 on and never with an exponent."""
    return round_at(value, places(value), marks)


def places(value: float) -> int:
    """Return the number of decimals that three significant digits need; 0 from 100 on."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, SIGNIFICANT - 1 - exponent(Decimal(f"{value:.{SIGNIFICANT - 1}e}")))


def place_from_bounds(value: float, bounds: Sequence[float]) -> int:
    """Return the decimal place to which the bounds support the value; negative places are left of the decimal point."""
    width = max(bounds) - min(bounds) if len(bounds) > 1 else max((abs(bound - value) for bound in bounds), default=0.0)
    half = width / 2 if len(bounds) > 1 else width
    if half == 0 or not math.isfinite(half):
        return places(value)
    return OF_UNCERTAINTY - 1 - exponent(Decimal(half))


def exponent(value: Decimal) -> int:
    """Return the power of ten of the first significant digit."""
    return value.adjusted()


def round_at(value: float, at: int, marks: Collection[float] = ()) -> Digits:
    """Return `value` at that decimal place, or at the next that keeps it on its side of each mark, without trailing zeros."""
    if not math.isfinite(value):
        return Digits(value)
    exact = Decimal(repr(value))
    sides = [side(exact, Decimal(repr(float(mark)))) for mark in marks if math.isfinite(mark)]
    for place in range(at, max(at, MOST_PLACES) + 1):
        short = exact.quantize(Decimal(1).scaleb(-place), ROUND_HALF_EVEN, EXACT)
        if [side(short, Decimal(repr(float(mark)))) for mark in marks if math.isfinite(mark)] == sides:
            return plain(short)
    return plain(exact)


def side(value: Decimal, mark: Decimal) -> int:
    """Return -1, 0 or 1: below, on or above the mark."""
    return (value > mark) - (value < mark)


def plain(value: Decimal) -> Digits:
    """Return the number without an exponent, trailing zeros after the point, or a sign before 0."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return Digits("0" if text in ("-0", "") else text)


def ends_of(unit: str) -> tuple[float, ...]:
    """Return the values to which a figure of this unit is never rounded: 0 and 100 for a share."""
    return (0.0, 100.0) if unit == "%" else ()


def counted(count: int, what: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1."""
    return f"{count} {what}{'' if count == 1 else 's'}"
