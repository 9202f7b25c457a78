"""Plots of memory as SVG text: over time with the stages marked, and its parts against the target. Pure and deterministic."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from xml.sax.saxutils import escape

from pipeline.measure.drift import Point
from pipeline.measure.memory import GAP_PERIODS
from pipeline.message import _
from pipeline.report.cells import Text, comma_separated
from pipeline.report.words import Words

WIDTH, LEFT, RIGHT, TOP = 860, 70, 20, 56
PLOT_HEIGHT, ROW, BAR = 240, 18, 34
BUCKETS = 400  # a long line is reduced to the lowest and the highest sample of each bucket
LETTER = 6.2  # px, average width of a letter of the small text
COLOURS = 6
# Okabe and Ito's palette, safe for colour-blind readers; lighter on dark pages.
STYLE = """<style>
text{font:11px system-ui,sans-serif;fill:#24292f}
.title{font-size:14px;font-weight:600}
.back{fill:#fff}.grid{stroke:#d0d7de}.axis{stroke:#57606a}.target{stroke:#cf222e;stroke-dasharray:6 4;stroke-width:1.5}
.on{fill:#fff;font-weight:600}.line{fill:none;stroke-width:1.6}.band{fill:#eaeef2;stroke:#fff}.phase{fill:#d8dee4;stroke:#fff}
.f0{fill:#0072b2}.f1{fill:#d55e00}.f2{fill:#009e73}.f3{fill:#cc79a7}.f4{fill:#e69f00}.f5{fill:#8c959f}
.s0{stroke:#0072b2}.s1{stroke:#d55e00}.s2{stroke:#009e73}.s3{stroke:#cc79a7}.s4{stroke:#e69f00}.s5{stroke:#8c959f}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.back{fill:#0d1117}.grid{stroke:#30363d}.axis{stroke:#8b949e}.target{stroke:#ff7b72}
.on{fill:#0d1117}.band{fill:#21262d;stroke:#0d1117}.phase{fill:#30363d;stroke:#0d1117}
.f0{fill:#56b4e9}.f1{fill:#f0883e}.f2{fill:#2fbf92}.f5{fill:#6e7681}
.s0{stroke:#56b4e9}.s1{stroke:#f0883e}.s2{stroke:#2fbf92}.s5{stroke:#6e7681}}
</style>"""


@dataclass(frozen=True)
class Line:
    """A series of points (s, MiB)."""

    label: Text
    points: Sequence[Point]


@dataclass(frozen=True)
class Band:
    """A stage, or a phase of one, on the time axis (s)."""

    label: Text
    begin: float
    end: float
    phase: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of memory parts, in MiB."""

    label: Text
    parts: Sequence[tuple[Text, float]]


@dataclass(frozen=True)
class MemoryLimit:
    """The limit that memory must stay below."""

    label: Text
    mib: float


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels along one axis."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __call__(self, value: float) -> float:
        return self.at_low + (value - self.low) / (self.high - self.low) * (self.at_high - self.at_low)


def has_times(lines: Sequence[Line]) -> bool:
    """Tell whether any line has points at two different times."""
    return any(len({at for at, _mib in line.points}) > 1 for line in lines)


def has_parts(bars: Sequence[Bar]) -> bool:
    """Tell whether any bar has a part above 0 MiB."""
    return any(mib > 0 for bar in bars for _name, mib in bar.parts)


def over_time(title: Text, lines: Sequence[Line], bands: Sequence[Band], targets: Sequence[MemoryLimit], words: Words) -> str:
    """Return the plot of the lines from 0 MiB up, with the bands below; at least one line must have two different times."""
    lines = [line for line in lines if has_times([line])]
    times = [at for line in lines for at, _mib in line.points]
    begin, end = min(times), max(times)
    ticks = steps(max([mib for line in lines for _at, mib in line.points] + [target.mib for target in targets] + [1.0]))
    x, y = Scale(begin, end, LEFT, WIDTH - RIGHT), Scale(0, ticks[-1], TOP + PLOT_HEIGHT, TOP)
    visible = [clipped for band in bands if (clipped := clip(band, begin, end)) is not None]
    body = [rule("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)) + text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks]
    body.append(text(LEFT - 6, TOP - 12, "MiB", "end"))
    edges = [at for band in visible if not band.phase for at in (band.begin, band.end)]
    body += [rule("grid", x(at), TOP, x(at), TOP + PLOT_HEIGHT) for at in edges]
    body.append(rule("axis", LEFT, y(0), WIDTH - RIGHT, y(0)))
    body += [text(x(begin + tick), y(0) + 16, f"{tick:g} s", "middle") for tick in steps(end - begin)[:-1]]
    body += [f'<path class="line s{index % COLOURS}" d="{path(line.points, x, y)}"/>' for index, line in enumerate(lines)]
    for target in targets:
        body.append(rule("target", LEFT, y(target.mib), WIDTH - RIGHT, y(target.mib)))
        body.append(text(WIDTH - RIGHT, y(target.mib) - 5, f"{words.text(target.label)}: {target.mib:g} MiB", "end"))
    rows, height = rows_of(visible, x, words)
    return picture(words.text(title), height, [*body, *rows, *legend([words.text(line.label) for line in lines])])


def rows_of(bands: Sequence[Band], x: Scale, words: Words) -> tuple[list[str], float]:
    """Return the bands in two rows, stages above phases, and the picture's height; names too long for their band are listed below."""
    top, body, narrow = TOP + PLOT_HEIGHT + 26, [], []
    for band in bands:
        row, name, width = top + (ROW if band.phase else 0), words.text(band.label), x(band.end) - x(band.begin)
        kind = "phase" if band.phase else "band"
        body.append(box(kind, x(band.begin), row, width, ROW - 2, f"{name}, {band.end - band.begin:.1f} s"))
        if width > LETTER * len(name) + 6:
            body.append(text((x(band.begin) + x(band.end)) / 2, row + 12, name, "middle"))
        elif not band.phase:
            narrow.append(f"{name} {band.begin - x.low:.0f}–{band.end - x.low:.0f} s")
    height = top + ROW * (2 if any(band.phase for band in bands) else 1 if bands else 0) + 8
    if narrow:
        body.append(text(LEFT, height + 8, words.text(_("not named above: {names}", names=comma_separated(narrow))), "start"))
        height += ROW
    return body, height


def stacked(title: Text, bars: Sequence[Bar], target: MemoryLimit | None, words: Words) -> str:
    """Return the plot of the bars with their parts and the target as a line; at least one part must be above 0 MiB."""
    bars = [Bar(bar.label, parts) for bar in bars if (parts := [part for part in bar.parts if part[1] > 0])]
    names = list(dict.fromkeys(name for bar in bars for name, _mib in bar.parts))
    ticks = steps(max([sum(mib for _name, mib in bar.parts) for bar in bars] + ([target.mib] if target else [])))
    x = Scale(0, ticks[-1], LEFT, WIDTH - RIGHT)
    bottom = TOP + len(bars) * (BAR + 12)
    body = [rule("grid", x(tick), TOP, x(tick), bottom) + text(x(tick), bottom + 16, f"{tick:g}", "middle") for tick in ticks]
    for number, bar in enumerate(bars):
        row, at = TOP + 6 + number * (BAR + 12), 0.0
        body.append(text(LEFT - 6, row + BAR / 2 + 4, words.text(bar.label), "end"))
        for name, mib in bar.parts:
            label = f"{mib:.0f}"
            colour = f"f{names.index(name) % COLOURS}"
            body.append(box(colour, x(at), row, x(at + mib) - x(at), BAR, f"{words.text(name)}: {label} MiB"))
            if x(at + mib) - x(at) > LETTER * len(label) + 6:
                body.append(f'<text class="on" x="{x(at + mib / 2):.1f}" y="{row + BAR / 2 + 4:.1f}" text-anchor="middle">{label}</text>')
            at += mib
    if target is not None:
        body.append(rule("target", x(target.mib), TOP - 4, x(target.mib), bottom))
        side = "end" if x(target.mib) > WIDTH / 2 else "start"
        body.append(text(x(target.mib), TOP - 8, f"{words.text(target.label)}: {target.mib:g} MiB", side))
    body.append(text(WIDTH - RIGHT, bottom + 32, "MiB", "end"))
    return picture(words.text(title), bottom + 40, [*body, *legend([words.text(name) for name in names], filled=True)])


def picture(title: str, height: float, body: Sequence[str]) -> str:
    """Return the complete SVG."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img">'
    title_element = f"<title>{escape(title)}</title>"
    background = f'<rect class="back" width="{WIDTH}" height="{height:.0f}"/>'
    return "\n".join(
        [head, title_element, STYLE, background, f'<text class="title" x="12" y="20">{escape(title)}</text>', *body, "</svg>\n"]
    )


def legend(names: Sequence[str], filled: bool = False) -> list[str]:
    """Return a legend of the names, in one row."""
    elements, at = [], float(LEFT)
    for index, name in enumerate(names):
        mark = f"f{index % COLOURS}" if filled else f"line s{index % COLOURS}"
        elements.append(box(mark, at, 29, 10, 10, name) if filled else rule(mark, at, 34, at + 14, 34))
        elements.append(text(at + 18, 38, name, "start"))
        at += 18 + LETTER * len(name) + 16
    return elements


def path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Return the SVG path of the line, broken where samples are missing."""
    return "".join(
        "".join(f"{'L' if number else 'M'}{x(at):.1f} {y(mib):.1f}" for number, (at, mib) in enumerate(outline(piece)))
        for piece in unbroken(points)
    )


def unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """Split the points wherever two are further apart than three sampling periods."""
    ordered = sorted(points)
    longest = GAP_PERIODS * median(after[0] - before[0] for before, after in pairwise(ordered)) if len(ordered) > 1 else 0.0
    pieces: list[list[Point]] = [[]]
    for point in ordered:
        if pieces[-1] and point[0] - pieces[-1][-1][0] > longest:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def outline(points: Sequence[Point]) -> list[Point]:
    """Return the points; of more than 800, only the lowest and the highest of each of 400 buckets."""
    if len(points) <= 2 * BUCKETS:
        return list(points)
    extremes: list[Point] = []
    for number in range(BUCKETS):
        part = points[number * len(points) // BUCKETS : (number + 1) * len(points) // BUCKETS]
        extremes += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return extremes


def clip(band: Band, begin: float, end: float) -> Band | None:
    """Return the part of the band between `begin` and `end`; None if there is none."""
    since, until = max(band.begin, begin), min(band.end, end)
    return Band(band.label, since, until, band.phase) if since < until else None


def steps(top: float) -> list[float]:
    """Return 5 to 9 evenly spaced round values, from 0 up to at least `top`."""
    size = 1.0
    while size * 4 < top:
        size *= 10
    while size * 4 > top:
        size /= 10
    size *= next(factor for factor in (1, 2, 5, 10) if size * factor * 8 >= top)
    count = next(number for number in range(1, 10) if size * number >= top)
    return [round(size * number, 9) for number in range(count + 1)]


def text(x: float, y: float, content: str, anchor: str) -> str:
    """Return a text element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, hint: str) -> str:
    """Return a rectangle with `hint` as its tooltip."""
    shape = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
    return f"{shape}<title>{escape(hint)}</title></rect>"
