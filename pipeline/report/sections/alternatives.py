"""The guide's table of models, with this run's figures for the measured one."""

from collections import Counter
from collections.abc import Sequence

from pipeline.config.schema import Alternative
from pipeline.message import Code, Message, _
from pipeline.report.cells import comma_separated, glued, measured, of_settings
from pipeline.report.inputs import Inputs
from pipeline.report.parts import AlternativeRow
from pipeline.report.sweep import CellRecord, CellState, Sweep
from pipeline.stages.bench import BenchResult
from pipeline.stages.measure_vram import MemoryUse

STATES: dict[CellState, Message] = {
    "measured": _("measured"),
    "failed": _("failed"),
    "skipped": _("skipped"),
    "interrupted": _("interrupted"),
    "waiting": _("not run yet"),
}


def alternatives(inputs: Inputs) -> list[AlternativeRow]:
    """Return the guide's rows."""
    sweep = inputs.outcomes[Sweep].data
    return [alternative(entry, inputs, sweep.cells if sweep is not None else []) for entry in inputs.alternatives]


def alternative(entry: Alternative, inputs: Inputs, cells: Sequence[CellRecord]) -> AlternativeRow:
    """Return the guide's row with this run's figures for that model, its state in the sweep, or the command that measures it."""
    columns = entry.model, entry.size, entry.vram, of_settings(entry.use_case)
    if entry.profile != inputs.invocation.profile:
        note = _("not measured in this run")
        sweep_cells = [cell for cell in cells if cell.profile == entry.profile]
        if sweep_cells:
            return AlternativeRow(*columns, _("{note}; in the sweep below: {states}", note=note, states=counted_states(sweep_cells)))
        return AlternativeRow(*columns, glued(note, "; ", Code(f"./inv all --profile {entry.profile}")) if entry.profile else note)
    figures = []
    for outcome, name in ((inputs.outcomes[MemoryUse], "vram_peak_mib"), (inputs.outcomes[BenchResult], "decode_tok_s_p50")):
        if outcome.data is not None:
            figures.append(measured(outcome.data.figures.get(name), inputs.marks.get(f"{outcome.stage}.{name}", ())))
    return AlternativeRow(*columns, tuple(figures) or (measured(None),))


def counted_states(cells: Sequence[CellRecord]) -> Message:
    """Return the number of cells of a sweep in each state."""
    counts = Counter[str](cell.state for cell in cells)
    return comma_separated(glued(counts[state], " ", name) for state, name in STATES.items() if counts[state])
