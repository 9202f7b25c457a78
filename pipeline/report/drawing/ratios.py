"""The plot of two runs as SVG text: each figure's ratio with its interval on a logarithmic scale. Pure and deterministic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pipeline.measure.comparison import Word
from pipeline.report.drawing.plots import LETTER, TOP, WIDTH, Scale, box, legend, picture, rule, text

VERDICTS: tuple[Word, ...] = ("same", "worse", "better", "not comparable")  # the index is the colour
ROW, DOT, LABEL, RESULT = 20, 4, 330, 170  # px; LABEL is the most space left of the axes, RESULT the space right of them
FURTHEST = 1000.0  # ratios beyond this are drawn at the edge, with the number beside them
LEAST = 1.2
MOST_TICKS = 9
LINEAR_UP_TO = 4.0
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Ratio:
    """The ratio B / A of a figure, with its interval if any, the relative noise, and the verdict."""

    label: str
    ratio: float
    low: float | None
    high: float | None
    noise: float
    verdict: Word


def ratios(title: str, rows: Sequence[Ratio], left_out: int) -> str:
    """Return the plot of the ratios, with a line at 1 and the noise as a band around it; empty without rows."""
    if not rows:
        return ""
    low, high = span(rows)
    left = min(LABEL, LETTER * max(len(row.label) for row in rows) + 16)
    scale = Scale(math.log(low), math.log(high), left, WIDTH - RESULT)
    bottom = TOP + ROW * len(rows)
    body = []
    for tick in ticks(low, high):
        at = scale(math.log(tick))
        body += [rule("grid", at, TOP, at, bottom), *(text(at, y, f"{tick:g}", "middle") for y in (TOP - 4, bottom + 16))]
    for number, row in enumerate(rows):
        body += draw_row(row, scale, TOP + ROW * number)
    body.append(rule("axis", scale(0), TOP, scale(0), bottom))
    missing = f"; without a ratio, so not here: {left_out}" if left_out else ""
    body.append(text(12, bottom + 36, f"B / A with its 95 % interval; the band round 1 is the noise{missing}", "start"))
    return picture(title, bottom + 46, [*body, *legend(VERDICTS, filled=True)])


def draw_row(row: Ratio, scale: Scale, top: float) -> list[str]:
    """Return one row: the figure's name, noise, interval, value and verdict."""

    def at(value: float) -> float:
        return scale(math.log(clamp(value)))

    middle, colour = top + ROW / 2, VERDICTS.index(row.verdict)
    interval = f" ({row.low:.3f} to {row.high:.3f})" if row.low is not None and row.high is not None else ""
    hint = f"{row.label}: {row.ratio:.3f}{interval}, noise {100 * row.noise:.2g} %, {row.verdict}"
    band = at(1 / (1 + row.noise)), at(1 + row.noise)
    elements = [text(scale.at_low - 8, middle + 4, row.label, "end"), box("phase", band[0], top + 3, band[1] - band[0], ROW - 6, hint)]
    if row.low is not None and row.high is not None:
        elements.append(rule(f"line s{colour}", at(row.low), middle, at(row.high), middle))
        elements += [rule(f"line s{colour}", at(end), middle - DOT, at(end), middle + DOT) for end in (row.low, row.high)]
    dot = f'<circle class="f{colour}" cx="{at(row.ratio):.1f}" cy="{middle:.1f}" r="{DOT}"><title>{escape(hint)}</title></circle>'
    return [*elements, dot, text(scale.at_high + 12, middle + 4, f"{row.ratio:.3f} {row.verdict}", "start")]


def span(rows: Sequence[Ratio]) -> tuple[float, float]:
    """Return the lowest and the highest value of the axis, with a margin at both ends."""
    values = [value for row in rows for value in (row.ratio, row.low, row.high, 1 + row.noise, 1 / (1 + row.noise)) if value is not None]
    low, high = min(1 / LEAST, *map(clamp, values)), max(LEAST, *map(clamp, values))
    room = (high / low) ** 0.03
    return low / room, high * room


def clamp(value: float) -> float:
    """Clamp the value to the range of the axis."""
    return min(max(value, 1 / FURTHEST), FURTHEST)


def ticks(low: float, high: float) -> list[float]:
    """Return up to 9 round values between `low` and `high`, including 1."""
    if high / low <= LINEAR_UP_TO:
        candidates = [[round(step * number, 2) for number in range(math.ceil(low / step), math.floor(high / step) + 1)] for step in STEPS]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [[factor * 10.0**decade for decade in decades for factor in factors] for factors in ((1, 2, 5), (1, 3), (1,))]
    fitting = [[value for value in values if low <= value <= high] for values in candidates]
    return next(values for values in fitting if len(values) <= MOST_TICKS)
