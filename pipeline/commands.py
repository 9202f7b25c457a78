"""What the tasks do: each takes the project's folder and the options, and returns its answer."""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.config.layers import load_layers
from pipeline.config.schema import Config
from pipeline.contexts import visible_devices
from pipeline.dag import MEASURING, NOTES, STAGES
from pipeline.engine.pipeline import Pipeline, Result
from pipeline.engine.record import Store, now, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import BundleError, BusyError, ConfigError, PipelineError, PublishError, ServerError
from pipeline.redact import redacted
from pipeline.report.stage import Report
from pipeline.server import state
from pipeline.server.keys import OTHERS, control_of, key_file, key_of
from pipeline.server.readiness import DEATH_S, gone
from pipeline.server.restarts import Crash, note, noted, pause_s, recent
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import Closing, stop_server
from pipeline.server.unit import unit
from pipeline.server.watch import Watch
from pipeline.session import CONFIG_FILE, Options, Session, locked, options
from pipeline.stages.check_gpu import Machine, check_gpu
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server, joined
from pipeline.stages.test_determinism import REMEDY_NOTE
from pipeline.terminal import MARKS, Answer, Part, Silent, Table, give, show, write

if TYPE_CHECKING:
    from pipeline.experiments.remedy import Bed

__all__ = ["give", "options"]  # what tasks.py takes from here besides the commands
COMPARE_PLOT = "compare.svg"
WATCH_S = 0.5
NOTHING = Answer(2, [], {"exit_code": 2})  # what a stage that failed has told is all


def bundle(root: Path, options: Options, python: str | None, platform: str | None, output: str, part_mib: str | None) -> Answer:
    """Make a folder with all that a machine without a network needs to run a profile."""
    from pipeline.bundle import make, wheels
    from pipeline.gpu.compatibility import CPU_SET, ON_GPU, SETS, set_named
    from pipeline.planning import on_processor

    session = Session(root, options)
    name = session.layers.profile[0]
    if name == "auto":
        raise BundleError("which profile the other machine takes is not known here", "name it, as in `./inv bundle --profile cpu`")
    config = session.layers.config(name)
    if config.install.cpu_wheel or config.install.python:
        raise BundleError("install.cpu_wheel and install.python name what a bundle cannot hold", "leave both empty for a bundle")
    chosen = CPU_SET if on_processor(config) else ON_GPU[0]
    if config.install.set != "auto":
        named = set_named(config.install.set)
        if named is None:
            raise BundleError(f"install.set: no set {config.install.set!r}", f"sets: {', '.join(entry.name for entry in SETS)}")
        chosen = named
    if part_mib is not None and not (part_mib.isdecimal() and int(part_mib) > 0):
        raise BundleError(f"--part-mib: {part_mib!r} is no number of MiB", "as in --part-mib 4000")
    target = wheels.Target(wheels.target_python(python, chosen), wheels.target_platform(platform, chosen))
    order = make.Order(name, config.model, chosen, target, int(part_mib) if part_mib else None)
    folder = root / output
    with locked(session.workspace):
        made = make.make(order, folder, session.workspace)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parts = f" in {made.parts} parts" if made.parts else ""
    held_words = f"{held / 2**20:.0f} MiB{parts}: profile {made.profile}, {made.vllm}, {made.wheels} wheels, model {made.model.origin}"
    return Answer(0, [f"{folder}: {held_words}", make.aim(made)], None)


def say(text: str) -> None:
    """Print a line of a command that goes on."""
    show([text])


def run_all(root: Path, options: Options) -> Answer:
    """Run the chain, stop what it started, render the report; the report's exit code, or 2 after a failure."""
    session = Session(root, options)
    if options.why:
        return why(root, options)
    with locked(session.workspace):
        pipeline = session.pipeline
        names = [stage.name for stage in pipeline.chain(MEASURING)]
        forced = [name for name in names if name != "serve" and any(s.name == "serve" for s in pipeline.chain([name]))]
        try:
            results = pipeline.ensure(names, force=forced if options.force else ())
        finally:
            session.stop_own()
        smaller = session.with_smaller_profile()
        if smaller is None:
            return reported(session, results)
    return run_all(root, smaller)


