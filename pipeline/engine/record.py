"""Records: what a stage leaves in artifacts/, with the inputs that it was made from."""

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.engine.migrations import migrated, today
from pipeline.errors import NewerRecordError, RecordError
from pipeline.measure.figures import Figure
from pipeline.message import WHOLE, Sentence
from pipeline.redact import redacted
from pipeline.values import Frozen

SCHEMA_VERSION = 2  # of the envelope; version 1 does not name the form of its data
SOAK_NOTE = "soak"  # the record of a soak, which no stage makes
SWEEP_NOTE = "sweep"  # the record of a sweep, likewise
BLOCKED = "blocked"  # the failure kind of a stage that has no data through no fault of its own
UNKNOWN_FORM = "its record has no form that this program knows"
LATER = "update this program, or remove the file to run the stage again"


class Artifact(Frozen):
    """Base of the results of stages; `identity` is the part that later stages depend on."""

    def identity(self) -> dict[str, Any]:
        """Return the readable facts whose change makes dependent stages run again; a digest of all data by default."""
        return {"digest": digest(self.model_dump(mode="json"))}


class Measurement(Artifact):
    """Base of measuring stages' records: named figures, and the launch of the server that they were measured on."""

    launch_id: str
    simulated: bool
    figures: dict[str, Figure]


class Failure(Frozen):
    """Why a stage produced no data."""

    kind: str
    message: Sentence
    hint: Sentence = ""
    log: str | None = None
    log_tail: list[str] = []


class Envelope(BaseModel):
    """One file in artifacts/: which stage made it, when, from which inputs (`because`), and the data or the failure."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, ser_json_inf_nan="constants")

    schema_version: int
    form: int = 0  # of the data, see migrations.py
    stage: str
    status: Literal["ok", "failed"]
    because: dict[str, Any]
    started: datetime
    duration_s: float
    host: str
    data: dict[str, Any] | None = None
    failure: Failure | None = None


A = TypeVar("A", bound=Artifact)
A_co = TypeVar("A_co", bound=Artifact, covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[A_co]):
    """What is on record for a stage: its data, its failure, or neither if it never ran."""

    stage: str
    data: A_co | None
    envelope: Envelope | None
    unreadable: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        return self.envelope.failure if self.envelope else self.unreadable


class Store:
    """Reads and writes the envelopes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def read(self, stage: str) -> Envelope | None:
        """Return the stage's envelope, or None if there is none; RecordError if it cannot be read."""
        path = self.path(stage)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"{path} is not readable JSON ({error})", f"remove it and run `./inv {stage}` again") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version not in range(1, SCHEMA_VERSION + 1):
            raise NewerRecordError(f"{path} has record schema {version}, this program reads {SCHEMA_VERSION}", LATER)
        try:
            envelope = Envelope.model_validate(raw)
        except ValidationError as error:
            raise RecordError(f"{path} is not a record ({error.errors()[0]['msg']})", "remove it to run the stage again") from error
        if envelope.form > today(stage):
            raise NewerRecordError(f"{path} has form {envelope.form} of the records of {stage}, this program reads {today(stage)}", LATER)
        return envelope

    def outcome(self, stage: str, makes: type[A]) -> Outcome[A]:
        """Return the stage's outcome; an unreadable file, or data that no longer fits the model, counts as no data, with the reason."""
        try:
            envelope = self.read(stage)
        except NewerRecordError:
            raise
        except RecordError as error:
            return Outcome(stage, None, None, Failure(kind=error.kind, message=error.message, hint=error.hint))
        if envelope is None or envelope.data is None:
            return Outcome(stage, None, envelope)
        try:
            data = migrated(stage, envelope.form, envelope.data, envelope.because)
            return Outcome(stage, makes.model_validate(data), envelope)
        except (ValidationError, LookupError, TypeError, AttributeError):
            return Outcome(stage, None, None, Failure(kind=BLOCKED, message=UNKNOWN_FORM))

    def remove(self, stage: str) -> None:
        self.path(stage).unlink(missing_ok=True)

    def write(
        self,
        stage: str,
        because: dict[str, Any],
        started: datetime,
        duration_s: float,
        result: Artifact | Failure,
    ) -> None:
        """Write the stage's envelope atomically."""
        failed = isinstance(result, Failure)
        envelope = Envelope(
            schema_version=SCHEMA_VERSION,
            form=today(stage),
            stage=stage,
            status="failed" if failed else "ok",
            because=because,
            started=started,
            duration_s=round(duration_s, 3),
            host=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
            data=None if failed else result.model_dump(mode="json", context=WHOLE),
            failure=result if isinstance(result, Failure) else None,
        )
        write_atomic(self.path(stage), redacted(envelope.model_dump_json(indent=1, context=WHOLE)) + "\n")


def now() -> datetime:
    """Return the wall-clock time in UTC, for labels only."""
    return datetime.now(UTC)


def digest(data: Any) -> str:
    """Return 16 hex digits that identify JSON-like `data`."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` so that a crash leaves the old file or the new one, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
