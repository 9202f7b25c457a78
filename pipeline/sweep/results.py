"""What became of a sweep: a record per cell, made of the cell's own report, and of them all (artifacts/sweep/sweep.json)."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import MeaninglessError, RecordError
from pipeline.measure.figures import Figure
from pipeline.record import BLOCKED, Store, write_atomic
from pipeline.redact import redacted
from pipeline.report.document import FILE_NAME, MEASURING, Document, ReportedFigure, read_document

SCHEMA_VERSION: Literal[1] = 1
CELL_FILE, SWEEP_FILE = "cell.json", "sweep.json"
MIB = 2**20
ACCURACY = "test-router.constrained_route_accuracy"
LATENCY = "test-router.constrained_latency_ms_p95"
VRAM, HOST = "measure-vram.vram_peak_mib", "measure-vram.host_pss_peak_mib"
TTFT, DECODE, IDENTICAL = "bench.ttft_ms_p95", "bench.decode_tok_s_p50", "test-determinism.identical"
METRICS = (ACCURACY, LATENCY, VRAM, HOST, TTFT, DECODE, IDENTICAL)
State = Literal["measured", "failed", "skipped", "interrupted", "waiting"]


class Part(BaseModel):
    """Base of the record's parts."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class CellRecord(Part):
    """A cell: what it is, what became of it and why, where, and what its report says.

    `measured`: every stage ran, whatever the verdicts. `passed`: every required gate passes on a real server.
    """

    name: str
    folder: str
    values: dict[str, Any]
    profile: str
    fingerprint: str
    fit: str
    state: State = "waiting"
    reason: str = ""
    report: str | None = None
    where: str | None = None
    took_s: float | None = None
    lost: int = 0
    exit_code: int | None = None
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
        """Return the figure's value, if it has one."""
        figure = self.figures.get(metric)
        return figure.value if figure is not None else None


class Sweep(Part):
    """A sweep: its axes, its cells in their order, and which of them is recommended, if any."""

    schema_version: Literal[1] = SCHEMA_VERSION
    started: datetime
    finished: datetime | None
    axes: dict[str, list[Any]]
    cells: list[CellRecord]
    recommended: str | None
    recommendation: str
    exit_code: int | None


