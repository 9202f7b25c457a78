"""The whole chain with its report, the report from existing records, and the gates."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.commands.chain import why
from pipeline.commands.session import Options, Session, locked
from pipeline.dag import MEASURING
from pipeline.engine.stage import Result
from pipeline.redact import redacted
from pipeline.report.stage import Report
from pipeline.terminal import Output, OutputPart, TextTable


def run_all(root: Path, options: Options) -> Output:
    """Run the chain, stop the server it started and render the report; the report's exit code, or 2 after a failure."""
    session = Session(root, options)
    if options.why:
        return why(root, options)
    with locked(session.workspace):
        pipeline = session.pipeline
        names = [stage.name for stage in pipeline.chain(MEASURING)]
        measures = [name for name in names if name != "serve" and any(stage.name == "serve" for stage in pipeline.chain([name]))]
        try:
            results = pipeline.ensure(names, force=measures if options.force else ())
        finally:
            session.stop_own()
        smaller = session.with_smaller_profile()
        if smaller is None:
            return render_records(session, results)
    return run_all(root, smaller)


def render_records(session: Session, results: list[Result]) -> Output:
    """Render the report and keep the run; the report's exit code, or 2 after a failure."""
    results = results + session.pipeline.ensure(["report"], present=True, alone=True)
    report = session.pipeline.outcome(Report).data
    failed = any(result.state in ("failed", "blocked") for result in results)
    code = 2 if failed or report is None else int(report.exit_code)
    folder = keep_run(session) if report is not None else None
    more = [*([f"kept in {folder}"] if folder else []), *(summarise(session) if report is not None else [])]
    return verdicts(session, report, code, more, {"stages": [asdict(result) for result in results], "kept": folder})


def render(root: Path, options: Options, only: bool) -> Output:
    """Bring everything up to date and render the report; with `only`, render the existing records."""
    if not only or options.why:
        return run_all(root, options)
    session = Session(root, options)
    with locked(session.workspace):
        results = session.pipeline.ensure(["report"], force=["report"], alone=True)
        report = session.pipeline.outcome(Report).data
        more = summarise(session) if report is not None else []
        code = 2 if report is None else int(report.exit_code)
        return verdicts(session, report, code, more, {"stages": [asdict(result) for result in results]})


def verdicts(session: Session, report: Report | None, code: int, more: Sequence[str], facts: dict[str, object]) -> Output:
    """Return the report's verdicts, headline and path, then `more`; `facts` are added to the data."""
    parts: list[OutputPart] = []
    if report is not None:
        parts += [TextTable(report.header, [gate.cells for gate in report.gates]), report.headline, report.path]
        facts = report.model_dump(mode="json", include={"headline", "path", "gates"}) | facts
    return Output(code, [*parts, *more, session.profile_words()], {"exit_code": code, "profile": session.profile_data(), **facts})


def keep_run(session: Session) -> str | None:
    """Keep this run if anything in it is new; return its folder."""
    from pipeline.runs import kept as runs

    settings, workspace = session.config, session.workspace
    folder = runs.keep(workspace.root / settings.report.document, workspace.root / settings.report.output, settings.runs, workspace)
    return workspace.relative(folder) if folder is not None else None


def summarise(session: Session) -> list[str]:
    """Append the verdict to the job summary of GitHub Actions; return why that is impossible, which changes no verdict."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return []
    from pipeline.report.formats.document import read_document
    from pipeline.report.formats.summary import SUMMARY_BYTES, job_summary

    where = session.workspace.root / session.config.report.document
    document = read_document(where.read_bytes(), session.workspace.relative(where))
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            text = redacted(job_summary(document, SUMMARY_BYTES - file.tell()))
            file.write(text)
    except OSError as error:
        return [f"no job summary: GITHUB_STEP_SUMMARY names a file that cannot be written ({error.strerror})"]
    return [] if text else ["no job summary: what this step has written to it leaves no room (GitHub takes 1 MiB)"]


def gates(root: Path, options: Options) -> Output:
    """Judge each gate as the report does and show where its values are defined, without running anything; the report's exit code."""
    from pipeline.report.gates import judge_records
    from pipeline.report.headline import headline
    from pipeline.report.listing import data, lines

    session = Session(root, options, silent=True)
    profile, _ = session.profile()
    records = session.pipeline.outcomes(session.pipeline.stage("report"))
    judged = judge_records(session.config.gates, session.invocation().waivers, records)
    places = {row.id: [session.layers.places((section, row.id), profile) for section in ("gates", "waivers")] for row in judged.gates}
    blocks = ["\n".join(lines(row, records, *places[row.id])) for row in judged.gates]
    facts = {"exit_code": judged.code, "profile": session.profile_data(), "headline": headline(judged)}
    rows = [data(row, *places[row.id]) for row in judged.gates]
    return Output(judged.code, [*blocks, headline(judged), session.profile_words()], {**facts, "gates": rows})