def reported(session: Session, results: list[Result]) -> Answer:
    """Render the report; its exit code, or 2 after a failure."""
    results = results + session.pipeline.ensure(["report"], present=True, alone=True)
    made = session.pipeline.outcome(Report).data
    failed = any(result.state in ("failed", "blocked") for result in results)
    code = 2 if failed or made is None else int(made.exit_code)
    kept = keep_run(session) if made is not None else None
    more = [*([f"kept in {kept}"] if kept else []), *(summarise(session) if made is not None else [])]
    return verdicts(session, made, code, more, stages=[asdict(result) for result in results], kept=kept)


def verdicts(session: Session, made: Report | None, code: int, more: Sequence[str] = (), **data: Any) -> Answer:
    """Return the report's table of verdicts, its headline and where it is, with `more` for a person and `data` for a program."""
    shown: list[Part] = []
    if made is not None:
        shown += [Table(made.header, [gate.cells for gate in made.gates]), made.headline, made.path]
    facts = made.model_dump(mode="json", include={"headline", "path", "gates"}) if made is not None else {}
    return Answer(code, [*shown, *more, session.profile_words()], {"exit_code": code, "profile": session.profile_data(), **facts, **data})


def keep_run(session: Session) -> str | None:
    """Keep what this run left, unless nothing in it is new; return where."""
    from pipeline.runs import kept as runs

    settings, workspace = session.config, session.workspace
    kept = runs.keep(workspace.root / settings.report.document, workspace.root / settings.report.output, settings.runs, workspace)
    return workspace.relative(kept) if kept is not None else None


def summarise(session: Session) -> list[str]:
    """Append the verdict to the job summary, where GitHub Actions has one; return why there is none, which changes no verdict."""
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


def report(root: Path, options: Options, only: bool) -> Answer:
    """Bring everything up to date and render, or with `only` render what is on record."""
    if not only or options.why:
        return run_all(root, options)
    session = Session(root, options)
    with locked(session.workspace):
        results = session.pipeline.ensure(["report"], force=["report"], alone=True)
        made = session.pipeline.outcome(Report).data
        more = summarise(session) if made is not None else []
        return verdicts(session, made, 2 if made is None else int(made.exit_code), more, stages=[asdict(result) for result in results])


def gates(root: Path, options: Options) -> Answer:
    """Judge each gate as the report does, and tell where its values stand; run nothing; the report's exit code."""
    from pipeline.report.gates import judge_records
    from pipeline.report.headline import headline
    from pipeline.report.listing import data, lines

    session = Session(root, options, silent=True)
    profile, _ = session.profile()
    records = session.pipeline.outcomes(session.pipeline.stage("report"))
    judged = judge_records(session.config.gates, session.invocation().waivers, records)
    places = {row.id: [session.layers.places((section, row.id), profile) for section in ("gates", "waivers")] for row in judged.gates}
    shown = ["\n".join(lines(row, records, *places[row.id])) for row in judged.gates]
    facts = {"exit_code": judged.code, "profile": session.profile_data(), "headline": headline(judged)}
    rows = [data(row, *places[row.id]) for row in judged.gates]
    return Answer(judged.code, [*shown, headline(judged), session.profile_words()], {**facts, "gates": rows})


def run_stage(root: Path, name: str, options: Options, wait: bool = False) -> Answer:
    """Run one stage and what it needs; stop a server that this started, unless the stage is serve itself."""
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
        shown: list[str] = []
        outcome = pipeline.outcome(pipeline.stage(name).makes)
        if isinstance(outcome.data, Machine):
            shown = machine_lines(outcome.data)
        if isinstance(outcome.data, Server) and code == 0:
            launch = state.current(workspace, outcome.data.handle.launch_id)
            if launch is not None:
                state.write(workspace, launch.model_copy(update={"stays": True}))
            shown = server_lines(outcome.data)
        session.stop_own()
        smaller = session.with_smaller_profile() if code else None
    if smaller is not None:
        return run_stage(root, name, smaller, wait)
    found, failure = (part.model_dump(mode="json") if part is not None else None for part in (outcome.data, outcome.failure))
    ended = {"stages": [asdict(result) for result in results], "data": found, "failure": failure}
    return Answer(code, [*shown, session.profile_words()], {"exit_code": code, "profile": session.profile_data(), **ended})


def restart(root: Path, options: Options) -> Answer:
    """Stop our server, if there is one, and start it anew."""
    refuse_attached(root, options, "restart")
    return run_stage(root, "serve", replace(options, force=True))


