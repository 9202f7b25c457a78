"""report.json: all that a run says, for programs. Its JSON Schema is pipeline/report/report.schema.json."""

import json
import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipeline.config.gates import Comparator
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import SWEEP_NOTE, Artifact, Measurement, Outcome, digest
from pipeline.errors import RecordError
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import Verdict
from pipeline.report.gates import Judged, JudgedGate
from pipeline.report.headline import Word, headline, word
from pipeline.report.sweep import Sweep
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server
from pipeline.values import Frozen

SCHEMA_VERSION: Literal[1] = 1
SCHEMA_FILE = Path(__file__).parents[1] / "report.schema.json"
FILE_NAME = "report.json"

STAGE_LINE, NAME_LINE = re.compile(r' {3}"stage": "([\w-]+)",'), re.compile(r' {3}"name": "([\w.-]+)",')
CELL_LINE = re.compile(r' {4}"name": (".*"),')


class Part(Frozen):
    """Base of the document's parts."""


class Environment(Part):
    """What the figures depend on; null where it is not known."""

    device: str | None
    model: str | None
    license: str | None = None
    non_commercial: bool | None = None  # the model's licence forbids commercial use
    revision: str | None
    vllm: str | None
    distribution: str | None
    set: str | None
    profile: str
    host: str | None
    attached: str | None
    random_weights: bool


class StageOutcome(Part):
    """How a stage ended: ok, failed, or never ran; and, of one that measured, with which settings and on which launch."""

    stage: str
    status: Literal["ok", "failed", "never ran"]
    reason: str
    started: datetime | None
    duration_s: float | None
    launch_id: str | None
    settings: dict[str, Any]


class ReportedFigure(Part):
    """A figure and where it stands: `key` in the file `artifact`. `simulated`: not from a server proven to be a real vLLM."""

    stage: str
    name: str
    value: float | None
    unit: str
    n: int
    low: float | None
    high: float | None
    reason: str
    failed: int = 0
    invalid: str = ""
    simulated: bool
    artifact: str
    key: str

    @property
    def metric(self) -> str:
        """Return the name that gates and settings use."""
        return f"{self.stage}.{self.name}"


class ReportedGate(Part):
    """A gate: what it asks, the figure that it took, the verdict, and whether a waiver covers it."""

    id: str
    label: str
    metric: str
    statistic: str
    comparator: Comparator
    target: float | Literal["plan"]  # "plan": nothing was planned that would make it a number
    unit: str
    min_n: int
    judge_by: Literal["bound", "point"]
    required: bool
    value: float | None
    n: int
    low: float | None
    high: float | None
    verdict: Verdict
    reason: str
    waived: bool
    waiver: str


class Document(Part):
    """A report: verdict, gates, figures, environment. `run_id` is null where nothing was run; `exit_code` as the commands give it.

    `sweep` is the last sweep on record, whose cells are runs of their own: nothing else here depends on it.
    """

    schema_version: Literal[1]
    run_id: str | None
    verdict: Word
    headline: str
    exit_code: int
    started: datetime | None
    finished: datetime | None
    environment: Environment
    gates: list[ReportedGate]
    figures: list[ReportedFigure]
    stages: list[StageOutcome]
    sweep: Sweep | None = None

    def figure(self, metric: str) -> ReportedFigure | None:
        """Return the figure of that name, as in bench.ttft_ms_p95."""
        return next((figure for figure in self.figures if figure.metric == metric), None)


def build_document(profile: str, judged: Judged) -> Document:
    """Return what the report says of these outcomes."""
    outcomes = judged.outcomes
    began = started(outcomes)
    names = [outcome.stage for outcome in outcomes]
    return Document(
        schema_version=SCHEMA_VERSION,
        run_id=run_id(outcomes),
        verdict=word(judged),
        headline=str(headline(judged)),
        exit_code=judged.code,
        started=min((moment for moment, _took in began.values()), default=None),
        finished=max((moment + timedelta(seconds=took_s) for moment, took_s in began.values()), default=None),
        environment=environment(profile, outcomes),
        gates=[reported_gate(row) for row in judged.gates],
        figures=[figure for outcome in outcomes.measuring for figure in reported_figures(outcome)],
        stages=[stage_outcome(outcome, names) for outcome in outcomes.stages],
        sweep=outcomes[Sweep].data,
    )


def run_id(outcomes: Outcomes) -> str | None:
    """Return <UTC time>-<short id>, which changes when anything was measured or tried anew; None where nothing was."""
    began = started(outcomes)
    if not began:
        return None
    return f"{max(moment for moment, _took in began.values()):%Y%m%dT%H%M%SZ}-{digest(began)[:6]}"


def started(outcomes: Outcomes) -> dict[str, tuple[datetime, float]]:
    """Return when each measuring stage began and how long it took, of those that did."""
    envelopes = {outcome.stage: outcome.envelope for outcome in outcomes.measuring}
    return {name: (envelope.started, envelope.duration_s) for name, envelope in envelopes.items() if envelope}


