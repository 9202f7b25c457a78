"""Sweeps and their cells as tests want them."""

from typing import Any

from pipeline.config.schema import Alternative
from pipeline.measure.figures import Figure
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
    best_of,
    exit_code,
)
from tests.builders.documents import WHEN


def cell(name: str, accuracy: float | None = 80, latency: float | None = 300, **changes: Any) -> CellRecord:
    """Return a cell that was measured and passes, unless `changes` say otherwise."""
    values = {ACCURACY: (accuracy, "%"), LATENCY: (latency, "ms"), VRAM: (None, "MiB"), HOST: (900.0, "MiB")}
    values |= {TTFT: (40.0, "ms"), DECODE: (60.0, "tok/s"), IDENTICAL: (100.0, "%")}
    figures = {metric: Figure(value=value, unit=unit, n=64) for metric, (value, unit) in values.items()}
    made = CellRecord(
        name=name,
        folder=name,
        values={},
        profile="small",
        fingerprint="f",
        fit="fits",
        state="measured",
        report=f"artifacts/sweep/{name}/REPORT.md",
        source=f"artifacts/sweep/{name}/report.json",
        measured_at=WHEN,
        passed=True,
        verdict="PASS",
        model="Model",
        device="A card",
        size_mib=512.0,
        gates_passed=9,
        gates=9,
        figures=figures,
    )
    return made.model_copy(update=changes)


def failed(name: str) -> CellRecord:
    return cell(
        name, state="failed", passed=False, figures={}, reason="serve: the GPU ran out of memory", report=None, source=None, verdict=None
    )


def sweep(*cells: CellRecord) -> Sweep:
    best = best_of(cells)
    return Sweep(
        started=WHEN,
        finished=WHEN,
        axes={"profile": ["small"]},
        cells=list(cells),
        recommended=best.name if best else None,
        exit_code=exit_code(cells),
    )


GUIDE = [Alternative(model="Qwen", size="1.5B", vram="~2GB", use_case="Router", profile="small")]


def skipped(name: str, reason: str = "cannot fit: too large (by far)") -> CellRecord:
    record = CellRecord(name=name, folder=name, values={}, profile="other", fingerprint="f", fit=reason, model="Other")
    return record.model_copy(update={"state": "skipped", "reason": reason})


ODD = cell('serve.x="a|b\\c<d>"', 75, 200, passed=False, verdict="NOT PASSED", gates_passed=7, source="artifacts/sweep/odd/report.json")


SWEPT = sweep(cell("a", 80, 310), cell("b", 90, 290), ODD, failed("c"), skipped("d"))
