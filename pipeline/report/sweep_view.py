"""A sweep as a section of the report: a row per cell, the recommendation with its rule, the picture. Pure; the same bytes each time."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from pipeline.config.schema import Alternative
from pipeline.engine.record import SWEEP_NOTE, Outcome
from pipeline.measure.digits import ends_of, number
from pipeline.report.definitions import noted
from pipeline.report.language import ENGLISH, Words
from pipeline.report.plots import LEFT, LETTER, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, box, picture, rule, steps, text
from pipeline.report.sweep import (
    ACCURACY,
    DECODE,
    HOST,
    IDENTICAL,
    LATENCY,
    TTFT,
    VRAM,
    CellRecord,
    Sweep,
    recommendation,
    rule_words,
)
from pipeline.report.view import MARKS, CellRow, Marks, SweepSection, counted_states, measured_words, moment

SMALLEST_R, LARGEST_R = 5.0, 26.0
SIDE, LINE = 12, 14  # px between a circle and its name, and from one name down to the next
MOST_NAMED = 12  # of more cells only those on the front and the recommended one are named
NOT_MEASURED = "NOT_MEASURED"
Shown = tuple[CellRecord, float, float]  # with latency and accuracy


def sweep_section(
    sweep: Outcome[Any] | None, alternatives: Sequence[Alternative], picture: str = "", t: Words = ENGLISH, marks: Marks | None = None
) -> SweepSection:
    """Return what a report shows of the sweep on record, or why there is none and how to have one."""
    title = t("Sweep: models and settings side by side")
    if sweep is None or sweep.data is None:
        why = t("no sweep is on record")
        if sweep is not None and sweep.failure is not None:
            why = t("the record of the sweep cannot be read: {reason}", reason=sweep.failure.message)
        how = t(
            "`./inv sweep` runs all of this for each of these models, or for another matrix (`--grid`), and its figures then stand here; "
            "`./inv sweep --dry-run` shows the cells first."
        )
        return SweepSection(title, reason=f"{why}. {how}")
    made: Sweep = sweep.data
    guide = {entry.profile: entry for entry in alternatives if entry.profile}
    return SweepSection(
        title,
        facts=facts(made, t),
        recommendation=recommendation(made.cells, t),
        rule=rule_words(t),
        header=header(t),
        rows=[cell_row(cell, guide, t, marks or {}) for cell in made.cells],
        picture=picture,
        notes=tuple(dict.fromkeys(note for metric in (TTFT, DECODE, LATENCY, HOST) for note in noted(metric))),
    )


def facts(made: Sweep, t: Words) -> list[str]:
    """Return what is to be said of the sweep as a whole."""
    cells = t("{count} cells: {states}", count=len(made.cells), states=counted_states(made.cells, t))
    when = t("as of {when}", when=moment(made.finished or made.started))
    found = [
        f"{cells}; {when}.",
        t("Each cell is a run of its own, which no verdict above depends on; its figures and its verdict are those of its own report."),
    ]
    if made.finished is None:
        found.append(t("The sweep was not run to its end; the same command goes on with it."))
    devices = sorted({cell.device for cell in made.cells if cell.device})
    if len(devices) > 1:
        found.append(t("Measured on unlike devices, so speeds do not compare: {devices}.", devices=", ".join(devices)))
    if any(cell.simulated for cell in made.cells):
        found.append(t("SIMULATED cells were not measured on a server proven to be a real vLLM, and are never recommended."))
    return found


def header(t: Words) -> list[str]:
    """Return the names of a row's figures."""
    return [
        t("Model files"),
        t("Memory, peak"),
        t("TTFT, cold prefix cache, p95"),
        t("Decode, median"),
        t("Router accuracy"),
        t("Router latency, p95"),
        t("Determinism"),
    ]


def cell_row(cell: CellRecord, guide: Mapping[str, Alternative], t: Words, marks: Marks) -> CellRow:
    """Return the cell's row."""
    entry = guide.get(cell.profile)
    model = cell.model or (entry.model if entry else t("not known"))
    if entry:
        told = {"size": entry.size, "vram": entry.vram, "use_case": t.given(entry.use_case)}
        model += t(" (guide: {size}, {vram}, {use_case})", **told)

    def figure(metric: str) -> str:
        return measured_words(cell.figures.get(metric), t=t, marks=marks.get(metric, ()))

    on_device = cell.value(VRAM) is not None
    memory = figure(VRAM if on_device else HOST)
    if not on_device and cell.value(HOST) is not None:
        memory = f"{memory.removesuffix(')')}; {t('host memory (PSS)')})"
    size = f"**{number(cell.size_mib)} MiB**" if cell.size_mib is not None else NOT_MEASURED
    figures = [size, memory, *(figure(metric) for metric in (TTFT, DECODE, ACCURACY, LATENCY, IDENTICAL))]
    source = f"`{cell.source}`" if cell.source else t("no report")
    return CellRow(cell.name, state_words(cell, t), model, figures, gates_words(cell, t), source, f"{SWEEP_NOTE}.{cell.name}")


def state_words(cell: CellRecord, t: Words) -> str:
    """Return what became of the cell."""
    if cell.state == "measured":
        if cell.simulated:
            return MARKS["SIMULATED"]
        return t("measured {when} UTC", when=f"{cell.measured_at:%Y-%m-%d %H:%M}") if cell.measured_at else t("measured")
    reason = t.said(cell.reason or cell.fit)
    return {
        "failed": t("failed: {message}", message=reason),
        "skipped": t("skipped: {message}", message=reason),
        "interrupted": t("interrupted: {message}", message=reason),
        "waiting": t("not run yet"),
    }[cell.state]