def environment(profile: str, outcomes: Outcomes) -> Environment:
    """Return the facts of the server, or of what it was to be started from."""
    installation, model, server = outcomes[Installation].data, outcomes[Model].data, outcomes[Server].data
    envelope = outcomes[Machine].envelope
    return Environment(
        device=server.device if server else None,
        model=server.model if server else model.name if model else None,
        license=model.facts.license if model else None,
        non_commercial=model.facts.non_commercial if model else None,
        revision=model.revision if model else None,
        vllm=server.vllm if server else installation.vllm if installation else None,
        distribution=server.distribution if server else installation.distribution if installation else None,
        set=installation.set if installation else None,
        profile=profile,
        host=envelope.host if envelope else None,
        attached=server.attached if server else None,
        random_weights=bool(server and server.random_weights),
    )


def reported_gate(row: JudgedGate) -> ReportedGate:
    """Return a judged gate."""
    gate, figure = row.gate, row.figure
    wanted = gate.model_dump(exclude={"table"})
    found = figure.model_dump(include={"value", "n", "low", "high"}) if figure else {"value": None, "n": 0, "low": None, "high": None}
    judgement = row.judgement
    return ReportedGate(
        id=row.id, **wanted, **found, verdict=judgement.verdict, reason=judgement.reason, waived=row.waived, waiver=row.waiver
    )


def reported_figures(outcome: Outcome[Measurement]) -> list[ReportedFigure]:
    """Return each figure of a record that has any."""
    if outcome.data is None:
        return []
    return [reported_figure(outcome.stage, name, figure, outcome.data.simulated) for name, figure in outcome.data.figures.items()]


def reported_figure(stage: str, name: str, figure: Figure, simulated: bool) -> ReportedFigure:
    """Return the figure with its place."""
    artifact, key = f"artifacts/{stage}.json", f"data.figures.{name}"
    return ReportedFigure(stage=stage, name=name, **figure.model_dump(), simulated=simulated, artifact=artifact, key=key)


def stage_outcome(outcome: Outcome[Artifact], stages: Iterable[str]) -> StageOutcome:
    """Return how a stage ended; its settings are what its fingerprint holds beside code and other stages."""
    envelope, failure = outcome.envelope, outcome.failure
    measured = outcome.data if isinstance(outcome.data, Measurement) else None
    because = envelope.because if envelope is not None and measured is not None else {}
    return StageOutcome(
        stage=outcome.stage,
        status="failed" if failure else "ok" if envelope and outcome.data is not None else "never ran",
        reason=failure.message if failure else "",
        started=envelope.started if envelope else None,
        duration_s=envelope.duration_s if envelope else None,
        launch_id=measured.launch_id if measured is not None else None,
        settings={key: value for key, value in because.items() if key not in {"schema", "code", *stages} - {outcome.stage}},
    )


def text_of(document: Document) -> str:
    """Return the document as the file holds it; a value that is no number is null, as JSON has none."""
    return document.model_dump_json(indent=1) + "\n"


def places(text: str) -> dict[str, str]:
    """Return the link to each figure in the document's text, by <stage>.<name>: to its first line, counted from 1.

    Likewise to each cell of a sweep, by sweep.<name>.
    """
    found: dict[str, str] = {}
    lines = text.splitlines()
    figures = lines.index(' "figures": [') if ' "figures": [' in lines else len(lines)
    for number, (stage, name) in enumerate(pairwise(lines[figures:]), start=figures):
        of, what = STAGE_LINE.fullmatch(stage), NAME_LINE.fullmatch(name)
        if of and what:
            found[f"{of[1]}.{what[1]}"] = f"{FILE_NAME}#L{number}"
    sweep = lines.index(' "sweep": {') if ' "sweep": {' in lines else len(lines)
    for number, line in enumerate(lines[sweep:], start=sweep + 1):
        if cell := CELL_LINE.fullmatch(line):
            found[f"{SWEEP_NOTE}.{json.loads(cell[1])}"] = f"{FILE_NAME}#L{number}"
    return found


def schema_text() -> str:
    """Return the JSON Schema of the document as report.schema.json holds it."""
    schema = Document.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1, ensure_ascii=False) + "\n"


def read_document(text: str | bytes, where: str) -> Document:
    """Return the document in `text`; RecordError where it is none of ours, or of another version."""
    advice = "name a report.json, or a folder with one, that this version of vllm-poc wrote"
    try:
        raw = json.loads(text)
    except ValueError as error:  # also bytes that are not UTF-8
        raise RecordError(f"{where} is not readable JSON ({error})", advice) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{where} has report schema {version}, this program reads {SCHEMA_VERSION}", advice)
    try:
        return Document.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where} is not a report ({place}: {first['msg']})", advice) from error
