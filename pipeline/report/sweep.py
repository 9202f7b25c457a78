"""The record of a sweep (artifacts/sweep.json): its cells, their states, and the recommended one. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from pipeline.engine.record import Artifact
from pipeline.measure.digits import ends_of
from pipeline.measure.figures import Figure
from pipeline.message import Message, Sentence, _
from pipeline.report.cells import number
from pipeline.values import Frozen

ACCURACY = "test-router.constrained_route_accuracy"
LATENCY = "test-router.constrained_latency_ms_p95"
VRAM, HOST = "measure-vram.vram_peak_mib", "measure-vram.host_pss_peak_mib"
TTFT, DECODE, IDENTICAL = "bench.ttft_ms_p95", "bench.decode_tok_s_p50", "test-determinism.identical"
METRICS = (ACCURACY, LATENCY, VRAM, HOST, TTFT, DECODE, IDENTICAL)
INTERRUPTED = _("the sweep was interrupted; the same command goes on with it")
CellState = Literal["measured", "failed", "skipped", "interrupted", "waiting"]


class CellRecord(Frozen):
    """A cell: its values, its state with the reason, where it ran, and the results of its report.

    The state `measured` means that every stage ran, whatever the verdicts. `passed`: every required gate passes on a real
    server. `report` is the path of its REPORT.md, `source` the report.json that its figures were read from.
    """

    name: str
    folder: str
    values: dict[str, Any]
    profile: str
    fingerprint: str
    fit: Sentence
    state: CellState = "waiting"
    reason: Sentence = ""
    report: str | None = None
    source: str | None = None
    where: str | None = None
    took_s: float | None = None
    lost: int = 0
    exit_code: int | None = None
    measured_at: datetime | None = None
    passed: bool = False
    simulated: bool = False
    verdict: str | None = None
    headline: str | None = None
    model: str | None = None
    device: str | None = None
    size_mib: float | None = None
    gates_passed: int = 0
    gates: int = 0
    figures: dict[str, Figure] = {}

    def value(self, metric: str) -> float | None:
        """Return the figure's value; None if there is none."""
        figure = self.figures.get(metric)
        return figure.valid if figure is not None else None


class Sweep(Artifact):
    """A sweep: its axes, its cells in order, and the name of the recommended cell, if any."""

    started: datetime
    finished: datetime | None
    axes: dict[str, list[Any]]
    cells: list[CellRecord]
    recommended: str | None
    exit_code: int | None


def best_of(cells: Sequence[CellRecord]) -> CellRecord | None:
    """Return the cell with the best router accuracy among those that pass every gate; among equals, the one with the lowest p95 latency."""
    candidates = [(cell, cell.value(ACCURACY), cell.value(LATENCY)) for cell in cells if cell.passed]
    complete = [(cell, accuracy, latency) for cell, accuracy, latency in candidates if accuracy is not None and latency is not None]
    return min(complete, key=lambda row: (-row[1], row[2], row[0].name))[0] if complete else None


def rule() -> Message:
    """Return the rule of `best_of` in words."""
    return _("the best router accuracy among the cells that pass every gate; of equals the one with the lowest p95 latency.")


def recommendation(cells: Sequence[CellRecord]) -> Message:
    """Return the recommendation in words, or why there is none."""
    best = best_of(cells)
    if best is not None:
        accuracy, latency = best.value(ACCURACY), best.value(LATENCY)
        assert accuracy is not None
        assert latency is not None
        return _(
            "{cell} (router accuracy {accuracy} %, p95 {latency} ms)",
            cell=best.name,
            accuracy=number(accuracy, ends_of("%")),
            latency=number(latency),
        )
    if any(cell.passed for cell in cells):
        return _("none, because no cell that passes every gate has a router accuracy and latency")
    measured = sum(cell.state == "measured" for cell in cells)
    return _("none, because no cell passes every gate ({measured} of {count} were measured)", count=len(cells), measured=measured)


def exit_code(cells: Iterable[CellRecord]) -> int:
    """Return 0 if a cell passes every gate, 1 if cells were measured on a real server but none passes, else 2."""
    cells = list(cells)
    if any(cell.passed for cell in cells):
        return 0
    return 1 if any(cell.state == "measured" and not cell.simulated for cell in cells) else 2
