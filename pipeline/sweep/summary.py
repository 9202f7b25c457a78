"""A sweep as a section of a report: table, recommendation, picture. Pure; the same bytes each time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pipeline.config import Alternative
from pipeline.measure.verdicts import digits
from pipeline.report.plots import LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, picture, rule, steps, text
from pipeline.sweep.results import ACCURACY, DECODE, HOST, IDENTICAL, LATENCY, TTFT, VRAM, CellRecord, Sweep

RULE = "The best router accuracy among the cells that pass every gate; of equals the one with the lowest p95 latency of a router request."
HEAD = (
    *("Cell", "Model", "Guide: size, VRAM, use", "Model files", "Memory peak", "TTFT p95", "Decode", "Router accuracy", "Router p95"),
    *("Determinism", "Verdict", "Report"),
)
PLOT = "pareto.svg"
SMALLEST_R, LARGEST_R = 5.0, 26.0
SIDE = 12  # px between a circle and its name
NO_VALUE = "NOT_MEASURED"


@dataclass(frozen=True)
class Section:
    """What a report shows of a sweep: rows under HEAD, the recommendation with its rule, what is to be said, the picture."""

    rows: list[tuple[str, ...]]
    recommendation: str
    rule: str
    facts: list[str]
    svg: str


def sweep_section(sweep: Sweep, alternatives: Sequence[Alternative]) -> Section:
    """Return the section of a sweep; `alternatives` are the guide's rows."""
    guide = {entry.profile: entry for entry in alternatives if entry.profile}
    states = {state: sum(cell.state == state for cell in sweep.cells) for state in ("measured", "failed", "skipped", "interrupted")}
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none has run"
    facts = [f"{len(sweep.cells)} cells: {counts}."]
    if sweep.finished is None or sweep.exit_code is None:
        facts.append("The sweep was not run to its end; the same command goes on with it.")
    devices = sorted({cell.device for cell in sweep.cells if cell.device})
    if len(devices) > 1:
        facts.append(f"Measured on unlike devices, so speeds do not compare: {', '.join(devices)}.")
    if any(cell.simulated for cell in sweep.cells):
        facts.append("SIMULATED cells were not measured on a server proven to be a real vLLM, and are never recommended.")
    rows = [table_row(cell, guide) for cell in sweep.cells]
    return Section(rows, sweep.recommendation, RULE, facts, pareto(sweep.cells, sweep.recommended))


def table_row(cell: CellRecord, guide: Mapping[str, Alternative]) -> tuple[str, ...]:
    """Return the cell's row."""
    entry = guide.get(cell.profile)
    of_guide = f"{entry.model}: {entry.size}, {entry.vram}, {entry.use_case}" if entry else "–"
    if cell.state in ("skipped", "waiting", "interrupted"):
        return (cell.name, "–", of_guide, *["–"] * 7, verdict(cell), "–")
    memory = words(cell, VRAM) if cell.value(VRAM) is not None else words(cell, HOST, " (host, PSS)")
    size = f"{digits(cell.size_mib)} MiB" if cell.size_mib is not None else NO_VALUE
    figures = [words(cell, metric) for metric in (TTFT, DECODE, ACCURACY, LATENCY, IDENTICAL)]
    return (cell.name, cell.model or "–", of_guide, size, memory, *figures, verdict(cell), cell.report or "–")


def words(cell: CellRecord, metric: str, after: str = "") -> str:
    """Return a figure with its unit and n."""
    figure = cell.figures.get(metric)
    if figure is None or figure.value is None:
        return NO_VALUE
    return f"{digits(figure.value)} {figure.unit}{after}, n = {figure.n}"


def verdict(cell: CellRecord) -> str:
    """Return what became of the cell."""
    if cell.state != "measured":
        return f"{cell.state.upper()}: {cell.reason or cell.fit}" if cell.state != "waiting" else "WAITING"
    name = "SIMULATED" if cell.simulated else cell.verdict or NO_VALUE
    return f"{name} ({cell.gates_passed} of {cell.gates} gates)"