def refuse_attached(root: Path, options: Options, what: str) -> None:
    """Raise ServerError when the server is one that someone else runs."""
    url = Session(root, options, silent=True).config.attach.url
    if url:
        raise ServerError(f"the server at {url} is not ours to {what}", "unset attach.url for a server of our own")


def serve(root: Path, options: Options, foreground: bool, watch: bool) -> Answer:
    """Bring the server up and leave it running; in the foreground follow its log and stop it on Ctrl-C, on watch restart it."""
    if foreground or watch:
        if options.json:
            raise ConfigError("--json is for a command that ends", "leave out --foreground and --watch, or --json")
        refuse_attached(root, options, "watch")
    if watch and not options.why:
        return keep_running(root, options)
    made = run_stage(root, "serve", options)
    if made.code or options.why or not foreground:
        return made
    show(made.shown)
    return attend(root)


def join(root: Path, options: Options) -> Answer:
    """Start this node's share of a model over several hosts, and stay until the server ends or Ctrl-C."""
    session = Session(root, options)
    refuse_attached(root, options, "join")
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        if any(result.state in ("failed", "blocked") for result in pipeline.ensure(["install", "download-model"])):
            return NOTHING
        made: list[Any] = [pipeline.outcome(kind).data for kind in (Machine, Installation, Model)]
        machine, installation, model = made
        launch = joined(session.config.serve, machine, installation, model, workspace)
        state.write(workspace, launch.model_copy(update={"stays": True}))
    return attend(root)


def keep_running(root: Path, options: Options) -> Answer:
    """Start the server, and again whenever it crashes, until Ctrl-C, another command's `stop`, or too many crashes (ServerError)."""
    session = Session(root, options)
    workspace = session.workspace
    try:
        made = run_stage(root, "serve", options)
        if made.code:
            return made
        show(made.shown)
        crashes: list[datetime] = []
        while (launch := state.read(workspace)) is not None:
            await_end(launch, workspace)
            cause = cleared(launch, workspace)
            while cause:
                crashes = noted_crash(launch, cause, crashes, session)
                time.sleep(pause_s(len(crashes)))
                again = run_stage(root, "serve", options, wait=True)
                show(again.shown)
                failure = session.pipeline.outcome(Server).failure
                cause = failure.message if again.code and failure else ""
    except KeyboardInterrupt:
        watched = state.read(workspace)
        if watched is not None and watched.stays:  # any other belongs to a command at work
            say(stopped_words(watched, stop_server(watched, workspace)))
        raise
    return Answer(0, ["the server was stopped by another command"], None)


def noted_crash(launch: Launch, cause: str, crashes: list[datetime], session: Session) -> list[datetime]:
    """Record a crash; return the crashes that count now, or raise ServerError when they are too many."""
    settings, at = session.config.watch, now()
    counting = [earlier for earlier in [*crashes, at] if recent(earlier, at, settings)]
    crash = Crash(at=at, launch_id=launch.id, cause=cause, restart=len(counting) <= settings.max_restarts)
    note(session.workspace, crash)
    if not crash.restart:
        many = f"{len(counting)} crashes within {settings.window_s:g} s, so a restart does not help"
        raise ServerError(f"{cause}; {many}", "see `./inv logs`")
    say(f"{at:%Y-%m-%d %H:%M:%S} UTC  {cause}; starting again in {pause_s(len(counting)):g} s")
    return counting


def await_end(launch: Launch, workspace: Workspace) -> None:
    """Wait until the launch's server, its engine or a worker is dead."""
    watch = Watch(launch, control_of(launch, workspace))
    while watch.alive():
        time.sleep(WATCH_S)


def cleared(launch: Launch, workspace: Workspace) -> str:
    """Clean up after a server that ended; return why it died, empty when another command stopped or replaced it."""
    with locked(workspace, wait=True):
        if state.current(workspace, launch.id) is None:
            return ""
        state.dies_within(launch.pid, launch.created, DEATH_S)  # so that its last words are in the log
        cause = gone(launch, workspace).message
        stop_server(launch, workspace)
        return cause


def systemd_unit(root: Path, options: Options) -> Answer:
    """Return a systemd unit that keeps the server running with these options."""
    session = Session(root, options, silent=True)
    words = [*(["--profile", options.profile] if options.profile else []), *(word for text in options.sets for word in ("--set", text))]
    return Answer(0, [unit(root, words, session.config.serve)], None, verbatim=True)


