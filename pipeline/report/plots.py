"""Pictures of memory as SVG text: over time with the stages marked, and its parts against the target. Pure; the same bytes each time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

from pipeline.engine.record import Outcome
from pipeline.measure.drift import Point
from pipeline.measure.memory import GAP_PERIODS, Sample, gpu_points, host_points
from pipeline.report.gates import JudgedGate
from pipeline.report.language import ENGLISH, Words

PARTS = {"weights": "weights_mib", "activations": "activations_mib", "CUDA graphs": "graphs_mib", "KV cache": "kv_cache_mib"}
MARKED = ("serve", "test-router", "test-determinism", "bench", "measure-vram")
WIDTH, LEFT, RIGHT, TOP = 860, 70, 20, 56
PLOT_HEIGHT, ROW, BAR = 240, 18, 34
BUCKETS = 400  # of a line: each keeps its lowest and highest sample
LETTER = 6.2  # px of a letter of the small text
COLOURS = 6
# Okabe and Ito's colours, which the colour-blind tell apart; lighter on dark.
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
    """A series over time (s, MiB)."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Band:
    """A stage, or a phase of one, on the axis of time."""

    label: str
    begin: float
    end: float
    phase: bool = False


@dataclass(frozen=True)
class Bar:
    """Parts of memory (MiB) side by side."""

    label: str
    parts: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Target:
    """A value that memory must stay under."""

    label: str
    mib: float


