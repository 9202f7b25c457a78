"""report.json: the complete report for programs. Its JSON Schema is pipeline/report/report.schema.json."""

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
from pipeline.stages.bench import BenchResult
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
    """Base class of the document's parts."""


class Environment(Part):
    """The environment that the figures depend on; null for what is unknown."""

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
    """The status of a stage; for a stage that measured, also its settings and the launch it measured on."""

    stage: str
    status: Literal["ok", "failed", "never ran"]
    reason: str
    started: datetime | None
    duration_s: float | None
    launch_id: str | None
    settings: dict[str, Any]


class ReportedFigure(Part):
    """A figure and its location: `key` in the file `artifact`. `simulated`: not measured on a server proven to be a real vLLM."""

    stage: str
    name: str
    value: float | None
    unit: str
    n: int
    low: float | None
    high: float | None
    reason: str
    failed: int = 0
    starts: int = 1
    invalid: str = ""
    simulated: bool
    artifact: str
    key: str

    @property
    def metric(self) -> str:
        """Return the figure's name in gates and settings, <stage>.<figure>."""
        return f"{self.stage}.{self.name}"


class ReportedLevel(Part):
    """One closed loop (`concurrency` is set) or open loop (its rates are) of `bench`, with its figures by name."""

    load: Literal["closed", "poisson", "constant"]
    concurrency: int | None = None
    rate_per_s: float | None = None
    came_per_s: float | None = None
    requests: int
    failed: int
    wall_s: float
    simulated: bool
    figures: dict[str, Figure]


class ReportedGate(Part):
    """A gate: its target, the figure it judged, the verdict, and whether a waiver covers it."""

    id: str
    label: str
    metric: str
    statistic: str
    comparator: Comparator
    target: float | Literal["plan"]  # "plan": no plan gave it a number
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
    """A report: verdict, gates, figures, environment. `run_id` is null if nothing ran; `exit_code` is that of the commands.

    `sweep` is the last sweep on record; its cells are separate runs, and nothing else in the report depends on it.
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
    levels: list[ReportedLevel] = []
    sweep: Sweep | None = None

    def figure(self, metric: str) -> ReportedFigure | None:
        """Return the figure with that name, such as bench.ttft_ms_p95; None if there is none."""
        return next((figure for figure in self.figures if figure.metric == metric), None)


def build_document(profile: str, judged: Judged) -> Document:
    """Return the report on these outcomes."""
    outcomes = judged.outcomes
    starts = start_times(outcomes)
    names = [outcome.stage for outcome in outcomes]
    return Document(
        schema_version=SCHEMA_VERSION,
        run_id=run_id(outcomes),
        verdict=word(judged),
        headline=str(headline(judged)),
        exit_code=judged.code,
        started=min((moment for moment, _took_s in starts.values()), default=None),
        finished=max((moment + timedelta(seconds=took_s) for moment, took_s in starts.values()), default=None),
        environment=environment(profile, outcomes),
        gates=[reported_gate(row) for row in judged.gates],
        figures=[figure for outcome in outcomes.measuring for figure in reported_figures(outcome)],
        stages=[stage_outcome(outcome, names) for outcome in outcomes.stages],
        levels=reported_levels(outcomes[BenchResult].data),
        sweep=outcomes[Sweep].data,
    )


def run_id(outcomes: Outcomes) -> str | None:
    """Return <UTC time>-<short id>, which changes whenever a measuring stage runs again; None if none ever ran."""
    starts = start_times(outcomes)
    if not starts:
        return None
    return f"{max(moment for moment, _took_s in starts.values()):%Y%m%dT%H%M%SZ}-{digest(starts)[:6]}"


def start_times(outcomes: Outcomes) -> dict[str, tuple[datetime, float]]:
    """Return the start and the duration (s) of each measuring stage that ran."""
    envelopes = {outcome.stage: outcome.envelope for outcome in outcomes.measuring}
    return {name: (envelope.started, envelope.duration_s) for name, envelope in envelopes.items() if envelope}


def environment(profile: str, outcomes: Outcomes) -> Environment:
    """Return the facts of the server, or of the installation and the model if it was never started."""
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
    """Return the gate with its figure and verdict."""
    gate, figure = row.gate, row.figure
    target_fields = gate.model_dump(exclude={"table"})
    figure_fields = (
        figure.model_dump(include={"value", "n", "low", "high"}) if figure else {"value": None, "n": 0, "low": None, "high": None}
    )
    judgement = row.judgement
    return ReportedGate(
        id=row.id,
        **target_fields,
        **figure_fields,
        verdict=judgement.verdict,
        reason=judgement.reason,
        waived=row.waived,
        waiver=row.waiver,
    )


def reported_figures(outcome: Outcome[Measurement]) -> list[ReportedFigure]:
    """Return the figures of a record; empty without data."""
    if outcome.data is None:
        return []
    return [reported_figure(outcome.stage, name, figure, outcome.data.simulated) for name, figure in outcome.data.figures.items()]


def reported_figure(stage: str, name: str, figure: Figure, simulated: bool) -> ReportedFigure:
    """Return the figure with its location in the stage's record."""
    artifact, key = f"artifacts/{stage}.json", f"data.figures.{name}"
    return ReportedFigure(stage=stage, name=name, **figure.model_dump(), simulated=simulated, artifact=artifact, key=key)


