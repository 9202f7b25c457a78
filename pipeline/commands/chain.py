"""One stage with the stages it needs, and the commands that show what is on record: why, status, graph."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel

from pipeline.commands.session import Options, Session, locked
from pipeline.commands.words import machine_lines, server_lines
from pipeline.dag import NOTES, STAGES
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.workspace import Workspace
from pipeline.server import state
from pipeline.server.keys import control_of
from pipeline.server.readiness import gone
from pipeline.server.restarts import read_crashes
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.terminal import Output, TextTable


def run_stage(root: Path, options: Options, name: str, wait: bool = False) -> Output:
    """Run one stage and the stages it needs; stop a server that this command started, unless the stage is serve."""
    session = Session(root, options)
    if options.why:
        return why(root, options, [name])
    pipeline, workspace = session.pipeline, session.workspace
    with locked(workspace, wait):
        try:
            results = pipeline.ensure([name], force=[name] if options.force else (), present=True)
        except BaseException:
            session.stop_own()
            raise
        code = 2 if any(result.state in ("failed", "blocked") for result in results if result.stage == name) else 0
        lines: list[str] = []
        outcome = pipeline.outcome(pipeline.stage(name).makes)
        if isinstance(outcome.data, Machine):
            lines = machine_lines(outcome.data)
        if isinstance(outcome.data, Server) and code == 0:
            launch = state.current(workspace, outcome.data.handle.launch_id)
            if launch is not None:
                state.write(workspace, launch.model_copy(update={"stays": True}))
            lines = server_lines(outcome.data)
        session.stop_own()
        smaller = session.with_smaller_profile() if code else None
    if smaller is not None:
        return run_stage(root, smaller, name, wait)
    facts = {"stages": [asdict(result) for result in results], "data": to_json(outcome.data), "failure": to_json(outcome.failure)}
    return Output(code, [*lines, session.profile_words()], {"exit_code": code, "profile": session.profile_data(), **facts})


def to_json(model: BaseModel | None) -> dict[str, object] | None:
    """Return the model as JSON-like data."""
    return model.model_dump(mode="json") if model is not None else None


def why(root: Path, options: Options, names: Sequence[str] = ()) -> Output:
    """Explain for each stage whether it would run, without running it."""
    session = Session(root, options, silent=True)
    session.pipeline.ensure(["check-gpu"])
    return stages_output(session, names or [stage.name for stage in session.pipeline.stages], [], {})


def status(root: Path, options: Options) -> Output:
    """Show the state of the server and of each stage."""
    session = Session(root, options, silent=True)
    lines, server = server_state(session)
    crashes = read_crashes(session.workspace)
    if crashes:
        last = crashes[-1]
        lines.append(f"crashes: {len(crashes)} on record under `serve --watch`, the last {last.at:%Y-%m-%d %H:%M:%S} UTC: {last.cause}")
    facts = {"server": server, "crashes": [crash.model_dump(mode="json") for crash in crashes]}
    return stages_output(session, [stage.name for stage in session.pipeline.stages], lines, facts)


def stages_output(session: Session, names: Sequence[str], lines: Sequence[str], facts: Mapping[str, object]) -> Output:
    """Return `lines`, then a line per stage: unchanged, or why it would run."""
    pipeline = session.pipeline
    will_run: set[str] = set()
    stages: list[dict[str, object]] = []
    rows: list[tuple[str, str]] = []
    for stage in pipeline.chain(names):
        reason = pipeline.why(stage)
        waits = [maker.name for maker in pipeline.upstream(stage) if maker.name in will_run]
        if not stage.observes and (reason or waits):
            will_run.add(stage.name)
        if stage.name in names:
            reason = reason or (f"after {waits[0]}, if its outcome changes" if waits else "unchanged")
            stages.append({"stage": stage.name, "runs": stage.observes or stage.name in will_run, "reason": reason})
            rows.append((f"  {stage.name}", reason))
    return Output(0, [*lines, TextTable((), rows), session.profile_words()], {**facts, "stages": stages, "profile": session.profile_data()})


def server_state(session: Session) -> tuple[list[str], dict[str, object]]:
    """Return the server's state as lines and as data."""
    workspace, url, launch = session.workspace, session.config.attach.url, state.read(session.workspace)
    if url:
        return [f"server: attached to {url} (`./inv serve` asks it)"], {"state": "attached", "base_url": url}
    if launch is None:
        return ["server: not running"], {"state": "not running"}
    if not state.is_running(launch):
        processes_left, cause = len(state.members(launch)), gone(launch, workspace)
        line = f"{cause.message} (pid {launch.pid}, {processes_left} processes left; `./inv stop` cleans up)\n  → {cause.hint}"
        return [line], {"state": "died", "pid": launch.pid, "cause": cause.message, "processes_left": processes_left}
    answers = control_of(launch, workspace).answers()
    answer_text = "answers" if answers else "does not answer (starting?)"
    line = f"server: {launch.base_url}/v1  model {launch.model}  pid {launch.pid}  {answer_text}  log {launch.log}"
    facts = launch.model_dump(mode="json", include={"model", "pid", "log"})
    return [line], {"state": "running", "answers": answers, "base_url": launch.base_url, **facts}


def graph(root: Path) -> Output:
    """Return the stages and their edges as a mermaid flowchart."""
    pipeline = Pipeline(STAGES, Workspace(root), lambda kind: kind(), NOTES)
    lines = ["flowchart LR"]
    for stage in pipeline.stages:
        for maker in pipeline.upstream(stage):
            optional = maker.makes not in stage.needs.values()
            lines.append(f"    {maker.name} {'-.->' if optional else '-->'} {stage.name}")
    return Output(0, lines, None, verbatim=True)