def attend(root: Path) -> Answer:
    """Follow the server's log; Ctrl-C stops the server, and one that dies is cleaned up and raised as ServerError.

    A server that another command stops or restarts is that command's business.
    """
    workspace = Workspace(root)
    launch = state.read(workspace)
    if launch is None:
        raise ServerError("the server is gone already", "see `./inv logs`")
    try:
        logs(root, follow=True)
    except KeyboardInterrupt:
        if state.current(workspace, launch.id) is not None:
            say(stopped_words(launch, stop_server(launch, workspace)))
        raise
    try:
        with locked(workspace):
            if state.current(workspace, launch.id) is not None:
                trouble = gone(launch, workspace)
                stop_server(launch, workspace)
                raise trouble
    except BusyError as error:
        return Answer(0, [error.message], None)
    return Answer(0, [], None)


def machine_lines(machine: Machine) -> list[str]:
    """Return what check-gpu saw."""
    host, found = machine.host, []
    found.append(f"processor  {host.cpu}, {host.cores} cores ({' '.join(host.vector) or 'no wide vectors'}), {host.memory_mib} MiB")
    if machine.driver is not None:
        found.append(f"driver     {machine.driver.version}, CUDA {machine.driver.cuda}")
    for gpu in machine.gpus:
        memory = f"{gpu.free_mib:.0f} of {gpu.total_mib:.0f} MiB free"
        if gpu.reserved_mib is not None:
            memory += f" ({gpu.reserved_mib:.0f} kept by the driver)"
        found.append(f"GPU {gpu.index}      {gpu.name}: {memory}, compute capability {gpu.compute_capability}")
        for process in gpu.processes:
            used = "memory not told" if process.used_mib is None else f"{process.used_mib:.0f} MiB"
            found.append(f"  used by  pid {process.pid} ({process.name}): {used}")
    for caution in machine.cautions:
        found.append(f"caution    {caution.fact}\n  → {caution.fix}")
    if machine.reason:
        found.append(f"no usable GPU: {machine.reason}\n  → {machine.fix}")
    return found


def server_lines(server: Server) -> list[str]:
    """Return how to reach, watch and stop the server."""
    handle = server.handle
    reached = [f"base URL  {handle.base_url}/v1", f"model     {server.model}"]
    if server.attached:
        return [*reached, "attached: neither started nor stopped by us"]
    return [*reached, f"pid       {handle.pid}", f"log       {handle.log}", "stop      ./inv stop"]


def stop(root: Path) -> Answer:
    """Stop our server, or say that there is none."""
    workspace = Workspace(root)
    with locked(workspace):
        launch = state.read(workspace)
        if launch is None:
            return Answer(0, ["no server of ours is running"], {"exit_code": 0, "stopped": None})
        died = [] if state.is_running(launch) else [gone(launch, workspace).message]
        closing = stop_server(launch, workspace)
        code = 0 if closing.port_free else 2
        data = {"exit_code": code, "stopped": closing.model_dump(mode="json"), "died": died[0] if died else None}
        return Answer(code, [*died, stopped_words(launch, closing)], data)


def stopped_words(launch: Launch, closing: Closing) -> str:
    """Return how a stop went: what had to be killed, the port, and the GPU memory left behind."""
    killed = f", killed {', '.join(closing.killed)}" if closing.killed else ""
    port = "free" if closing.port_free else "still taken"
    residual, memory = closing.residual(), ""
    if residual is not None:
        left = "NOT_MEASURED" if residual.value is None else f"{residual.value:.0f} MiB"
        memory = f"; VRAM residual {left}" + (f" ({residual.reason})" if residual.reason else "")
    what = f"stopped pid {launch.pid} in {closing.took_s:.1f} s" if closing.was_running else f"nothing was left of pid {launch.pid}"
    return f"{what}{killed}; port {launch.port} is {port}{memory}"


def bed_of(session: Session) -> "Bed | None":
    """Return what servers are started with, installed and downloaded where it was not; None where that failed."""
    from pipeline.experiments.remedy import Bed

    pipeline = session.pipeline
    pipeline.ensure(["install", "download-model"], present=True)
    machine, installation, model = (pipeline.outcome(kind).data for kind in (Machine, Installation, Model))
    if machine is None or installation is None or model is None:
        return None
    return Bed(session.config, machine, installation, model, session.workspace)