def reported_levels(bench: BenchResult | None) -> list[ReportedLevel]:
    """Return the levels of `bench` that have figures of their own, which those of an older version do not."""
    if bench is None:
        return []
    shared = {"requests", "failed", "wall_s", "figures"}
    closed = [
        ReportedLevel(load="closed", simulated=bench.simulated, **entry.model_dump(include={"concurrency", *shared}))
        for entry in bench.levels
        if entry.figures
    ]
    opened = [
        ReportedLevel(load=entry.arrival, simulated=bench.simulated, **entry.model_dump(include={"rate_per_s", "came_per_s", *shared}))
        for entry in bench.open_levels
        if entry.figures
    ]
    return [*closed, *opened]


def stage_outcome(outcome: Outcome[Artifact], stages: Iterable[str]) -> StageOutcome:
    """Return the stage's outcome; its settings are its fingerprint without the schema, the code and other stages."""
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
    """Return the document as JSON text; NaN and infinity become null."""
    return document.model_dump_json(indent=1) + "\n"


def places(text: str) -> dict[str, str]:
    """Return links into the document's text: to each figure by <stage>.<name>, and to each cell of a sweep by sweep.<name>.

    A link leads to a line of the file, counted from 1.
    """
    links: dict[str, str] = {}
    lines = text.splitlines()
    figures = lines.index(' "figures": [') if ' "figures": [' in lines else len(lines)
    for number, (stage, name) in enumerate(pairwise(lines[figures:]), start=figures):
        stage_match, name_match = STAGE_LINE.fullmatch(stage), NAME_LINE.fullmatch(name)
        if stage_match and name_match:
            links[f"{stage_match[1]}.{name_match[1]}"] = f"{FILE_NAME}#L{number}"
    sweep = lines.index(' "sweep": {') if ' "sweep": {' in lines else len(lines)
    for number, line in enumerate(lines[sweep:], start=sweep + 1):
        if cell := CELL_LINE.fullmatch(line):
            links[f"{SWEEP_NOTE}.{json.loads(cell[1])}"] = f"{FILE_NAME}#L{number}"
    return links


def schema_text() -> str:
    """Return the JSON Schema of the document, the content of report.schema.json."""
    schema = Document.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1, ensure_ascii=False) + "\n"


def read_document(text: str | bytes, where: str) -> Document:
    """Return the document in `text`; raise RecordError if it is not a report, or has another schema version."""
    advice = "name a report.json, or a folder with one, that this version of vllm-poc wrote"
    try:
        raw = json.loads(text)
    except ValueError as error:  # includes bytes that are not UTF-8
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