def gates_words(cell: CellRecord, t: Words) -> str:
    """Return the verdict of the cell's own report, and how many of its required gates pass."""
    if cell.verdict is None:
        return MARKS[NOT_MEASURED]
    word = {"PASS": MARKS["PASS"], "NOT PASSED": "❌ NOT PASSED"}.get(cell.verdict, MARKS[NOT_MEASURED])
    return (
        f"{MARKS['SIMULATED'] if cell.simulated else word} ({t('{passed} of {gates} gates', passed=cell.gates_passed, gates=cell.gates)})"
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (latency, accuracy) that no other one beats in both, from the lowest latency on."""
    found: list[tuple[float, float]] = []
    for latency, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((latency, accuracy))
    return found


def pareto(made: Sweep | None, t: Words = ENGLISH) -> str:
    """Return the picture of accuracy against latency, the size of the model's files as area; empty where no cell has both."""
    cells = made.cells if made is not None else []
    shown = [(cell, latency, accuracy) for cell in cells if (latency := cell.value(LATENCY)) is not None
             and (accuracy := cell.value(ACCURACY)) is not None]  # fmt: skip
    if made is None or not shown:
        return ""
    ticks = steps(max(max(latency for _, latency, _ in shown) * 1.1, 1.0))
    x, y = Scale(0, ticks[-1], LEFT, WIDTH - RIGHT), Scale(0, 100, TOP + PLOT_HEIGHT, TOP)
    body = [rule("grid", x(at), TOP, x(at), TOP + PLOT_HEIGHT) + text(x(at), TOP + PLOT_HEIGHT + 16, f"{at:g}", "middle") for at in ticks]
    body += [rule("grid", LEFT, y(at), WIDTH - RIGHT, y(at)) + text(LEFT - 6, y(at) + 4, f"{at}", "end") for at in range(0, 101, 20)]
    body.append(text(WIDTH - RIGHT, TOP + PLOT_HEIGHT + 32, t("p95 latency of a router request, ms"), "end"))
    line = front([(latency, accuracy) for _, latency, accuracy in shown])
    if len(line) > 1:
        d = "".join(f"{'L' if number else 'M'}{x(at):.1f} {y(value):.1f}" for number, (at, value) in enumerate(line))
        body.append(f'<path class="line s5" d="{d}"/>')
    largest = max((cell.size_mib for cell, _, _ in shown if cell.size_mib), default=1.0)
    marks = [(entry, x(entry[1]), y(entry[2]), radius(entry[0], largest)) for entry in shown]
    for (cell, latency, accuracy), across, up, r in sorted(marks, key=lambda mark: -mark[3]):  # the small ones above the large
        colour = "f2" if cell.name == made.recommended else "f0" if cell.passed else "f5"
        body.append(circle(colour, across, up, r, hint(cell, latency, accuracy, t)))
    named = [mark for mark in marks if len(marks) <= MOST_NAMED or mark[0][0].name == made.recommended or mark[0][1:] in line]
    for left in (True, False):
        side = [mark for mark in named if (mark[1] > WIDTH / 2) == left]
        for (entry, across, _, r), row in zip(side, apart([mark[2] for mark in side]), strict=True):
            body.append(text(across + (-1 if left else 1) * (r + SIDE), row + 4, entry[0].name, "end" if left else "start"))
    body.append(text(LEFT, TOP + PLOT_HEIGHT + 32, t("area: size of the model's files; line: no other cell is better in both"), "start"))
    body += [text(LEFT - 6, TOP - 12, "%", "end"), *kinds({"f2": t("recommended"), "f0": t("passes every gate"), "f5": t("does not")})]
    return picture(t("Router accuracy against latency, the model's size as area"), TOP + PLOT_HEIGHT + 44, body)


def kinds(named: Mapping[str, str]) -> list[str]:
    """Return a row of what the colours mean."""
    found, at = [], float(LEFT)
    for colour, name in named.items():
        found += [box(colour, at, 29, 10, 10, name), text(at + 16, 38, name, "start")]
        at += 44 + LETTER * len(name)
    return found


def radius(cell: CellRecord, largest: float) -> float:
    """Return the radius (px) whose area stands for the size of the cell's model."""
    return SMALLEST_R if cell.size_mib is None else max(SMALLEST_R, LARGEST_R * (cell.size_mib / largest) ** 0.5)


def hint(cell: CellRecord, latency: float, accuracy: float, t: Words) -> str:
    """Return the cell's figures in words."""
    size = f"{number(cell.size_mib)} MiB" if cell.size_mib is not None else t("size not known")
    return f"{cell.name}: {number(accuracy, ends_of('%'))} %, {number(latency)} ms, {size}"


def apart(rows: Sequence[float]) -> list[float]:
    """Return the rows (px), each where it was or as little below or above as lets no two names touch, within the picture."""
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    found = list(rows)
    lowest = TOP - LINE * 1.0
    for index in order:
        found[index] = lowest = max(rows[index], lowest + LINE)
    highest = TOP + PLOT_HEIGHT + LINE * 1.0
    for index in reversed(order):
        found[index] = highest = min(found[index], highest - LINE)
    return found


def circle(kind: str, x: float, y: float, r: float, said: str) -> str:
    """Return a circle that tells `said` under the mouse."""
    shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill-opacity="0.7">'
    return f"{shape}<title>{escape(said)}</title></circle>"