@dataclass(frozen=True)
class Scale:
    """From values to pixels along one direction."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __call__(self, value: float) -> float:
        return self.at_low + (value - self.low) / (self.high - self.low) * (self.at_high - self.at_low)


def memory_pictures(
    outcomes: Mapping[str, Outcome[Any]], gates: Iterable[JudgedGate], samples: Sequence[Sample], t: Words = ENGLISH
) -> dict[str, str]:
    """Return the pictures of what measure-vram has on record by file name, without those that would show nothing."""
    use, server = outcomes["measure-vram"].data, outcomes["serve"].data
    if use is None:
        return {}
    _, vram = gpu_points(samples, use.baseline_gpu_mib)
    lines = [
        Line("VRAM", vram),
        Line(t("host memory (PSS)"), host_points(samples, "pss_mib")),
        Line(t("host memory (RSS)"), host_points(samples, "rss_mib")),
    ]
    metric, name = ("vram_peak_mib", "VRAM") if vram else ("host_pss_peak_mib", t("host memory"))
    asked = [row.gate for row in gates if row.gate.metric == f"measure-vram.{metric}" and row.gate.comparator in ("<", "<=")]
    limits = [number for gate in asked for number in gate.numbers]
    target = Target(t("target, {name}", name=name), min(limits)) if limits else None
    peak = use.figures[metric].value if metric in use.figures else None
    named = {
        "weights": t("weights"),
        "activations": t("activations"),
        "CUDA graphs": t("CUDA graphs"),
        "KV cache": t("KV cache"),
    }
    keys = {named[part]: key for part, key in PARTS.items()}
    told = [(part, getattr(use.breakdown, key)) for part, key in keys.items() if getattr(use.breakdown, key) is not None]
    rest = (peak or 0) - sum(mib for _, mib in told)
    bars = [Bar(t("vLLM's log"), [*told, (t("rest, up to the peak"), rest)])] if told else []
    if server is not None and server.plan is not None:
        parts = [(part, getattr(server.plan, key)) for part, key in keys.items()]
        bars.insert(0, Bar(t("planned"), [*parts, (t("context"), server.plan.context_mib)]))
    made = {
        "memory.svg": over_time(t("Memory over time"), lines, marks(outcomes, samples, t), [target] if target else [], t),
        "breakdown.svg": stacked(t("Where the {name} goes", name=name), bars, target),
    }
    return {file: svg for file, svg in made.items() if svg}


def marks(outcomes: Mapping[str, Outcome[Any]], samples: Sequence[Sample], t: Words = ENGLISH) -> list[Band]:
    """Return when each stage ran by the samples' clock, and the phases of the start; needs measure-vram's record."""
    use: Any = outcomes["measure-vram"].data
    server = outcomes["serve"].data
    envelopes = [(name, outcomes[name].envelope) for name in MARKED if outcomes[name].data is not None]
    begins = [(name, made, use.anchor.at(made.started)) for name, made in envelopes if made is not None]
    found = [Band(name, begin, begin + made.duration_s) for name, made, begin in begins]
    first = next((sample["t"] for sample in samples if "processes" in sample), None)
    if server is None or first is None or server.handle.launch_id != use.launch_id:
        return found
    ends = list(accumulate(server.handle.phases_s.values(), initial=first))
    return found + [Band(t.said(name), *span, phase=True) for name, span in zip(server.handle.phases_s, pairwise(ends), strict=True)]


def over_time(title: str, lines: Sequence[Line], bands: Sequence[Band], targets: Sequence[Target], t: Words = ENGLISH) -> str:
    """Return the picture of the lines from 0 MiB up, the bands beneath; empty where no line has two moments."""
    lines = [line for line in lines if len({at for at, _ in line.points}) > 1]
    if not lines:
        return ""
    times = [at for line in lines for at, _ in line.points]
    begin, end = min(times), max(times)
    top = max([value for line in lines for _, value in line.points] + [target.mib for target in targets] + [1.0])
    ticks = steps(top)
    x = Scale(begin, end, LEFT, WIDTH - RIGHT)
    y = Scale(0, ticks[-1], TOP + PLOT_HEIGHT, TOP)
    shown = [clipped for band in bands if (clipped := clip(band, begin, end)) is not None]
    body = [rule("grid", LEFT, y(tick), WIDTH - RIGHT, y(tick)) + text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks]
    body.append(text(LEFT - 6, TOP - 12, "MiB", "end"))
    for band in shown:
        if not band.phase:
            body += [rule("grid", x(at), TOP, x(at), TOP + PLOT_HEIGHT) for at in (band.begin, band.end)]
    body.append(rule("axis", LEFT, y(0), WIDTH - RIGHT, y(0)))
    for tick in steps(end - begin)[:-1]:
        body.append(text(x(begin + tick), y(0) + 16, f"{tick:g} s", "middle"))
    body += [f'<path class="line s{index % COLOURS}" d="{path(line.points, x, y)}"/>' for index, line in enumerate(lines)]
    for target in targets:
        body.append(rule("target", LEFT, y(target.mib), WIDTH - RIGHT, y(target.mib)))
        body.append(text(WIDTH - RIGHT, y(target.mib) - 5, f"{target.label}: {target.mib:g} MiB", "end"))
    rows = TOP + PLOT_HEIGHT + 26
    narrow = []
    for band in shown:
        row = rows + (ROW if band.phase else 0)
        kind = "phase" if band.phase else "band"
        body.append(box(kind, x(band.begin), row, x(band.end) - x(band.begin), ROW - 2, f"{band.label}, {band.end - band.begin:.1f} s"))
        if x(band.end) - x(band.begin) > LETTER * len(band.label) + 6:
            body.append(text((x(band.begin) + x(band.end)) / 2, row + 12, band.label, "middle"))
        elif not band.phase:
            narrow.append(f"{band.label} {band.begin - begin:.0f}–{band.end - begin:.0f} s")
    height = rows + ROW * (2 if any(band.phase for band in shown) else 1 if shown else 0) + 8
    if narrow:
        body.append(text(LEFT, height + 8, t("not named above: {names}", names=", ".join(narrow)), "start"))
        height += ROW
    return picture(title, height, [*body, *legend([line.label for line in lines])])


def stacked(title: str, bars: Sequence[Bar], target: Target | None) -> str:
    """Return the bars with their parts, and the target as a line across them; empty where no part is known."""
    bars = [Bar(bar.label, parts) for bar in bars if (parts := [part for part in bar.parts if part[1] > 0])]
    if not bars:
        return ""
    names = list(dict.fromkeys(name for bar in bars for name, _ in bar.parts))
    ticks = steps(max([sum(mib for _, mib in bar.parts) for bar in bars] + ([target.mib] if target else [])))
    x = Scale(0, ticks[-1], LEFT, WIDTH - RIGHT)
    bottom = TOP + len(bars) * (BAR + 12)
    body = [rule("grid", x(tick), TOP, x(tick), bottom) + text(x(tick), bottom + 16, f"{tick:g}", "middle") for tick in ticks]
    for number, bar in enumerate(bars):
        row, at = TOP + 6 + number * (BAR + 12), 0.0
        body.append(text(LEFT - 6, row + BAR / 2 + 4, bar.label, "end"))
        for name, mib in bar.parts:
            said = f"{mib:.0f}"
            body.append(box(f"f{names.index(name) % COLOURS}", x(at), row, x(at + mib) - x(at), BAR, f"{name}: {said} MiB"))
            if x(at + mib) - x(at) > LETTER * len(said) + 6:
                body.append(f'<text class="on" x="{x(at + mib / 2):.1f}" y="{row + BAR / 2 + 4:.1f}" text-anchor="middle">{said}</text>')
            at += mib
    if target is not None:
        body.append(rule("target", x(target.mib), TOP - 4, x(target.mib), bottom))
        side = "end" if x(target.mib) > WIDTH / 2 else "start"
        body.append(text(x(target.mib), TOP - 8, f"{target.label}: {target.mib:g} MiB", side))
    body.append(text(WIDTH - RIGHT, bottom + 32, "MiB", "end"))
    return picture(title, bottom + 40, [*body, *legend(names, filled=True)])


def picture(title: str, height: float, body: Sequence[str]) -> str:
    """Return the whole SVG."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img">'
    named = f"<title>{escape(title)}</title>"
    back = f'<rect class="back" width="{WIDTH}" height="{height:.0f}"/>'
    return "\n".join([head, named, STYLE, back, f'<text class="title" x="12" y="20">{escape(title)}</text>', *body, "</svg>\n"])


