"""report: Render every figure beside its target, with verdict and source."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.gates import Gates
from pipeline.config.schema import IMAGES, Alternatives, ReportConfig
from pipeline.contexts import Invocation
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import Artifact, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.measure.verdicts import Verdict
from pipeline.redact import redacted
from pipeline.values import Frozen

if TYPE_CHECKING:
    from pipeline.report.gates import JudgedGate
    from pipeline.report.view import View
    from pipeline.report.words import Words


class GateVerdict(Frozen):
    """A gate's verdict, and the text on its waiver, if any."""

    gate: str
    verdict: Verdict
    reason: str
    required: bool
    waiver: str
    cells: list[str]  # its row of the report, beneath the header


class Report(Artifact):
    """The paths of the report, its headline, and its verdicts."""

    path: str
    plots: list[str]
    headline: str
    exit_code: int
    header: list[str]
    gates: list[GateVerdict]


def report(
    settings: ReportConfig, gates: Gates, alternatives: Alternatives, invocation: Invocation, outcomes: Outcomes, workspace: Workspace
) -> Report:
    """Render REPORT.md from whatever is on record."""
    from pipeline.report.formats.content import Content
    from pipeline.report.formats.document import build_document
    from pipeline.report.formats.list import FORMATS
    from pipeline.report.gates import judge_records
    from pipeline.report.inputs import Inputs
    from pipeline.report.listing import gate_header
    from pipeline.report.view import build_view
    from pipeline.report.words import words

    root, templates = workspace.root, workspace.root / "templates"
    report_words = words(settings.language, templates)
    judged = judge_records(gates, invocation.waivers, outcomes)
    view = build_view(Inputs(settings, alternatives.root, invocation, judged, root))
    document = build_document(invocation.profile, judged)
    plots = draw(view, (root / settings.output).with_name(IMAGES), report_words)
    for form in FORMATS:
        write_atomic(root / form.path(settings), redacted(form.text(Content(view, document, report_words, settings, templates))))
    return Report(
        path=settings.output,
        plots=[str(Path(settings.output).with_name(IMAGES) / name) for name in plots],
        headline=document.headline,
        exit_code=judged.code,
        header=gate_header(report_words),
        gates=[gate_verdict(row, report_words) for row in sorted(judged.gates, key=lambda row: row.gate.table == "criteria")],
    )


def draw(view: "View", folder: Path, words: "Words") -> list[str]:
    """Write the pictures, remove stale files of pictures without a drawing, and return the names of the files written."""
    files = []
    for picture in view.pictures:
        if picture.drawing is None:
            (folder / picture.file).unlink(missing_ok=True)
        else:
            write_atomic(folder / picture.file, picture.drawing(words))
            files.append(picture.file)
    return files


def gate_verdict(row: "JudgedGate", words: "Words") -> GateVerdict:
    """Return the verdict of a gate for the terminal."""
    from pipeline.report.listing import gate_cells

    judgement = row.judgement
    return GateVerdict(
        gate=row.id,
        verdict=judgement.verdict,
        reason=str(judgement.reason),
        required=row.gate.required,
        waiver=str(row.waiver),
        cells=gate_cells(row, words),
    )


def report_present(report: Report, workspace: Workspace) -> bool:
    """Tell whether the rendered files still exist."""
    siblings = [str(Path(report.path).with_name(name)) for name in ("report.json", "report.html")]
    return all((workspace.root / path).is_file() for path in (report.path, *siblings, *report.plots))
