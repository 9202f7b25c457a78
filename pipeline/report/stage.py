"""report: every figure beside its target, with verdict and source, in REPORT.md and report.html."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.client.answer import Answer
from pipeline.config.schema import IMAGES, Alternatives, Gates, ReportConfig
from pipeline.contexts import Invocation
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import Artifact, Outcome, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError
from pipeline.load.stamps import TIMES, raw_answer
from pipeline.measure.memory import Sample
from pipeline.measure.verdicts import Verdict
from pipeline.redact import redacted
from pipeline.report.sweep import Sweep
from pipeline.stages.measure_vram import Soak, read_samples
from pipeline.stages.serve import Server

BADGE = "verdict.svg"
SWEEP_PLOT = "sweep.svg"
PLOTS = ("memory.svg", "breakdown.svg", SWEEP_PLOT)
LATENCIES = ("ttft_ms", "ttft_warm_ms", "itl_ms", "e2e_ms")


class GateVerdict(BaseModel):
    """One gate's verdict, and the words for its waiver if it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    gate: str
    verdict: Verdict
    reason: str
    required: bool
    waiver: str
    cells: list[str]  # its row of the report, beneath the header


class Report(Artifact):
    """Where the report is, and what it says."""

    path: str
    plots: list[str]
    headline: str
    exit_code: int
    header: list[str]
    gates: list[GateVerdict]


def report(
    settings: ReportConfig,
    gates: Gates,
    alternatives: Alternatives,
    invocation: Invocation,
    outcomes: Outcomes,
    workspace: Workspace,
) -> Report:
    """Render REPORT.md from whatever is on record."""
    from pipeline.report.badge import badge
    from pipeline.report.charts import bench_charts, memory_charts, sweep_charts
    from pipeline.report.document import build_document, places, text_of
    from pipeline.report.exports import junit, openmetrics
    from pipeline.report.gates import judge_records
    from pipeline.report.html import render_html
    from pipeline.report.language import words
    from pipeline.report.listing import gate_cells, gate_header
    from pipeline.report.markdown import render
    from pipeline.report.plots import memory_pictures
    from pipeline.report.sweep_view import pareto, sweep_section
    from pipeline.report.view import badge_words, build_view, headline, marks_of

    judged = judge_records(gates, invocation.waivers, outcomes)
    server, sweep, soak = outcomes[Server], outcomes[Sweep], outcomes[Soak]
    path = workspace.root / settings.output
    use = judged.outcomes["measure-vram"]
    samples = samples_of(use, workspace)
    templates = workspace.root / "templates"
    t = words(settings.language, templates)
    drawn = memory_pictures(judged.outcomes, judged.gates, samples, t)
    pictures, shown_badge = [f"{IMAGES}/{name}" for name in drawn], f"{IMAGES}/{BADGE}"
    plot = pareto(sweep.data, t)
    drawn |= {SWEEP_PLOT: plot} if plot else {}
    written({BADGE: badge(badge_words(judged), judged.code), **drawn}, path.with_name(IMAGES))
    section = sweep_section(sweep, alternatives.root, f"{IMAGES}/{SWEEP_PLOT}" if plot else "", t, marks_of(judged.gates))
    cells = sweep.data.cells if sweep.data is not None else []
    view = build_view(
        settings,
        invocation.profile,
        invocation.assignments,
        invocation.fallbacks,
        alternatives.root,
        judged,
        pictures,
        t,
        soak,
        outcomes.edges,
        shown_badge,
        section,
        cells,
    )
    document = build_document(invocation.profile, judged, headline(judged), sweep.data)
    text = redacted(text_of(document))
    write_atomic(workspace.root / settings.document, text)
    write_atomic(path, render(templates, view, t, places(text)))
    told = {
        view.scenarios[2].title: bench_charts(judged.outcomes["bench"].data, latencies_of(judged.outcomes["bench"], workspace), t),
        view.scenarios[3].title: memory_charts(use.data, server.data.plan if server.data else None, samples, drawn, t),
        section.title: sweep_charts(plot, t),
    }
    write_atomic(workspace.root / settings.page, redacted(render_html(templates, view, told, t)))
    unclear = (settings.junit_inconclusive, settings.junit_not_measured)
    write_atomic(workspace.artifacts / "junit.xml", redacted(junit(document, *unclear)))
    write_atomic(workspace.artifacts / "metrics.prom", redacted(openmetrics(document)))
    verdicts = [
        GateVerdict(
            gate=row.id,
            verdict=row.judgement.verdict,
            reason=row.judgement.reason,
            required=row.gate.required,
            waiver=row.waiver,
            cells=gate_cells(row, t),
        )
        for row in sorted(judged.gates, key=lambda row: row.gate.table == "criteria")
    ]
    plots = [str(Path(settings.output).with_name(IMAGES) / name) for name in (BADGE, *drawn)]
    return Report(
        path=settings.output, plots=plots, headline=document.headline, exit_code=judged.code, header=gate_header(t), gates=verdicts
    )


def report_present(made: Report, workspace: Workspace) -> bool:
    """Tell whether the rendered files are still there."""
    beside = [str(Path(made.path).with_name(name)) for name in ("report.json", "report.html")]
    return all((workspace.root / path).is_file() for path in (made.path, *beside, *made.plots))


def samples_of(memory: Outcome[Any], workspace: Workspace) -> list[Sample]:
    """Return the samples that the memory's record was made of, as far as they are still there."""
    if memory.data is None:
        return []
    try:
        return list(read_samples(workspace.root / memory.data.samples_file))
    except MeasureError:
        return []


def latencies_of(bench: Outcome[Any], workspace: Workspace) -> dict[str, list[float]]:
    """Return the values (ms) behind bench's percentiles by the figure's name, as far as the raw stamps are still there."""
    phases: dict[str, list[Answer]] = {}
    try:
        lines = gzip.decompress((workspace.root / bench.data.raw).read_bytes()).splitlines() if bench.data else []
        for line in map(json.loads, lines):
            phases.setdefault(line["phase"], []).append(raw_answer(line))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return {}
    found = {name: TIMES[name] for name in LATENCIES}
    return {name: values(phases.get(phase, [])) for name, (phase, values) in found.items()}


def written(pictures: Mapping[str, str], folder: Path) -> None:
    """Write the pictures, and remove an old one of those that there are none of now."""
    for name in PLOTS:
        if name not in pictures:
            (folder / name).unlink(missing_ok=True)
    for name, svg in pictures.items():
        write_atomic(folder / name, svg)