def determinism_remedy(root: Path, options: Options) -> Answer:
    """Measure a server without and one with the remedy for unequal answers; 0 when all agree with it, 1 not, 2 not measured."""
    from pipeline.experiments import remedy as remedies

    refuse_attached(root, options, "start with another environment")
    session = Session(root, options)
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        bed = bed_of(session)
        if bed is None:
            return NOTHING
        remedy = remedies.remedy_of(bed, os.environ)
        with remedies.set_aside(bed.installation.vllm, workspace), workspace.screen.running("determinism-remedy", ""):
            started, clock = now(), time.perf_counter()
            proof = remedies.proven(remedy, bed)
            pipeline.store.write(REMEDY_NOTE, bed.because(), started, time.perf_counter() - clock, proof)
        code = remedies.verdict(proof)
        data = {"exit_code": code, "profile": session.profile_data(), "data": proof.model_dump(mode="json")}
        return Answer(code, [*remedies.lines(proof), session.profile_words()], data)


def soak(root: Path, options: Options, hours: str) -> Answer:
    """Put load on the server for so many hours in all; 0 when memory is stable, 1 when not shown to be, 2 when not measured."""
    from pipeline.experiments import soak as soaking

    total_h = soaking.parsed(hours)
    if options.why:
        return why(root, options, ["serve"])
    refuse_attached(root, options, "measure the memory of")
    session = Session(root, options)
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        try:
            pipeline.ensure(["serve"], present=True)
            machine, server = (pipeline.outcome(kind).data for kind in (Machine, Server))
            if machine is None or server is None:
                return NOTHING
            with workspace.screen.running("soak", ""):
                made = soaking.soak(session.config.vram, total_h, options.force, machine, server, workspace)
        except KeyboardInterrupt:
            say_kept(session)
            raise
        except BaseException:
            session.stop_own()
            raise
        session.stop_own()
        code = soaking.code(made)
        data = {"exit_code": code, "profile": session.profile_data(), "data": made.model_dump(mode="json")}
        return Answer(code, [*soaking.lines(made), session.profile_words()], data)


def say_kept(session: Session) -> None:
    """Print that the server of an interrupted soak runs on, where it does."""
    launch = state.read(session.workspace)
    if launch is not None and state.is_running(launch):
        say(f"the server (pid {launch.pid}) runs on, so that the same command can go on with it; `./inv stop` ends it")


def history(root: Path) -> Answer:
    """List the runs that are kept, newest first."""
    from pipeline.runs import history as listing

    workspace = Workspace(root, Silent())
    return Answer(0, listing.lines(workspace), listing.data(workspace))


def compare(root: Path, first: str, second: str, anyway: bool) -> Answer:
    """Compare run `second` with run `first`; 1 when a figure is worse, 2 when none can be compared, else 0."""
    from pipeline.experiments import noise
    from pipeline.runs import compare as comparing
    from pipeline.runs import kept as runs

    workspace = Workspace(root, Silent())
    pair = runs.find(first, workspace), runs.find(second, workspace)
    found = Store(workspace.artifacts).outcome(noise.NOTE, noise.RunNoise).data
    measured = found if found is not None and comparing.fits(found, pair) else None
    made = comparing.compare(*pair, measured, anyway)
    picture = workspace.artifacts / COMPARE_PLOT
    drawn = redacted(comparing.plot(made))
    trouble = shown(drawn, picture)
    where = workspace.relative(picture) if drawn and not trouble else None
    plot = f"no plot: {workspace.relative(picture)} cannot be written ({trouble})" if trouble else f"plot: {where}" if where else ""
    return Answer(made.exit_code, [*comparing.lines(made, measured), *([plot] if plot else [])], comparing.data(made, where))


def shown(svg: str, path: Path) -> str:
    """Write the picture, or remove an older one where there is none; return why that cannot be, which changes no verdict."""
    try:
        if svg:
            write_atomic(path, svg)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return str(error.strerror)
    return ""


