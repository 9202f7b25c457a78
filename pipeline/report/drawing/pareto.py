"""The plot of a sweep as SVG text: accuracy against latency, with model size as area. Pure and deterministic."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from pipeline.measure.digits import ends_of
from pipeline.message import Message, _
from pipeline.report.cells import Text, glued, number
from pipeline.report.drawing.plots import LEFT, LETTER, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, box, picture, rule, steps, text
from pipeline.report.sweep import ACCURACY, LATENCY, CellRecord, Sweep
from pipeline.report.words import Words

SMALLEST_R, LARGEST_R = 5.0, 26.0
SIDE, LINE = 12, 14  # px between a circle and its name, and between the baselines of two names
MOST_NAMED = 12  # with more cells, only those on the front and the recommended one are named
TITLE = _("Router accuracy against latency, the model's size as area")
PlottedCell = tuple[CellRecord, float, float]  # with latency and accuracy


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of the points (latency, accuracy), by rising latency."""
    points_on_front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not points_on_front or accuracy > points_on_front[-1][1]:
            points_on_front.append((latency, accuracy))
    return points_on_front


def shown_cells(cells: Sequence[CellRecord]) -> list[PlottedCell]:
    """Return the cells that have both latency and accuracy."""
    candidates = [(cell, cell.value(LATENCY), cell.value(ACCURACY)) for cell in cells]
    return [(cell, latency, accuracy) for cell, latency, accuracy in candidates if latency is not None and accuracy is not None]


def pareto(sweep: Sweep, words: Words) -> str:
    """Return the plot of the cells with both figures; there must be at least one."""
    shown = shown_cells(sweep.cells)
    ticks = steps(max(max(latency for _cell, latency, _accuracy in shown) * 1.1, 1.0))
    x, y = Scale(0, ticks[-1], LEFT, WIDTH - RIGHT), Scale(0, 100, TOP + PLOT_HEIGHT, TOP)
    body = axes(ticks, x, y, words)
    line = front([(latency, accuracy) for _cell, latency, accuracy in shown])
    if len(line) > 1:
        d = "".join(f"{'L' if at else 'M'}{x(latency):.1f} {y(accuracy):.1f}" for at, (latency, accuracy) in enumerate(line))
        body.append(f'<path class="line s5" d="{d}"/>')
    largest = max((cell.size_mib for cell, _latency, _accuracy in shown if cell.size_mib), default=1.0)
    marks = [(entry, x(entry[1]), y(entry[2]), radius(entry[0], largest)) for entry in shown]
    for entry, across, up, r in sorted(marks, key=lambda mark: -mark[3]):  # large circles first, so that small ones stay visible
        colour = "f2" if entry[0].name == sweep.recommended else "f0" if entry[0].passed else "f5"
        body.append(circle(colour, across, up, r, words.text(hint(*entry))))
    marks_with_name = [mark for mark in marks if len(marks) <= MOST_NAMED or mark[0][0].name == sweep.recommended or mark[0][1:] in line]
    for left in (True, False):
        side = [mark for mark in marks_with_name if (mark[1] > WIDTH / 2) == left]
        for (entry, across, _up, r), row in zip(side, apart([mark[2] for mark in side]), strict=True):
            body.append(text(across + (-1 if left else 1) * (r + SIDE), row + 4, entry[0].name, "end" if left else "start"))
    note = _("area: size of the model's files; line: no other cell is better in both")
    body.append(text(LEFT, TOP + PLOT_HEIGHT + 32, words.text(note), "start"))
    colours = {"f2": _("recommended"), "f0": _("passes every gate"), "f5": _("does not")}
    body += [text(LEFT - 6, TOP - 12, "%", "end"), *colour_legend({colour: words.text(name) for colour, name in colours.items()})]
    return picture(words.text(TITLE), TOP + PLOT_HEIGHT + 44, body)


def axes(ticks: Sequence[float], x: Scale, y: Scale, words: Words) -> list[str]:
    """Return the grid with its labels."""
    body = [rule("grid", x(at), TOP, x(at), TOP + PLOT_HEIGHT) + text(x(at), TOP + PLOT_HEIGHT + 16, f"{at:g}", "middle") for at in ticks]
    body += [rule("grid", LEFT, y(at), WIDTH - RIGHT, y(at)) + text(LEFT - 6, y(at) + 4, f"{at}", "end") for at in range(0, 101, 20)]
    return [*body, text(WIDTH - RIGHT, TOP + PLOT_HEIGHT + 32, words.text(_("p95 latency of a router request, ms")), "end")]


def colour_legend(names: Mapping[str, str]) -> list[str]:
    """Return a legend of the colours, in one row."""
    elements, at = [], float(LEFT)
    for colour, name in names.items():
        elements += [box(colour, at, 29, 10, 10, name), text(at + 16, 38, name, "start")]
        at += 44 + LETTER * len(name)
    return elements


def radius(cell: CellRecord, largest: float) -> float:
    """Return the radius (px) of a circle whose area is proportional to the size of the cell's model."""
    return SMALLEST_R if cell.size_mib is None else max(SMALLEST_R, LARGEST_R * (cell.size_mib / largest) ** 0.5)


def hint(cell: CellRecord, latency: float, accuracy: float) -> Message:
    """Return the text of the cell's tooltip."""
    size: Text = glued(number(cell.size_mib), " MiB") if cell.size_mib is not None else _("size not known")
    return glued(cell.name, ": ", number(accuracy, ends_of("%")), " %, ", number(latency), " ms, ", size)


def apart(rows: Sequence[float]) -> list[float]:
    """Return the rows (px), moved apart so that no two names overlap, within the plot."""
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    positions = list(rows)
    lowest = TOP - LINE * 1.0
    for index in order:
        positions[index] = lowest = max(rows[index], lowest + LINE)
    highest = TOP + PLOT_HEIGHT + LINE * 1.0
    for index in reversed(order):
        positions[index] = highest = min(positions[index], highest - LINE)
    return positions


def circle(kind: str, x: float, y: float, r: float, tooltip: str) -> str:
    """Return a circle with a tooltip."""
    shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill-opacity="0.7">'
    return f"{shape}<title>{escape(tooltip)}</title></circle>"
