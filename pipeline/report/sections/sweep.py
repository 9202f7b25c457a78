"""The last sweep: a row per cell, the recommendation with its rule, and the plot."""

from collections.abc import Mapping, Sequence
from functools import partial

from pipeline.config.schema import Alternative
from pipeline.engine.record import Outcome
from pipeline.message import Code, Message, _
from pipeline.report.cells import NOT_MEASURED, Measured, Ruling, Source, Text, glued, measured, of_settings
from pipeline.report.definitions import notes_of
from pipeline.report.drawing.charts import inlined
from pipeline.report.drawing.pareto import TITLE, pareto, shown_cells
from pipeline.report.figures import Marks
from pipeline.report.parts import CellRow, Chart, Picture, SweepPart
from pipeline.report.sections.alternatives import counted_states
from pipeline.report.sections.common import minute, moment
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
    rule,
)

PICTURE = "sweep.svg"
HEADER: tuple[Text, ...] = (
    _("Model files"),
    _("Memory, peak"),
    _("TTFT, cold prefix cache, p95"),
    _("Decode, median"),
    _("Router accuracy"),
    _("Router latency, p95"),
    _("Determinism"),
)


def sweep_part(outcome: Outcome[Sweep], alternatives: Sequence[Alternative], marks: Marks | None = None) -> SweepPart:
    """Return the sweep on record, or why there is none and how to run one."""
    title, sweep = _("Sweep: models and settings side by side"), outcome.data
    if sweep is None:
        why = _("no sweep is on record")
        if outcome.failure is not None:
            why = _("the record of the sweep cannot be read: {reason}", reason=outcome.failure.message)
        how = _(
            "{command} runs all of this for each of these models, or for another matrix ({option}), and its figures then stand here; "
            "{dry_run} shows the cells first.",
            command=Code("./inv sweep"),
            option=Code("--grid"),
            dry_run=Code("./inv sweep --dry-run"),
        )
        return SweepPart(title, reason=glued(why, ". ", how), picture=Picture(PICTURE, None))
    guide = {entry.profile: entry for entry in alternatives if entry.profile}
    drawing = partial(pareto, sweep) if shown_cells(sweep.cells) else None
    return SweepPart(
        title,
        facts=facts(sweep),
        recommendation=recommendation(sweep.cells),
        rule=rule(),
        header=list(HEADER),
        rows=[cell_row(cell, guide, marks or {}) for cell in sweep.cells],
        charts=[Chart("sweep-plot", TITLE, drawings=[inlined(drawing)], wide=True)] if drawing is not None else [],
        picture=Picture(PICTURE, drawing),
        notes=tuple(dict.fromkeys(note for metric in (TTFT, DECODE, LATENCY, HOST) for note in notes_of(metric))),
    )


def facts(sweep: Sweep) -> list[Text]:
    """Return the facts of the sweep as a whole."""
    cells = _("{count} cells: {states}", count=len(sweep.cells), states=counted_states(sweep.cells))
    when = _("as of {when}", when=moment(sweep.finished or sweep.started))
    result: list[Text] = [
        glued(cells, "; ", when, "."),
        _("Each cell is a run of its own, which no verdict above depends on; its figures and its verdict are those of its own report."),
    ]
    if sweep.finished is None:
        result.append(_("The sweep was not run to its end; the same command goes on with it."))
    devices = sorted({cell.device for cell in sweep.cells if cell.device})
    if len(devices) > 1:
        result.append(_("Measured on unlike devices, so speeds do not compare: {devices}.", devices=", ".join(devices)))
    if any(cell.simulated for cell in sweep.cells):
        result.append(_("SIMULATED cells were not measured on a server proven to be a real vLLM, and are never recommended."))
    return result


def cell_row(cell: CellRecord, guide: Mapping[str, Alternative], marks: Marks) -> CellRow:
    """Return the row of a cell."""
    source = Source(Code(cell.source) if cell.source else _("no report"), f"sweep.{cell.name}")
    return CellRow(cell.name, state(cell), model(cell, guide.get(cell.profile)), figures(cell, marks), ruling(cell), source)


def model(cell: CellRecord, entry: Alternative | None) -> Text:
    """Return the cell's model, with the guide's data if the guide lists it."""
    name = cell.model or (entry.model if entry else _("not known"))
    if entry is None:
        return name
    guide = _(" (guide: {size}, {vram}, {use_case})", size=entry.size, vram=entry.vram, use_case=of_settings(entry.use_case))
    return glued(name, guide)


def figures(cell: CellRecord, marks: Marks) -> list[Measured]:
    """Return the cell's figures, in the order of HEADER."""

    def figure(metric: str, aside: Text = "") -> Measured:
        return measured(cell.figures.get(metric), marks.get(metric, ()), aside=aside)

    on_device = cell.value(VRAM) is not None
    memory = figure(VRAM) if on_device else figure(HOST, _("host memory (PSS)"))
    return [Measured(cell.size_mib, "MiB"), memory, *(figure(metric) for metric in (TTFT, DECODE, ACCURACY, LATENCY, IDENTICAL))]


def state(cell: CellRecord) -> Text | Ruling:
    """Return the state of the cell, with the reason if it was not measured."""
    if cell.state == "measured":
        if cell.simulated:
            return Ruling("SIMULATED")
        return _("measured {when} UTC", when=minute(cell.measured_at)) if cell.measured_at else _("measured")
    reason = cell.reason or cell.fit
    words: dict[str, Message] = {
        "failed": _("failed: {message}", message=reason),
        "skipped": _("skipped: {message}", message=reason),
        "interrupted": _("interrupted: {message}", message=reason),
        "waiting": _("not run yet"),
    }
    return words[cell.state]


def ruling(cell: CellRecord) -> Ruling:
    """Return the verdict of the cell's own report, and how many of its required gates pass."""
    if cell.verdict is None:
        return Ruling(NOT_MEASURED)
    word = cell.verdict if cell.verdict in ("PASS", "TRIAL", "NOT PASSED") else NOT_MEASURED
    gates = _("{passed} of {gates} gates", passed=cell.gates_passed, gates=cell.gates)
    return Ruling("SIMULATED" if cell.simulated else word, waiver=gates)
