"""The pictures and charts of memory: over time with the stages marked, and its parts against the target."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise

from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import Artifact, Outcome
from pipeline.measure.memory import Sample, gpu_points, host_points
from pipeline.message import Message, _
from pipeline.report.cells import Cell, Text, number
from pipeline.report.drawing.charts import inlined
from pipeline.report.drawing.plots import Band, Bar, Line, MemoryLimit, has_parts, has_times, over_time, stacked
from pipeline.report.gates import JudgedGate
from pipeline.report.parts import Chart, Picture, Table
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server
from pipeline.vllm.plan import Plan

OVER_TIME, BREAKDOWN = "memory.svg", "breakdown.svg"
# Parts of memory, by their field names in Plan and in the breakdown from the server's log.
PARTS: dict[str, Text] = {
    "weights_mib": _("weights"),
    "activations_mib": _("activations"),
    "graphs_mib": _("CUDA graphs"),
    "kv_cache_mib": _("KV cache"),
}


def pictures(outcomes: Outcomes, gates: Iterable[JudgedGate], samples: Sequence[Sample]) -> list[Picture]:
    """Return the pictures of measure-vram's record; a picture without data has no drawing."""
    use = outcomes[MemoryUse].data
    if use is None:
        return [Picture(OVER_TIME, None), Picture(BREAKDOWN, None)]
    lines = lines_of(use, samples)
    on_device = bool(lines[0].points)
    target, name = target_of(gates, on_device), "VRAM" if on_device else _("host memory")
    bars = bars_of(outcomes, use, on_device)
    limits = [target] if target is not None else []
    return [
        Picture(
            OVER_TIME,
            partial(over_time, _("Memory over time"), lines, marks(outcomes, use, samples), limits) if has_times(lines) else None,
        ),
        Picture(BREAKDOWN, partial(stacked, _("Where the {name} goes", name=name), bars, target) if has_parts(bars) else None),
    ]


def lines_of(use: MemoryUse, samples: Sequence[Sample]) -> list[Line]:
    """Return the lines of memory over time; the first one is device memory."""
    return [
        Line("VRAM", gpu_points(samples, use.baseline_gpu_mib)[1]),
        Line(_("host memory (PSS)"), host_points(samples, "pss_mib")),
        Line(_("host memory (RSS)"), host_points(samples, "rss_mib")),
    ]


def target_of(gates: Iterable[JudgedGate], on_device: bool) -> MemoryLimit | None:
    """Return the strictest upper limit that the gates set for the peak; None if they set none."""
    metric, name = ("vram_peak_mib", "VRAM") if on_device else ("host_pss_peak_mib", _("host memory"))
    limiting_gates = [row.gate for row in gates if row.gate.metric == f"measure-vram.{metric}" and row.gate.comparator in ("<", "<=")]
    limits = [number for gate in limiting_gates for number in gate.numbers]
    return MemoryLimit(_("target, {name}", name=name), min(limits)) if limits else None


def bars_of(outcomes: Outcomes, use: MemoryUse, on_device: bool) -> list[Bar]:
    """Return the parts of memory, as planned and according to the server's log."""
    server, peak = outcomes[Server].data, use.figures.get("vram_peak_mib" if on_device else "host_pss_peak_mib")
    log_parts = [(name, mib) for key, name in PARTS.items() if (mib := getattr(use.breakdown, key)) is not None]
    rest = (peak.value if peak is not None and peak.value else 0) - sum(mib for _name, mib in log_parts)
    bars = [Bar(_("vLLM's log"), [*log_parts, (_("rest, up to the peak"), rest)])] if log_parts else []
    if server is not None and server.plan is not None:
        parts: list[tuple[Text, float]] = [(name, getattr(server.plan, key)) for key, name in PARTS.items()]
        bars.insert(0, Bar(_("planned"), [*parts, (_("context"), server.plan.context_mib)]))
    return bars


def marks(outcomes: Outcomes, use: MemoryUse, samples: Sequence[Sample]) -> list[Band]:
    """Return the stages and the phases of the start as bands, on the clock of the samples."""
    server = outcomes[Server].data
    stages: list[Outcome[Artifact]] = [outcomes[Server], *outcomes.measuring]
    envelopes = [(outcome.stage, outcome.envelope) for outcome in stages if outcome.data is not None]
    begins = [(name, envelope, use.anchor.at(envelope.started)) for name, envelope in envelopes if envelope is not None]
    bands = [Band(name, begin, begin + envelope.duration_s) for name, envelope, begin in begins]
    first = next((sample["t"] for sample in samples if "processes" in sample), None)
    if server is None or first is None or server.handle.launch_id != use.launch_id:
        return bands
    ends = list(accumulate(server.handle.phases_s.values(), initial=first))
    return bands + [Band(Message(name), *span, phase=True) for name, span in zip(server.handle.phases_s, pairwise(ends), strict=True)]


def charts(outcomes: Outcomes, samples: Sequence[Sample], memory_pictures: Sequence[Picture]) -> list[Chart]:
    """Return the pictures as charts for the page, each with a table of its numbers."""
    use, server = outcomes[MemoryUse].data, outcomes[Server].data
    if use is None:
        return []
    titles: dict[str, Text] = {OVER_TIME: _("Memory over time"), BREAKDOWN: _("Where the memory goes")}
    tables = {OVER_TIME: memory_table(use, samples), BREAKDOWN: parts_table(use, server.plan if server is not None else None)}
    result = [
        Chart(
            picture.file.partition(".")[0],
            titles[picture.file],
            drawings=[inlined(picture.drawing)],
            tables=[tables[picture.file]],
            wide=True,
        )
        for picture in memory_pictures
        if picture.drawing is not None
    ]
    if any(picture.file == OVER_TIME and picture.drawing is not None for picture in memory_pictures):
        return result
    note = _("Not drawn: the samples ({file}) are gone or too few.", file=use.samples_file)
    return [Chart("memory", titles[OVER_TIME], note), *result]


def memory_table(use: MemoryUse, samples: Sequence[Sample]) -> Table:
    """Return first, highest and last value of each line over time."""
    rows: list[list[Cell]] = [
        [
            line.label,
            len(line.points),
            *(number(value) for value in (line.points[0][1], max(mib for _at, mib in line.points), line.points[-1][1])),
        ]
        for line in lines_of(use, samples)
        if line.points
    ]
    return Table(_("Memory over time in MiB"), ["", _("samples"), _("first"), _("highest"), _("last")], rows)


def parts_table(use: MemoryUse, plan: Plan | None) -> Table:
    """Return the parts of memory, as planned and according to vLLM's log."""

    def mib_cell(value: float | None) -> Cell:
        return "–" if value is None else number(value)

    rows: list[list[Cell]] = [
        [part, mib_cell(getattr(plan, key, None)), mib_cell(getattr(use.breakdown, key))] for key, part in PARTS.items()
    ]
    return Table(_("Parts of memory in MiB"), ["", _("planned"), _("vLLM's log")], rows)
