"""report: every figure beside its target, with verdict and source, in REPORT.md."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config import Alternatives, Gates, Given, Instead, Profile, ReportConfig, Waived
from pipeline.errors import MeasureError
from pipeline.measure.memory import Sample
from pipeline.measure.verdicts import Verdict
from pipeline.record import Artifact, Outcome, write_atomic
from pipeline.redact import redacted
from pipeline.server.stop import Closing
from pipeline.stages.bench import BenchResult
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.measure_vram import MemoryUse, read_samples
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Determinism, Remedied
from pipeline.stages.test_router import RouterResult
from pipeline.workspace import Workspace

PLOTS = "plots"  # in artifacts/


class GateVerdict(BaseModel):
    """One gate's verdict, and the words for its waiver if it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    gate: str
    verdict: Verdict
    reason: str
    required: bool
    waiver: str


class Report(Artifact):
    """Where the report is, and what it says."""

    path: str
    plots: list[str]
    headline: str
    exit_code: int
    gates: list[GateVerdict]


def report(
    settings: ReportConfig,
    gates: Gates,
    waived: Waived,
    alternatives: Alternatives,
    profile: Profile,
    given: Given,
    instead: Instead,
    machine: Outcome[Machine],
    installation: Outcome[Installation],
    model: Outcome[Model],
    server: Outcome[Server],
    router: Outcome[RouterResult],
    determinism: Outcome[Determinism],
    bench: Outcome[BenchResult],
    memory: Outcome[MemoryUse],
    closing: Outcome[Closing],
    remedied: Outcome[Remedied],
    workspace: Workspace,
) -> Report:
    """Render REPORT.md from whatever is on record."""
    from pipeline.report.document import build_document, text_of
    from pipeline.report.exports import junit, openmetrics
    from pipeline.report.gates import judge_records
    from pipeline.report.markdown import render
    from pipeline.report.plots import memory_pictures
    from pipeline.report.view import build_view

    records: list[Outcome[Any]] = [machine, installation, model, server, router, determinism, bench, memory, closing, remedied]
    judged = judge_records(gates, waived, records)
    path = workspace.root / settings.output
    plots = written(memory_pictures(judged.outcomes, judged.gates, samples_of(judged.outcomes["measure-vram"], workspace)), workspace)
    pictures = [Path(os.path.relpath(workspace.root / plot, path.parent)).as_posix() for plot in plots]
    view = build_view(settings, profile.root, given.root, instead.root, alternatives.root, judged, pictures)
    write_atomic(path, render(workspace.root / "templates", view))
    document = build_document(profile.root, judged, view.headline)
    write_atomic(workspace.root / settings.document, redacted(text_of(document)))
    unclear = (settings.junit_inconclusive, settings.junit_not_measured)
    write_atomic(workspace.artifacts / "junit.xml", redacted(junit(document, *unclear)))
    write_atomic(workspace.artifacts / "metrics.prom", redacted(openmetrics(document)))
    verdicts = [
        GateVerdict(gate=row.id, verdict=row.judgement.verdict, reason=row.judgement.reason, required=row.gate.required, waiver=row.waiver)
        for row in judged.gates
    ]
    return Report(path=settings.output, plots=plots, headline=view.headline, exit_code=judged.code, gates=verdicts)


def report_present(made: Report, workspace: Workspace) -> bool:
    """Tell whether the rendered files are still there."""
    return all((workspace.root / path).is_file() for path in (made.path, str(Path(made.path).with_name("report.json")), *made.plots))


def samples_of(memory: Outcome[Any], workspace: Workspace) -> list[Sample]:
    """Return the samples that the memory's record was made of, as far as they are still there."""
    if memory.data is None:
        return []
    try:
        return list(read_samples(workspace.root / memory.data.samples_file))
    except MeasureError:
        return []


def written(pictures: Mapping[str, str], workspace: Workspace) -> list[str]:
    """Write the pictures in place of all that were there; return their paths within the project."""
    folder = workspace.artifacts / PLOTS
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, svg in pictures.items():
        write_atomic(folder / name, svg)
    return [workspace.relative(folder / name) for name in pictures]