def legend(names: Sequence[str], filled: bool = False) -> list[str]:
    """Return a row of names, each after its colour."""
    found, at = [], float(LEFT)
    for index, name in enumerate(names):
        mark = f"f{index % COLOURS}" if filled else f"line s{index % COLOURS}"
        found.append(box(mark, at, 29, 10, 10, name) if filled else rule(mark, at, 34, at + 14, 34))
        found.append(text(at + 18, 38, name, "start"))
        at += 18 + LETTER * len(name) + 16
    return found


def path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Return the line's path, broken where samples are missing."""
    return "".join(
        "".join(f"{'L' if number else 'M'}{x(at):.1f} {y(mib):.1f}" for number, (at, mib) in enumerate(outline(piece)))
        for piece in unbroken(points)
    )


def unbroken(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in pieces, parted where two are further apart than three sampling periods."""
    ordered = sorted(points)
    longest = GAP_PERIODS * median(after[0] - before[0] for before, after in pairwise(ordered)) if len(ordered) > 1 else 0.0
    pieces: list[list[Point]] = [[]]
    for point in ordered:
        if pieces[-1] and point[0] - pieces[-1][-1][0] > longest:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def outline(points: Sequence[Point]) -> list[Point]:
    """Return the points, of many only the lowest and the highest of each of 400 stretches."""
    if len(points) <= 2 * BUCKETS:
        return list(points)
    kept: list[Point] = []
    for number in range(BUCKETS):
        part = points[number * len(points) // BUCKETS : (number + 1) * len(points) // BUCKETS]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def clip(band: Band, begin: float, end: float) -> Band | None:
    """Return the part of the band that lies within the times, if any."""
    since, until = max(band.begin, begin), min(band.end, end)
    return Band(band.label, since, until, band.phase) if since < until else None


def steps(top: float) -> list[float]:
    """Return 4 to 9 round values from 0 until `top` is reached."""
    size = 1.0
    while size * 4 < top:
        size *= 10
    while size * 4 > top:
        size /= 10
    size *= next(factor for factor in (1, 2, 5, 10) if size * factor * 8 >= top)
    count = next(number for number in range(1, 10) if size * number >= top)
    return [round(size * number, 9) for number in range(count + 1)]


def text(x: float, y: float, said: str, anchor: str) -> str:
    """Return a text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, hint: str) -> str:
    """Return a rectangle that tells `hint` under the mouse."""
    shape = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
    return f"{shape}<title>{escape(hint)}</title></rect>"