def calibrate_noise(root: Path, options: Options, starts: str) -> Answer:
    """Start the server so often, measure each time, and keep the spread; 0, or 2 when something was missing."""
    from pipeline.experiments import noise
    from pipeline.experiments import remedy as remedies

    number = noise.parsed(starts)
    refuse_attached(root, options, "start again and again")
    session = Session(root, options)
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        bed = bed_of(session)
        if bed is None:
            return NOTHING
        with remedies.set_aside(bed.installation.vllm, workspace), workspace.screen.running("calibrate-noise", ""):
            started, clock = now(), time.perf_counter()
            made = noise.calibrated(bed, number)
            pipeline.store.write(noise.NOTE, bed.because(), started, time.perf_counter() - clock, made)
        data = {"exit_code": 0, "profile": session.profile_data(), "data": made.model_dump(mode="json")}
        return Answer(0, [*noise.lines(made), session.profile_words()], data)


def sweep(root: Path, options: Options, axes: str | None, dry_run: bool, ray_address: str | None) -> Answer:
    """Run the pipeline for each cell of a matrix; 0 when a cell passes every gate, 1 when none does, 2 when none was measured."""
    from pipeline.sweep import run as sweeping
    from pipeline.sweep.rendering import rendered

    layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
    workspace = Workspace(root, Silent())
    base = layers.config(None)
    machine = check_gpu(base.gpu.model_copy(update={"required": False}), visible_devices(base.serve))
    asked = sweeping.Asked(axes, ray_address, dry_run, options.force, options.sets)

    def progress(text: str) -> None:
        if not options.quiet or text.startswith(MARKS["failed"]):
            write(sys.stderr, text)

    made = sweeping.Sweeping(layers, machine, asked, workspace, progress)
    if dry_run:
        return made.dry_run()
    with locked(workspace):
        launch = state.read(workspace)
        if launch is not None and state.is_running(launch):
            raise BusyError(f"our server runs (pid {launch.pid}) and would disturb the cells", "stop it first: `./inv stop`")
        answer, session = made.run(), Session(root, options)
        return replace(answer, shown=[*answer.shown, rendered(session.pipeline, session.config.report.output)])


def doctor(root: Path, options: Options) -> Answer:
    """Tell what can be checked without starting anything; 1 when something must be mended first."""
    from pipeline import doctor as checks

    workspace, asked = Workspace(root, Silent()), "auto"
    first = []
    try:
        layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
        asked, origin = layers.profile
        visible = visible_devices(layers.config(None if asked == "auto" else asked).serve)
        machine = check_gpu(layers.config(None).gpu.model_copy(update={"required": False}), visible)
        config = layers.config(machine.profile if asked == "auto" else asked)
        seen = f"profile {config.profile.root} ({machine.profile_reason if asked == 'auto' else origin})"
        first.append(checks.Finding("OK", "configuration", seen))
    except ConfigError as error:
        first.append(checks.Finding("FAIL", "configuration", error.message, error.hint))
        config = Config()
        machine = check_gpu(config.gpu, visible_devices(config.serve))
    try:
        with locked(workspace):
            pass
    except BusyError as error:
        first.append(checks.Finding("WARN", "lock", error.message, error.hint))
    findings = list(chain(first, checks.examine(config, machine, asked != "auto", workspace)))
    code = 1 if any(finding.level == "FAIL" for finding in findings) else 0
    return Answer(code, [checks.words(finding) for finding in findings], {"exit_code": code, "findings": [asdict(one) for one in findings]})


def plan(root: Path, options: Options, total_mib: str | None) -> Answer:
    """Tell what fits the device before anything is downloaded; 0 when the profile in force does, 1 not, 2 unknown."""
    from pipeline import planning

    size = planning.total(total_mib)
    session = Session(root, options, silent=True)
    machine = check_gpu(session.layers.config(None).gpu.model_copy(update={"required": False}), session.visible())
    launch = state.read(session.workspace)
    ours = launch is not None and state.is_running(launch)
    found = planning.survey(session.layers, machine, session.workspace, size, ours)
    code = planning.code(found)
    return Answer(code, list(planning.lines(found)), {"exit_code": code, **found.model_dump(mode="json")})


def status(root: Path, options: Options) -> Answer:
    """Tell the server's state and each stage's."""
    session = Session(root, options, silent=True)
    words, server = server_state(session)
    crashes = noted(session.workspace)
    if crashes:
        last = crashes[-1]
        words.append(f"crashes: {len(crashes)} on record under `serve --watch`, the last {last.at:%Y-%m-%d %H:%M:%S} UTC: {last.cause}")
    told = {"server": server, "crashes": [crash.model_dump(mode="json") for crash in crashes]}
    return stages_answer(session, [stage.name for stage in session.pipeline.stages], words, told)