def read_cell(folder: Path) -> CellRecord | None:
    """Return what is on record of the cell in that folder; None where that cannot be read, so that it runs again."""
    try:
        return CellRecord.model_validate_json((folder / CELL_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_cell(folder: Path, cell: CellRecord) -> None:
    """Write the cell's record, whole or not at all."""
    write_atomic(folder / CELL_FILE, redacted(cell.model_dump_json(indent=1)) + "\n")


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in that file; RecordError where it is none of ours, or of another version."""
    advice = "`./inv sweep` writes it anew"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path.name} cannot be read ({error})", advice) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path.name} has sweep schema {version}, this program reads {SCHEMA_VERSION}", advice)
    try:
        return Sweep.model_validate(raw)
    except ValidationError as error:
        raise RecordError(f"{path.name} is not a sweep ({error.errors()[0]['msg']})", advice) from error


def ended(cell: CellRecord, code: int, root: Path, folder: Path, said: str) -> CellRecord:
    """Return the record of a cell whose pipeline ended with that exit code, from what it left in `folder`."""
    document = document_of(folder)
    if document is None:
        reason = said or last_words(folder / "cell.log") or f"exit code {code} and no report"
        return cell.model_copy(update={"state": "failed", "exit_code": code, "reason": reason})
    kinds = {stage.stage: failure_kind(folder, stage.stage) for stage in document.stages if stage.status == "failed"}
    failed = [stage for stage in document.stages if kinds.get(stage.stage, MeaninglessError.kind) != MeaninglessError.kind]
    broken = next((stage for stage in failed if kinds[stage.stage] != BLOCKED), None)
    ran = not failed and all(stage.status != "never ran" for stage in document.stages if stage.stage in MEASURING)
    whole = code in (0, 1) or (code == 2 and ran)
    found = {metric: figure for metric in METRICS if (figure := document.figure(metric)) is not None}
    simulated = any(figure.simulated for figure in found.values())
    reason = f"{broken.stage}: {broken.reason}" if broken is not None else "" if whole else last_words(folder / "cell.log")
    return cell.model_copy(
        update={
            "state": "measured" if whole else "failed",
            "reason": reason,
            "report": report_path(root, folder),
            "exit_code": code,
            "passed": code == 0 and document.exit_code == 0 and not simulated,
            "simulated": simulated,
            "verdict": document.verdict,
            "headline": document.headline,
            "model": document.environment.model,
            "device": document.environment.device,
            "size_mib": size_mib(folder),
            "gates_passed": sum(gate.verdict == "PASS" for gate in document.gates if gate.required),
            "gates": sum(gate.required for gate in document.gates),
            "figures": {metric: plain(figure) for metric, figure in found.items()},
        }
    )


def failure_kind(folder: Path, stage: str) -> str:
    """Return the kind of failure on the cell's record; empty where there is none that can be read."""
    with suppress(RecordError):
        envelope = Store(folder / "artifacts").read(stage)
        if envelope is not None and envelope.failure is not None:
            return envelope.failure.kind
    return ""


def plain(figure: ReportedFigure) -> Figure:
    """Return the figure without its place."""
    return Figure.model_validate(figure.model_dump(include=set(Figure.model_fields)))


def report_path(root: Path, folder: Path) -> str | None:
    """Return the cell's report as a person in the project's folder would type it."""
    path = folder / "REPORT.md"
    return str(path.relative_to(root)) if path.is_file() else None


def document_of(folder: Path) -> Document | None:
    """Return the cell's report.json; None where there is none that can be read."""
    path = folder / FILE_NAME
    with suppress(OSError, RecordError):
        return read_document(path.read_bytes(), path.name)
    return None


def size_mib(folder: Path) -> float | None:
    """Return the size of the model's files, as download-model recorded them."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / "artifacts" / "download-model.json").read_text(encoding="utf-8"))
        total: int = sum(entry["bytes"] for entry in record["data"]["files"])
        return round(total / MIB, 1)
    return None


def last_words(log: Path) -> str:
    """Return the last line of what the cell printed."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
    return redacted((errors or told or [""])[-1])


def recommended(cells: Sequence[CellRecord]) -> CellRecord | None:
    """Return the cell with the best router accuracy of those that pass every gate, of equals the one with the lowest p95 latency."""
    judged = [(cell, cell.value(ACCURACY), cell.value(LATENCY)) for cell in cells if cell.passed]
    whole = [(cell, accuracy, latency) for cell, accuracy, latency in judged if accuracy is not None and latency is not None]
    return min(whole, key=lambda row: (-row[1], row[2], row[0].name))[0] if whole else None


def recommendation(cells: Sequence[CellRecord]) -> str:
    """Return the recommendation in words, or why there is none."""
    best = recommended(cells)
    measured = [cell for cell in cells if cell.state == "measured"]
    if best is None:
        if any(cell.passed for cell in cells):
            return "none: no cell that passes every gate has a router accuracy and latency"
        return f"none: of {len(cells)} cells {len(measured)} were measured, and none passes every gate"
    accuracy, latency = best.value(ACCURACY), best.value(LATENCY)
    return f"{best.name}: router accuracy {accuracy:.3g} %, p95 {latency:.3g} ms"


def exit_code(cells: Iterable[CellRecord]) -> int:
    """Return 0 when a cell passes every gate, 1 when one was measured and none passes, 2 when none was measured."""
    cells = list(cells)
    if any(cell.passed for cell in cells):
        return 0
    return 1 if any(cell.state == "measured" and not cell.simulated for cell in cells) else 2
