"""Charts of report.html as SVG text: distributions and curves. Pure and deterministic; the page's stylesheet sets the colours."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from pipeline.measure.statistics import quantile
from pipeline.message import _
from pipeline.report.cells import Text
from pipeline.report.drawing.plots import Scale, rule, steps
from pipeline.report.drawing.plots import text as label
from pipeline.report.parts import Drawing
from pipeline.report.words import Words

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 426, 22, 208
FEWEST_BINS, MOST_BINS = 6, 40
STAIRS = 300  # steps of a distribution at most; more values are drawn as this many quantiles
TAIL = 2.0  # values beyond this multiple of the p99 are counted in the note, not drawn
STYLE = re.compile(r"<style>.*?</style>\n?", re.DOTALL)
Pair = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Named values in ms, sorted."""

    name: Text
    values: Sequence[float]


@dataclass(frozen=True)
class Caption:
    """A drawing's id, title and text alternative."""

    id: str
    title: Text
    about: Text


def end_of(series: Sequence[Series]) -> float:
    """Return the end of the axis: the highest value, or twice the highest p99 if that is lower."""
    highest = max(one.values[-1] for one in series)
    most = max(quantile(one.values, 0.99) for one in series)
    return TAIL * most if highest > TAIL * most else highest


def bins(series: Sequence[Series], highest: float) -> list[float]:
    """Return round edges of equal bins from the lowest value to `highest`; the width is close to the Freedman–Diaconis rule."""
    lowest = min(one.values[0] for one in series)
    span = max(highest - lowest, 1e-3 * max(highest, 1.0))
    widths = []
    for one in series:
        spread = quantile(one.values, 0.75) - quantile(one.values, 0.25)
        widths.append(2 * spread / len(one.values) ** (1 / 3))
    width = round_up(min(max(min(widths), span / MOST_BINS), span / FEWEST_BINS))
    first = math.floor(lowest / width)
    last = max(math.ceil(highest / width), first + 1)
    return [round(edge * width, 9) for edge in range(first, last + 1)]


def round_up(value: float) -> float:
    """Return the smallest number of the form 1, 2, 2.5 or 5 × a power of ten that is at least the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= value * (1 - 1e-9)), 10 * power)


def per_bin(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return the number of values in each bin, lower edge included; the last bin includes its upper edge too."""
    counts = [0] * (len(edges) - 1)
    width = edges[1] - edges[0]
    for value in values:
        if value <= edges[-1]:
            counts[min(max(int((value - edges[0]) / width), 0), len(counts) - 1)] += 1
    return counts


def histogram(caption: Caption, series: Sequence[Series], edges: Sequence[float], words: Words) -> str:
    """Return the share of values in each bin as an outlined area, one for each series."""
    shares = [[100 * count / len(one.values) for count in per_bin(one.values, edges)] for one in series]
    ticks = steps(max(max(one) for one in shares))
    x, y = Scale(edges[0], edges[-1], LEFT, RIGHT), Scale(0, ticks[-1], BOTTOM, TOP)
    body = [*vertical_axis(ticks, y, words.text(_("% of values"))), *horizontal_axis(edges, x)]
    for index, heights in enumerate(shares):
        corners = "".join(f"L{x(a):.1f} {y(h):.1f}L{x(b):.1f} {y(h):.1f}" for (a, b), h in zip(pairwise(edges), heights, strict=True))
        body.append(f'<path class="area s{index} f{index}" d="M{x(edges[0]):.1f} {y(0):.1f}{corners}L{x(edges[-1]):.1f} {y(0):.1f}"/>')
    return svg(caption, body, words)


def distribution(caption: Caption, series: Sequence[Series], edges: Sequence[float], words: Words) -> str:
    """Return the empirical cumulative distribution of each series as a step line."""
    x, y = Scale(edges[0], edges[-1], LEFT, RIGHT), Scale(0, 100, BOTTOM, TOP)
    body = [*vertical_axis([0, 25, 50, 75, 95], y, words.text(_("% at most"))), *horizontal_axis(edges, x)]
    for index, one in enumerate(series):
        at, corners = float(y(0)), ""
        for value, share in stairs(one.values):
            if value > edges[-1]:
                break
            corners += f"L{x(value):.1f} {at:.1f}L{x(value):.1f} {y(100 * share):.1f}"
            at = y(100 * share)
        body.append(f'<path class="line s{index}" d="M{LEFT} {y(0):.1f}{corners}L{RIGHT} {at:.1f}"/>')
    return svg(caption, body, words)


def stairs(values: Sequence[float]) -> list[Pair]:
    """Return (value, share of values up to it) for sorted values, at most 300 points."""
    n = len(values)
    ranks = range(1, n + 1) if n <= STAIRS else sorted({max(1, math.ceil(n * step / STAIRS)) for step in range(1, STAIRS + 1)})
    return [(values[rank - 1], rank / n) for rank in ranks]


def curves(caption: Caption, lines: Sequence[Sequence[Pair]], words: Words) -> str:
    """Return the lines over concurrency, on a logarithmic axis."""
    places = sorted({at for points in lines for at, _ in points})
    ticks = steps(max(speed for points in lines for _, speed in points))
    low, high = math.log2(places[0]), math.log2(places[-1])
    x = Scale(low - 0.25, max(high, low + 1) + 0.25, LEFT, RIGHT)
    y = Scale(0, ticks[-1], BOTTOM, TOP)
    body = vertical_axis(ticks, y, "tok/s")
    body += [label(x(math.log2(at)), BOTTOM + 18, f"{at:g}", "middle") for at in places]
    body.append(label((LEFT + RIGHT) / 2, BOTTOM + 36, words.text(_("requests in flight")), "middle"))
    for index, points in enumerate(lines):
        marks = [(x(math.log2(at)), y(speed)) for at, speed in points]
        body.append(f'<path class="line s{index}" d="M{"L".join(f"{across:.1f} {up:.1f}" for across, up in marks)}"/>')
        body += [f'<circle class="f{index}" cx="{across:.1f}" cy="{up:.1f}" r="3.5"/>' for across, up in marks]
    return svg(caption, body, words)


def vertical_axis(ticks: Sequence[float], y: Callable[[float], float], unit: str) -> list[str]:
    """Return the horizontal grid lines with their labels, and the unit."""
    lines = [rule("axis" if not tick else "grid", LEFT, y(tick), RIGHT, y(tick)) for tick in ticks]
    return [*lines, *(label(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks), label(4, TOP - 10, unit, "start")]


def horizontal_axis(edges: Sequence[float], x: Callable[[float], float]) -> list[str]:
    """Return about six labels (ms) of the horizontal axis, each at an edge of a bin."""
    stride = max(1, math.ceil((len(edges) - 1) / 6))
    ticks = [edge for edge in edges if round(edge / (edges[1] - edges[0])) % stride == 0]
    return [*(label(x(edge), BOTTOM + 18, f"{edge:g}", "middle") for edge in ticks), label((LEFT + RIGHT) / 2, BOTTOM + 36, "ms", "middle")]


def svg(caption: Caption, body: Sequence[str], words: Words) -> str:
    """Return the SVG with its title and text alternative."""
    title, about = escape(words.text(caption.title)), escape(words.text(caption.about))
    name = caption.id
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">'
    labels = f'<title id="{name}-title">{title}</title><desc id="{name}-desc">{about}.</desc>'
    return "\n".join([head, labels, *body, "</svg>"])


def inlined(drawing: Drawing) -> Drawing:
    """Return the drawing of a picture file without its style, for a page with styles of its own."""
    return lambda words: STYLE.sub("", drawing(words))