def server_state(session: Session) -> tuple[list[str], dict[str, Any]]:
    """Return the server's state for a person and for a program."""
    workspace, url, launch = session.workspace, session.config.attach.url, state.read(session.workspace)
    if url:
        return [f"server: attached to {url} (`./inv serve` asks it)"], {"state": "attached", "base_url": url}
    if launch is None:
        return ["server: not running"], {"state": "not running"}
    if not state.is_running(launch):
        left, cause = len(state.members(launch)), gone(launch, workspace)
        words = f"{cause.message} (pid {launch.pid}, {left} processes left; `./inv stop` cleans up)\n  → {cause.hint}"
        return [words], {"state": "died", "pid": launch.pid, "cause": cause.message, "processes_left": left}
    answers = control_of(launch, workspace).answers()
    heard = "answers" if answers else "does not answer (starting?)"
    words = f"server: {launch.base_url}/v1  model {launch.model}  pid {launch.pid}  {heard}  log {launch.log}"
    facts = launch.model_dump(mode="json", include={"model", "pid", "log"})
    return [words], {"state": "running", "answers": answers, "base_url": launch.base_url, **facts}


def why(root: Path, options: Options, names: Sequence[str] = ()) -> Answer:
    """Tell for each stage whether it would run, and why."""
    session = Session(root, options, silent=True)
    session.pipeline.ensure(["check-gpu"])
    return stages_answer(session, names or [stage.name for stage in session.pipeline.stages], [], {})


def stages_answer(session: Session, names: Sequence[str], words: Sequence[str], data: dict[str, Any]) -> Answer:
    """Return, beneath `words`, a line per stage: unchanged, or why it would run."""
    pipeline = session.pipeline
    would: set[str] = set()
    found: list[dict[str, Any]] = []
    for stage in pipeline.chain(names):
        reason = pipeline.why(stage)
        waits = [maker.name for maker in pipeline.upstream(stage) if maker.name in would]
        if not stage.observes and (reason or waits):
            would.add(stage.name)
        if stage.name in names:
            told = reason or (f"after {waits[0]}, if its outcome changes" if waits else "unchanged")
            found.append({"stage": stage.name, "runs": stage.observes or stage.name in would, "reason": told})
    rows = Table((), [(f"  {one['stage']}", one["reason"]) for one in found])
    return Answer(0, [*words, rows, session.profile_words()], {**data, "stages": found, "profile": session.profile_data()})


def publish(root: Path, options: Options, issue: str | None, repo: str | None, branch: str | None, dry_run: bool) -> Answer:
    """Push the report and comment on the issue; only show it where that is asked for, or where nothing can log in."""
    from pipeline.publish import publication as publishing
    from pipeline.publish.github import TOKENS, remote_of, target_of, token_of, transport_to
    from pipeline.publish.repository import local_setting

    number = (issue or "").removeprefix("#")
    if not number.isdecimal():
        raise PublishError(f"no issue has the number {issue!r}" if issue else "which issue?", "for example `./inv publish --issue 132`")
    # As JSON, so that YAML takes a branch called "on" for a word.
    given = [f"publish.{name}={json.dumps(value)}" for name, value in (("repo", repo), ("branch", branch)) if value is not None]
    session = Session(root, replace(options, sets=(*options.sets, *given)), silent=True)
    settings = session.config.publish
    origin = local_setting(root, "remote.origin.url")
    target = target_of(origin, settings.repo, os.environ)
    transport = transport_to(target, os.environ)
    order = publishing.Order(target, remote_of(origin, target), settings, int(number), root, transport, token_of(os.environ))
    server = session.pipeline.outcome(Server).data
    urls = [session.config.attach.url or "", server.handle.base_url if server is not None else ""]
    named = [session.config.serve.host, *(urlsplit(url).hostname or "" for url in urls)]
    private = publishing.private_here(root, named, key_file(session.workspace))
    with locked(session.workspace):  # a command at work would change the report's parts while they are read
        made = session.pipeline.outcome(Report).data
        if made is None:
            raise PublishError("there is no report yet", "make one: `./inv all`, or `./inv report --only` of what is on record")
        publication = publishing.gathered(root, made.path, made.headline, order, private)
    if dry_run or transport is None:
        login = f" (no login: set {' or '.join(TOKENS)}, or run `gh auth login`)" if transport is None else ""
        say(f"dry run, nothing is published{login}")
        publishing.shown(publication, order, say)
    else:
        publishing.published(publication, order, transport, say)
    return Answer(0, [], None)


