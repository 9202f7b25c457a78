"""The result of a cell: its record (artifacts/sweep/<cell>/cell.json), built from its own report."""

import json
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from pipeline.dag import MEASURING
from pipeline.engine.record import BLOCKED, Store, write_atomic
from pipeline.errors import MeaninglessError, RecordError
from pipeline.measure.figures import Figure
from pipeline.measure.units import MIB
from pipeline.message import WHOLE, Sentence
from pipeline.redact import redacted
from pipeline.report.formats.document import FILE_NAME, Document, ReportedFigure, read_document
from pipeline.report.sweep import DECODE, METRICS, CellRecord
from pipeline.stages.bench import BenchResult

CELL_FILE = "cell.json"
OF_ANSWERS = ("test-router", "test-determinism")


def read_cell(folder: Path) -> CellRecord | None:
    """Return the record of the cell in `folder`; None if it cannot be read, so that the cell runs again."""
    try:
        return CellRecord.model_validate_json((folder / CELL_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_cell(folder: Path, cell: CellRecord) -> None:
    """Write the cell's record atomically."""
    write_atomic(folder / CELL_FILE, redacted(cell.model_dump_json(indent=1, context=WHOLE)) + "\n")


def ended(cell: CellRecord, code: int, root: Path, folder: Path, message: str) -> CellRecord:
    """Return the record of a cell whose pipeline ended with exit code `code`, built from what it left in `folder`."""
    document = document_of(folder)
    if document is None:
        reason = message or last_words(folder / "cell.log") or f"exit code {code} and no report"
        return cell.model_copy(update={"state": "failed", "exit_code": code, "reason": reason})
    kinds = {stage.stage: failure_kind(folder, stage.stage) for stage in document.stages if stage.status == "failed"}
    failed = [stage for stage in document.stages if kinds.get(stage.stage, MeaninglessError.kind) != MeaninglessError.kind]
    broken = next((stage for stage in failed if kinds[stage.stage] != BLOCKED), None)
    ran = not failed and all(stage.status != "never ran" for stage in document.stages if stage.stage in MEASURING)
    whole = code in (0, 1) or (code == 2 and ran)
    figures = {metric: figure for metric in METRICS if (figure := document.figure(metric)) is not None}
    simulated = any(figure.simulated for figure in figures.values())
    reason = f"{broken.stage}: {broken.reason}" if broken is not None else "" if whole else last_words(folder / "cell.log")
    return cell.model_copy(
        update={
            "state": "measured" if whole else "failed",
            "reason": reason,
            "report": path_of(root, folder / "REPORT.md"),
            "source": path_of(root, folder / FILE_NAME),
            "exit_code": code,
            "passed": code == 0 and document.exit_code == 0 and not simulated,
            "simulated": simulated,
            "random_weights": document.environment.random_weights,
            "speed_passed": speed_passes(document) and not simulated,
            "verdict": document.verdict,
            "headline": document.headline,
            "measured_at": document.started,
            "model": document.environment.model or cell.model,
            "device": document.environment.device,
            "size_mib": size_mib(folder),
            "gates_passed": sum(gate.verdict == "PASS" for gate in document.gates if gate.required),
            "gates": sum(gate.required for gate in document.gates),
            "figures": {metric: plain(figure) for metric, figure in figures.items()},
        }
    )


def speed_passes(document: Document) -> bool:
    """Tell whether every required gate passes, apart from those on answers, which mean nothing where the weights are random."""
    required = [gate for gate in document.gates if gate.required and gate.metric.partition(".")[0] not in OF_ANSWERS]
    return document.figure(DECODE) is not None and all(gate.verdict == "PASS" for gate in required)


def disturbed(folder: Path) -> Sentence:
    """Return why the load client of the cell in `folder` was not good enough, by its own calibration; empty where it was."""
    bench = Store(folder / "artifacts").outcome("bench", BenchResult).data
    return next((level.invalid for level in bench.levels if level.invalid), "") if bench is not None else ""


def failure_kind(folder: Path, stage: str) -> str:
    """Return the kind of the stage's failure in the cell's folder; empty if there is none or it cannot be read."""
    with suppress(RecordError):
        envelope = Store(folder / "artifacts").read(stage)
        if envelope is not None and envelope.failure is not None:
            return envelope.failure.kind
    return ""


def plain(figure: ReportedFigure) -> Figure:
    """Return the figure without the place where it is recorded."""
    return Figure.model_validate(figure.model_dump(include=set(Figure.model_fields)))


def path_of(root: Path, path: Path) -> str | None:
    """Return `path` relative to the project's folder; None if there is no such file."""
    return str(path.relative_to(root)) if path.is_file() else None


def document_of(folder: Path) -> Document | None:
    """Return the cell's report.json; None if it is missing or cannot be read."""
    path = folder / FILE_NAME
    with suppress(OSError, RecordError):
        return read_document(path.read_bytes(), path.name)
    return None


def size_mib(folder: Path) -> float | None:
    """Return the size of the model's files as download-model recorded it; None if it is unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / "artifacts" / "download-model.json").read_text(encoding="utf-8"))
        total: int = sum(entry["bytes"] for entry in record["data"]["files"])
        return round(total / MIB, 1)
    return None


def last_words(log: Path) -> str:
    """Return the last error that the cell printed, or else its last line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    printed = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in printed if line.startswith("error: ")]
    return redacted((errors or printed or [""])[-1])
