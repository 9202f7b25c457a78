"""report: every figure beside its target, with verdict and source, in REPORT.md."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config import Alternatives, Gates, Given, Instead, Profile, ReportConfig, Waived
from pipeline.measure.verdicts import Verdict
from pipeline.record import Artifact, Outcome, write_atomic
from pipeline.server.stop import Closing
from pipeline.stages.bench import BenchResult
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Determinism, Remedied
from pipeline.stages.test_router import RouterResult
from pipeline.workspace import Workspace


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
    from pipeline.report.gates import judge_records
    from pipeline.report.markdown import render
    from pipeline.report.view import build_view

    records: list[Outcome[Any]] = [machine, installation, model, server, router, determinism, bench, memory, closing, remedied]
    judged = judge_records(gates, waived, records)
    view = build_view(settings, profile.root, given.root, instead.root, alternatives.root, judged)
    path = workspace.root / settings.output
    write_atomic(path, render(workspace.root / "templates", view))
    verdicts = [
        GateVerdict(gate=row.id, verdict=row.judgement.verdict, reason=row.judgement.reason, required=row.gate.required, waiver=row.waiver)
        for row in judged.gates
    ]
    return Report(path=settings.output, headline=view.headline, exit_code=judged.code, gates=verdicts)


def report_present(made: Report, workspace: Workspace) -> bool:
    """Tell whether the rendered file is still there."""
    return (workspace.root / made.path).is_file()