def first_model(server: Handle, workspace: Workspace) -> str:
    """Return the model that the server names first; ServerError when it names none."""
    cards = control_of(server, workspace).models()
    if not cards:
        raise ServerError(f"the server at {server.base_url} names no model", "wait until it has loaded one, or attach to another")
    return cards[0].id


def env(root: Path, options: Options, show_key: bool) -> Answer:
    """Tell what clients of the server need: of the one that runs, the attached one, or the last one on record."""
    from pipeline import exports

    session = Session(root, options, silent=True)
    workspace, url, launch = session.workspace, session.config.attach.url, state.read(session.workspace)
    recorded = session.pipeline.outcome(Server).data
    server: Launch | Handle | None = launch if launch is not None and state.is_running(launch) else None
    model = server.model if isinstance(server, Launch) else ""
    if url:
        server = Handle(launch_id="", base_url=url, pid=None, created=None, log="", samples="", ready_s=0, phases_s={})
        known = recorded is not None and recorded.handle.base_url == url
        model = recorded.model if recorded is not None and known else first_model(server, workspace)
    elif server is None and recorded is not None:
        server, model = recorded.handle, recorded.model
        if not recorded.attached:
            print("the server is not running: start it with `./inv serve`", file=sys.stderr)
    if server is None:
        raise ServerError("there is no server yet", "start one with `./inv serve`, or name one: --set attach.url=http://host:port")
    value = key_of(server, workspace)
    variable = next((name for name in OTHERS if os.environ.get(name) == value), "")
    key = exports.Key(value, key_file(workspace) if server.pid is not None else None, variable) if value else None
    data = exports.as_json(server.base_url, model, key, show_key)
    return Answer(0, exports.lines(server.base_url, model, key, show_key), data, verbatim=True)


def logs(root: Path, follow: bool) -> Answer:
    """Print the current (or last) server log; follow it until the server ends or Ctrl-C."""
    workspace = Workspace(root)
    launch = state.read(workspace)
    last = sorted(workspace.launches.glob("*/server.log"), key=lambda path: path.stat().st_mtime)
    path = workspace.root / launch.log if launch else (last[-1] if last else None)
    if path is None or not path.exists():
        raise PipelineError("no server log yet", "start a server with `./inv serve`")
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            running = launch is not None and state.is_running(launch)
            text = file.read()
            sys.stdout.write(redacted(text))
            sys.stdout.flush()
            if not text:
                if not follow or not running:
                    return Answer(0, [], None)
                time.sleep(0.2)


def graph() -> Answer:
    """Return the stages and their edges as a mermaid flowchart."""
    pipeline = Pipeline(STAGES, Workspace(Path()), lambda kind: kind(), NOTES)
    lines = ["flowchart LR"]
    for stage in pipeline.stages:
        for maker in pipeline.upstream(stage):
            optional = maker.makes not in stage.needs.values()
            lines.append(f"    {maker.name} {'-.->' if optional else '-->'} {stage.name}")
    return Answer(0, lines, None, verbatim=True)


def clean(root: Path, everything: bool) -> Answer:
    """Remove records, logs and samples; with `everything` also runs, environment, models, caches. Refuses while a server runs."""
    workspace = Workspace(root)
    launch = state.read(workspace)
    if launch is not None and state.members(launch):
        raise PipelineError(f"our server is running (pid {launch.pid})", "stop it first: `./inv stop`")
    with locked(workspace):
        # Runs and their noise are measurements that nothing can make again.
        kept = {".gitignore", ".lock", ".lock-holder", *(() if everything else ("runs", "noise.json", "sweep", "sweep.json"))}
        doomed = [path for path in workspace.artifacts.iterdir() if path.name not in kept]
        if everything:
            doomed += [workspace.server_environment, workspace.models, workspace.cache]
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return Answer(0, [f"removed {', '.join(workspace.relative(path) for path in doomed) or 'nothing'}"], None)
