"""report: every figure beside its target, with verdict and source, in REPORT.md."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config import Alternatives, Gates, Given, Instead, Profile, ReportConfig
from pipeline.errors import MeaninglessError
from pipeline.measure.verdicts import Verdict, exit_code
from pipeline.record import BLOCKED, Artifact, Failure, Outcome, write_atomic
from pipeline.server.stop import Closing
from pipeline.stages.bench import BenchResult
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.measure_vram import MemoryUse
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Determinism
from pipeline.stages.test_router import RouterResult
from pipeline.workspace import Workspace


class GateVerdict(BaseModel):
    """One gate's verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    gate: str
    verdict: Verdict
    reason: str
    required: bool


class Report(Artifact):
    """Where the report is, and what it says."""

    path: str
    headline: str
    exit_code: int
    gates: list[GateVerdict]


def report(
    settings: ReportConfig,
    gates: Gates,
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
    workspace: Workspace,
) -> Report:
    """Render REPORT.md from whatever is on record."""
    from pipeline.report.gates import judge_all
    from pipeline.report.markdown import render
    from pipeline.report.view import build_view

    if server.data is not None and server.data.attached:  # what was installed or stopped here is another server's
        installation, model, closing = (Outcome(outcome.stage, None, None) for outcome in (installation, model, closing))
    recorded: list[Outcome[Any]] = [router, determinism, bench, memory]
    measured = {outcome.stage: of_this_server(outcome, server) for outcome in recorded}
    judged = judge_all(gates.root, measured)
    others: list[Outcome[Any]] = [machine, installation, model, server, closing]
    outcomes = {outcome.stage: outcome for outcome in others} | measured
    failed = any(outcome.failure and outcome.failure.kind != MeaninglessError.kind for outcome in outcomes.values())
    code = 2 if failed else exit_code((row.judgement, row.gate.required) for row in judged)
    view = build_view(settings, profile.root, given.root, instead.root, alternatives.root, judged, code, outcomes)
    path = workspace.root / settings.output
    write_atomic(path, render(workspace.root / "templates", view))
    verdicts = [
        GateVerdict(gate=row.id, verdict=row.judgement.verdict, reason=row.judgement.reason, required=row.gate.required) for row in judged
    ]
    return Report(path=settings.output, headline=view.headline, exit_code=code, gates=verdicts)


def of_this_server(outcome: Outcome[Any], server: Outcome[Server]) -> Outcome[Any]:
    """Return the outcome, or that there is none when its figures come from another server than the one on record."""
    if outcome.data is None or outcome.envelope is None:
        return outcome
    if server.data is not None and outcome.envelope.because.get("serve") == server.data.identity():
        return outcome
    return Outcome(outcome.stage, None, None, Failure(kind=BLOCKED, message="was measured on another server than the one on record"))


def report_present(made: Report, workspace: Workspace) -> bool:
    """Tell whether the rendered file is still there."""
    return (workspace.root / made.path).is_file()