def markdown(section: Section, plot: str | None) -> str:
    """Return the section as Markdown."""
    lines = ["# Sweep", "", f"**Recommendation:** {cell_text(section.recommendation)}", "", f"Rule: {section.rule}", ""]
    lines += [*section.facts, "", row_text(HEAD), row_text(["---"] * len(HEAD)), *(linked(row) for row in section.rows), ""]
    lines += ["NOT_MEASURED: the cell's own report says why. Memory: VRAM, or on the processor host memory.", ""]
    if plot is not None:
        lines += [f"![Router accuracy against p95 latency, memory as area]({plot})", ""]
    return "\n".join(lines)


def linked(row: Sequence[str]) -> str:
    """Return a table row whose report is a link, relative to artifacts/sweep."""
    *cells, report = row
    target = report.removeprefix("artifacts/sweep/")
    return row_text([*cells, f"[REPORT.md]({target})" if report != "–" else report])


def row_text(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cell if cell.startswith('[') else cell_text(cell) for cell in cells)} |"


def cell_text(text: str) -> str:
    """Return text that stays within its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (latency, accuracy) that no other one beats in both, from the lowest latency on."""
    found: list[tuple[float, float]] = []
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((latency, accuracy))
    return found


def pareto(cells: Sequence[CellRecord], recommended: str | None) -> str:
    """Return the picture of accuracy against latency, the memory's peak as area; empty where no cell has both."""
    shown = [(cell, latency, accuracy) for cell in cells if (latency := cell.value(LATENCY)) is not None
             and (accuracy := cell.value(ACCURACY)) is not None]  # fmt: skip
    if not shown:
        return ""
    ticks = steps(max(max(latency for _, latency, _ in shown) * 1.1, 1.0))
    x, y = Scale(0, ticks[-1], LEFT, WIDTH - RIGHT), Scale(0, 100, TOP + PLOT_HEIGHT, TOP)
    body = [rule("grid", x(at), TOP, x(at), TOP + PLOT_HEIGHT) + text(x(at), TOP + PLOT_HEIGHT + 16, f"{at:g}", "middle") for at in ticks]
    body += [rule("grid", LEFT, y(at), WIDTH - RIGHT, y(at)) + text(LEFT - 6, y(at) + 4, f"{at}", "end") for at in range(0, 101, 20)]
    body.append(text(LEFT - 6, TOP - 12, "accuracy, %", "start"))
    body.append(text(WIDTH - RIGHT, TOP + PLOT_HEIGHT + 32, "p95 latency of a router request, ms", "end"))
    line = front([(latency, accuracy) for _, latency, accuracy in shown])
    if len(line) > 1:
        d = "".join(f"{'L' if number else 'M'}{x(at):.1f} {y(value):.1f}" for number, (at, value) in enumerate(line))
        body.append(f'<path class="line s5" d="{d}"/>')
    sizes = [memory_mib(cell) for cell, _, _ in shown]
    largest = max((size for size in sizes if size is not None), default=1.0)
    for (cell, latency, accuracy), size in zip(shown, sizes, strict=True):
        radius = SMALLEST_R if size is None else max(SMALLEST_R, LARGEST_R * (size / largest) ** 0.5)
        colour = "f2" if cell.name == recommended else "f0" if cell.passed else "f5"
        hint = (
            f"{cell.name}: {digits(accuracy)} %, {digits(latency)} ms, {f'{size:.0f} MiB' if size is not None else 'memory not measured'}"
        )
        body.append(circle(colour, x(latency), y(accuracy), radius, hint))
        left = x(latency) > WIDTH / 2
        body.append(text(x(latency) + (-1 if left else 1) * (radius + SIDE), y(accuracy) + 4, cell.name, "end" if left else "start"))
    kinds = "area: peak of memory; green: recommended; blue: passes every gate; grey: does not; line: no other cell is better in both"
    body.append(text(LEFT, 38, kinds, "start"))
    return picture("Router accuracy against latency", TOP + PLOT_HEIGHT + 44, body)


def memory_mib(cell: CellRecord) -> float | None:
    """Return the peak of VRAM, or of host memory where that is not there."""
    vram = cell.value(VRAM)
    return vram if vram is not None else cell.value(HOST)


def circle(kind: str, x: float, y: float, radius: float, hint: str) -> str:
    """Return a circle that tells `hint` under the mouse."""
    shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill-opacity="0.7">'
    return f"{shape}<title>{escape(hint)}</title></circle>"
