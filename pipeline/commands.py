"""What the tasks do: each takes the project's folder and the options, prints, and returns an exit code."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from pipeline.config import CUDA_DEVICES, AttachConfig, Config, Edges, Given, GpuConfig, Instead, Layers, Visible, Waived, load_layers
from pipeline.dag import ATTACHED, MEASURING, NOTES, STAGES
from pipeline.engine import Pipeline, Result, Stage
from pipeline.errors import BundleError, BusyError, ConfigError, OutOfMemoryError, PipelineError, PublishError, ServerError
from pipeline.record import Outcome, Store, now, write_atomic
from pipeline.redact import redacted
from pipeline.server import state
from pipeline.server.keys import OTHERS, control_of, key_file, key_of
from pipeline.server.readiness import DEATH_S, gone
from pipeline.server.restarts import Crash, note, noted, pause_s, recent
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import Closing, stop_server
from pipeline.server.unit import unit
from pipeline.server.watch import Watch
from pipeline.stages.check_gpu import CPU_PROFILE, Machine, check_gpu
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.report import Report
from pipeline.stages.serve import Server, falls_back, joined
from pipeline.stages.test_determinism import REMEDY_NOTE
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.remedy import Bed

MARKS = {"made": "✓", "unchanged": "·", "left out": "▫", "failed": "✗", "blocked": "✗"}
CONFIG_FILE = "config.yaml"
COMPARE_PLOT = "compare.svg"
REASON_CHARACTERS = 160
WATCH_S = 0.5


@dataclass(frozen=True)
class Options:
    """What every stage task takes."""

    profile: str | None = None
    sets: tuple[str, ...] = ()
    force: bool = False
    why: bool = False
    bundle: str | None = None
    left: tuple[tuple[str, str], ...] = ()  # profiles that were asked for and did not fit, each with the reason


def options(profile: str | None, sets: Sequence[str], attach: str | None, force: bool, why: bool, bundle: str | None = None) -> Options:
    """Return the options of a stage task; `--attach URL` is short for a setting."""
    return Options(profile, (*sets, *([f"attach.url={attach}"] if attach else [])), force, why, bundle)


class Session:
    """One command: the configuration's layers and a pipeline whose settings follow the profile in force."""

    def __init__(self, root: Path, options: Options, quiet: bool = False) -> None:
        self.workspace = Workspace(root, quiet, opened_bundle(root, options.bundle))
        self.options = options
        self.layers: Layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
        if self.workspace.bundle is not None:
            self._take(self.workspace.bundle)
        stages = ATTACHED if self._config_of(None).attach.url else STAGES
        self.pipeline = Pipeline(stages, self.workspace, self._settings, NOTES, self._starting, self._report)
        # A wrong setting is told before anything starts, also one of a profile that check-gpu may choose.
        asked, _ = self.layers.profile
        base = self._config_of(None)
        for profile in [CPU_PROFILE, *(choice.profile for choice in base.gpu.auto)] if asked == "auto" else [asked]:
            chosen = self._config_of(profile).visible
            if asked == "auto" and profile != CPU_PROFILE and chosen != base.visible:
                raise ConfigError(
                    f"profile {profile}: serve.env.{CUDA_DEVICES} cannot stand in a profile that is chosen by the devices it names",
                    f"name the profile (--profile {profile}), or set serve.env.{CUDA_DEVICES} above the profiles",
                )

    @property
    def config(self) -> Config:
        """Return the settings with the profile in force; without one while check-gpu has not chosen."""
        return self._config_of(self.profile()[0])

    def profile(self) -> tuple[str | None, str]:
        """Return (profile in force, where it came from)."""
        asked, origin = self.layers.profile
        if asked != "auto":
            return asked, origin
        machine: Outcome[Machine] = self.pipeline.outcome(Machine)
        if machine.data is None:
            return None, "check-gpu has not chosen one"
        return machine.data.profile, f"auto: {machine.data.profile_reason}"

    def stop_own(self) -> None:
        """Stop the server, unless `serve` left it running."""
        launch = state.read(self.workspace)
        if launch is not None and not launch.stays:
            self.workspace.say(f"stopping the server (pid {launch.pid})")
            stop_server(launch, self.workspace)

    def with_smaller_profile(self) -> Options | None:
        """Return the options for the profile's smaller one where the server did not start for lack of memory; else None."""
        if self.workspace.bundle is not None:
            return None  # it holds one model
        failure, settings = self.pipeline.outcome(Server).failure, self.config.serve
        name, _ = self.profile()
        if failure is None or failure.kind != OutOfMemoryError.kind or not falls_back(settings) or name is None:
            return None
        tried = {name, *(profile for profile, _ in self.options.left)}
        if settings.smaller_profile is None or settings.smaller_profile in tried:
            return None
        reason = f"Asked for profile {name} ({self.config.model.name}), took profile {settings.smaller_profile}: {failure.message}."
        self.workspace.say(reason)
        return replace(self.options, profile=settings.smaller_profile, left=(*self.options.left, (name, reason)))

    def _take(self, bundle: Path) -> None:
        """Take the bundle's profile where none was named; BundleError where another's model is asked for."""
        from pipeline.bundle.content import read, refuse_other_model

        held = read(bundle)
        if self.layers.profile[0] == "auto":
            self.layers = load_layers(self.workspace.root / CONFIG_FILE, os.environ, self.options.sets, held.profile)
        name = self.layers.profile[0]
        refuse_other_model(held, self._config_of(name).model, name)

    def waived(self) -> Waived:
        """Return how the waivers stand today."""
        return self.config.waivers.on(now().date())

    def say_profile(self) -> None:
        """Print the profile in force and where it came from."""
        name, origin = self.profile()
        say(f"profile {name or 'auto'} ({origin})")

    def _settings(self, kind: type[BaseModel]) -> BaseModel:
        if kind is Given:
            return self.layers.given
        if kind is Instead:
            return Instead(tuple(reason for _, reason in self.options.left))
        if kind is Waived:
            return self.waived()
        if kind is Edges:
            stages = self.pipeline.stages
            return Edges(tuple((maker.name, stage.name) for stage in stages for maker in self.pipeline.upstream(stage)))
        # check-gpu chooses the profile, and attach.url the stages, so these settings cannot come from one.
        if kind is Visible:
            return self.visible()
        early = kind in (GpuConfig, AttachConfig)
        return (self._config_of(None) if early else self.config).section(kind)

    def visible(self) -> Visible:
        """Return the devices that check-gpu is to look at; a profile that it chooses by them cannot say."""
        asked, _ = self.layers.profile
        return self._config_of(None if asked == "auto" else asked).visible

    @lru_cache(maxsize=8)
    def _config_of(self, profile: str | None) -> Config:
        return self.layers.config(profile)

    def _starting(self, stage: Stage, reason: str) -> None:
        if not self.workspace.quiet:
            short = reason if len(reason) <= REASON_CHARACTERS else f"{reason[:REASON_CHARACTERS]}… (`./inv why` says all)"
            print(redacted(f"▶ {stage.name}: {short}"), file=sys.stderr, flush=True)

    def _report(self, result: Result) -> None:
        if self.workspace.quiet:
            return
        took = f"  {result.duration_s:.1f} s" if result.duration_s >= 0.05 else ""
        reason = f": {result.reason}" if result.state in ("left out", "failed", "blocked") else ""
        print(redacted(f"{MARKS[result.state]} {result.stage} {result.state}{took}{reason}"), file=sys.stderr, flush=True)


def opened_bundle(root: Path, folder: str | None) -> Path | None:
    """Return the bundle's folder, checked and whole, with this process set to take everything from it; None without one."""
    if folder is None:
        return None
    from pipeline.bundle import unpack

    checked = os.environ.get(unpack.VARIABLE)  # by `./inv`, which needed it before us
    found = Path(checked) if checked else unpack.opened(Path(folder).absolute(), root)
    os.environ.update(unpack.environment(found))
    return found


def bundle(root: Path, options: Options, python: str | None, platform: str | None, output: str, part_mib: str | None) -> int:
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
    say(f"{folder}: {held / 2**20:.0f} MiB{parts}: profile {made.profile}, {made.vllm}, {made.wheels} wheels, model {made.model.origin}")
    say(make.aim(made))
    return 0


def say(text: str) -> None:
    """Print a result."""
    print(redacted(text), flush=True)


@contextmanager
def locked(workspace: Workspace, wait: bool = False) -> Iterator[None]:
    """Hold the workspace's lock; unless told to wait for it, BusyError names who holds it."""
    from filelock import FileLock, Timeout

    workspace.artifacts.mkdir(exist_ok=True)
    holder = workspace.artifacts / ".lock-holder"
    lock = FileLock(workspace.artifacts / ".lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "another process"
        raise BusyError(f"another command is at work here ({who})", "wait for it, or stop it with Ctrl-C in its terminal") from None
    try:
        holder.write_text(f"pid {os.getpid()}: {' '.join(sys.argv[1:])}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def run_all(root: Path, options: Options) -> int:
    """Run the chain, stop what it started, render the report; return the report's exit code, or 2 after a failure."""
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


def reported(session: Session, results: list[Result]) -> int:
    """Render the report; return its exit code, or 2 after a failure."""
    results = results + session.pipeline.ensure(["report"], present=True, alone=True)
    made = session.pipeline.outcome(Report).data
    if made is not None:
        say_report(made)
        keep_run(session)
        summarise(session)
    session.say_profile()
    failed = any(result.state in ("failed", "blocked") for result in results)
    return 2 if failed or made is None else int(made.exit_code)


def say_report(made: Report) -> None:
    """Print the verdicts and where the report is."""
    for gate in made.gates:
        verdict = f"{gate.verdict} ({gate.waiver}) " if gate.waiver else gate.verdict
        note = f"  {gate.reason}" if gate.reason else ""
        say(f"  {verdict:<13}{gate.gate}{'' if gate.required else ' (not required)'}{note}")
    say(f"{made.headline}\n{made.path}")


def keep_run(session: Session) -> None:
    """Keep what this run left, unless nothing in it is new."""
    from pipeline import runs

    settings, workspace = session.config, session.workspace
    kept = runs.keep(workspace.root / settings.report.document, workspace.root / settings.report.output, settings.runs, workspace)
    if kept is not None:
        say(f"kept in {workspace.relative(kept)}")


def summarise(session: Session) -> None:
    """Append the verdict to the job summary, where GitHub Actions has one; a summary that cannot be written changes no verdict."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    from pipeline.report.document import read_document
    from pipeline.report.exports import SUMMARY_BYTES, job_summary

    where = session.workspace.root / session.config.report.document
    document = read_document(where.read_bytes(), session.workspace.relative(where))
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            text = redacted(job_summary(document, SUMMARY_BYTES - file.tell()))
            file.write(text)
    except OSError as error:
        say(f"no job summary: GITHUB_STEP_SUMMARY names a file that cannot be written ({error.strerror})")
        return
    if not text:
        say("no job summary: what this step has written to it leaves no room (GitHub takes 1 MiB)")


def report(root: Path, options: Options, only: bool) -> int:
    """Bring everything up to date and render, or with `only` render what is on record."""
    if not only or options.why:
        return run_all(root, options)
    session = Session(root, options)
    with locked(session.workspace):
        session.pipeline.ensure(["report"], force=["report"], alone=True)
        made = session.pipeline.outcome(Report).data
        if made is None:
            return 2
        say_report(made)
        summarise(session)
        session.say_profile()
        return int(made.exit_code)


def gates(root: Path, options: Options) -> int:
    """Print each gate as the report judges it, and where its values stand; run nothing and return the report's exit code."""
    from pipeline.report.gates import judge_records
    from pipeline.report.listing import lines
    from pipeline.report.view import headline

    session = Session(root, options, quiet=True)
    profile, _ = session.profile()
    records = [session.pipeline.outcome(kind) for kind in session.pipeline.stage("report").reads.values()]
    judged = judge_records(session.config.gates, session.waived(), records)
    for row in judged.gates:
        places = [session.layers.places((section, row.id), profile) for section in ("gates", "waivers")]
        say("\n".join(lines(row, records, *places)))
    say(headline(judged))
    session.say_profile()
    return judged.code


def run_stage(root: Path, name: str, options: Options, wait: bool = False) -> int:
    """Run one stage and what it needs; stop a server that this started, unless the stage is serve itself."""
    session = Session(root, options)
    if options.why:
        return why(root, options, [name])
    with locked(session.workspace, wait):
        try:
            results = session.pipeline.ensure([name], force=[name] if options.force else (), present=True)
        except BaseException:
            session.stop_own()
            raise
        code = 2 if any(result.state in ("failed", "blocked") for result in results if result.stage == name) else 0
        machine = session.pipeline.outcome(Machine).data
        if name == "check-gpu" and machine is not None:
            say_machine(machine)
        server = session.pipeline.outcome(Server).data
        if name == "serve" and code == 0 and server is not None:
            launch = state.current(session.workspace, server.handle.launch_id)
            if launch is not None:
                state.write(session.workspace, launch.model_copy(update={"stays": True}))
            say_server(server)
        session.stop_own()
        session.say_profile()
        smaller = session.with_smaller_profile() if code else None
    return run_stage(root, name, smaller, wait) if smaller is not None else code


def restart(root: Path, options: Options) -> int:
    """Stop our server, if there is one, and start it anew."""
    refuse_attached(root, options, "restart")
    return run_stage(root, "serve", replace(options, force=True))


def refuse_attached(root: Path, options: Options, what: str) -> None:
    """Raise ServerError when the server is one that someone else runs."""
    url = Session(root, options, quiet=True).config.attach.url
    if url:
        raise ServerError(f"the server at {url} is not ours to {what}", "unset attach.url for a server of our own")


def serve(root: Path, options: Options, foreground: bool, watch: bool) -> int:
    """Bring the server up and leave it running; in the foreground follow its log and stop it on Ctrl-C, on watch restart it."""
    if foreground or watch:
        refuse_attached(root, options, "watch")
    if watch and not options.why:
        return keep_running(root, options)
    code = run_stage(root, "serve", options)
    if code or options.why or not foreground:
        return code
    return attend(root)


def join(root: Path, options: Options) -> int:
    """Start this node's share of a model over several hosts, and stay until the server ends or Ctrl-C."""
    session = Session(root, options)
    refuse_attached(root, options, "join")
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        if any(result.state in ("failed", "blocked") for result in pipeline.ensure(["install", "download-model"])):
            return 2
        made: list[Any] = [pipeline.outcome(kind).data for kind in (Machine, Installation, Model)]
        machine, installation, model = made
        launch = joined(session.config.serve, machine, installation, model, workspace)
        state.write(workspace, launch.model_copy(update={"stays": True}))
    return attend(root)


def keep_running(root: Path, options: Options) -> int:
    """Start the server, and again whenever it crashes, until Ctrl-C, another command's `stop`, or too many crashes (ServerError)."""
    session = Session(root, options)
    workspace = session.workspace
    try:
        code = run_stage(root, "serve", options)
        if code:
            return code
        crashes: list[datetime] = []
        while (launch := state.read(workspace)) is not None:
            await_end(launch, workspace)
            cause = cleared(launch, workspace)
            while cause:
                crashes = noted_crash(launch, cause, crashes, session)
                time.sleep(pause_s(len(crashes)))
                failed = run_stage(root, "serve", options, wait=True)
                failure = session.pipeline.outcome(Server).failure
                cause = failure.message if failed and failure else ""
    except KeyboardInterrupt:
        watched = state.read(workspace)
        if watched is not None and watched.stays:  # any other belongs to a command at work
            say_stopped(watched, stop_server(watched, workspace))
        raise
    say("the server was stopped by another command")
    return 0


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


def systemd_unit(root: Path, options: Options) -> int:
    """Print a systemd unit that keeps the server running with these options."""
    session = Session(root, options, quiet=True)
    words = [*(["--profile", options.profile] if options.profile else []), *(word for text in options.sets for word in ("--set", text))]
    say(unit(root, words, session.config.serve))
    return 0


def attend(root: Path) -> int:
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
            say_stopped(launch, stop_server(launch, workspace))
        raise
    try:
        with locked(workspace):
            if state.current(workspace, launch.id) is not None:
                trouble = gone(launch, workspace)
                stop_server(launch, workspace)
                raise trouble
    except BusyError as error:
        say(error.message)
    return 0


def say_machine(machine: Machine) -> None:
    """Print what check-gpu saw."""
    host = machine.host
    say(f"processor  {host.cpu}, {host.cores} cores ({' '.join(host.vector) or 'no wide vectors'}), {host.memory_mib} MiB")
    if machine.driver is not None:
        say(f"driver     {machine.driver.version}, CUDA {machine.driver.cuda}")
    for gpu in machine.gpus:
        memory = f"{gpu.free_mib:.0f} of {gpu.total_mib:.0f} MiB free"
        if gpu.reserved_mib is not None:
            memory += f" ({gpu.reserved_mib:.0f} kept by the driver)"
        say(f"GPU {gpu.index}      {gpu.name}: {memory}, compute capability {gpu.compute_capability}")
        for process in gpu.processes:
            used = "memory not told" if process.used_mib is None else f"{process.used_mib:.0f} MiB"
            say(f"  used by  pid {process.pid} ({process.name}): {used}")
    for caution in machine.cautions:
        say(f"caution    {caution.fact}\n  → {caution.fix}")
    if machine.reason:
        say(f"no usable GPU: {machine.reason}\n  → {machine.fix}")


def say_server(server: Server) -> None:
    """Print how to reach, watch and stop the server."""
    handle = server.handle
    if server.attached:
        say(f"base URL  {handle.base_url}/v1\nmodel     {server.model}\nattached: neither started nor stopped by us")
        return
    say(f"base URL  {handle.base_url}/v1\nmodel     {server.model}\npid       {handle.pid}\nlog       {handle.log}\nstop      ./inv stop")


def stop(root: Path) -> int:
    """Stop our server, or say that there is none."""
    workspace = Workspace(root)
    with locked(workspace):
        launch = state.read(workspace)
        if launch is None:
            say("no server of ours is running")
            return 0
        if not state.is_running(launch):
            say(gone(launch, workspace).message)
        closing = stop_server(launch, workspace)
        say_stopped(launch, closing)
        return 0 if closing.port_free else 2


def say_stopped(launch: Launch, closing: Closing) -> None:
    """Print how a stop went: what had to be killed, the port, and the GPU memory left behind."""
    killed = f", killed {', '.join(closing.killed)}" if closing.killed else ""
    port = "free" if closing.port_free else "still taken"
    residual = closing.residual_mib()
    memory = "" if residual is None else f"; GPU memory {residual:+.0f} MiB against before the start"
    what = f"stopped pid {launch.pid} in {closing.took_s:.1f} s" if closing.was_running else f"nothing was left of pid {launch.pid}"
    say(f"{what}{killed}; port {launch.port} is {port}{memory}")


def bed_of(session: Session) -> "Bed | None":
    """Return what servers are started with, installed and downloaded where it was not; None where that failed."""
    from pipeline.remedy import Bed

    pipeline = session.pipeline
    pipeline.ensure(["install", "download-model"], present=True)
    machine, installation, model = (pipeline.outcome(kind).data for kind in (Machine, Installation, Model))
    if machine is None or installation is None or model is None:
        return None
    return Bed(session.config, machine, installation, model, session.workspace)


def determinism_remedy(root: Path, options: Options) -> int:
    """Measure a server without and one with the remedy for unequal answers; return 0 when all agree with it, 1 not, 2 not measured."""
    from pipeline import remedy as remedies

    refuse_attached(root, options, "start with another environment")
    session = Session(root, options)
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        bed = bed_of(session)
        if bed is None:
            return 2
        remedy = remedies.remedy_of(bed, os.environ)
        with remedies.set_aside(bed.installation.vllm, workspace):
            started, clock = now(), time.perf_counter()
            proof = remedies.proven(remedy, bed)
            pipeline.store.write(REMEDY_NOTE, bed.because(), started, time.perf_counter() - clock, proof)
            say("\n".join(remedies.lines(proof)))
        session.say_profile()
    return remedies.verdict(proof)


def soak(root: Path, options: Options, hours: str) -> int:
    """Put load on the server for so many hours in all; return 0 when memory is stable, 1 when not shown to be, 2 when not measured."""
    from pipeline import soak as soaking

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
                return 2
            made = soaking.soak(session.config.vram, total_h, options.force, machine, server, workspace)
        except KeyboardInterrupt:
            say_kept(session)
            raise
        except BaseException:
            session.stop_own()
            raise
        session.stop_own()
        say("\n".join(soaking.lines(made)))
        session.say_profile()
    return soaking.code(made)


def say_kept(session: Session) -> None:
    """Print that the server of an interrupted soak runs on, where it does."""
    launch = state.read(session.workspace)
    if launch is not None and state.is_running(launch):
        say(f"the server (pid {launch.pid}) runs on, so that the same command can go on with it; `./inv stop` ends it")


def history(root: Path, as_json: bool) -> int:
    """Print the runs that are kept, newest first."""
    from pipeline import history as listing

    workspace = Workspace(root, quiet=True)
    say(listing.as_json(workspace) if as_json else "\n".join(listing.lines(workspace)))
    return 0


def compare(root: Path, first: str, second: str, anyway: bool, as_json: bool) -> int:
    """Print run `second` against run `first`; return 1 when a figure is worse, 2 when none can be compared, else 0."""
    from pipeline import comparing, noise, runs

    workspace = Workspace(root, quiet=True)
    pair = runs.find(first, workspace), runs.find(second, workspace)
    found = Store(workspace.artifacts).outcome(noise.NOTE, noise.RunNoise).data
    measured = found if found is not None and comparing.fits(found, pair) else None
    made = comparing.compare(*pair, measured, anyway)
    picture = workspace.artifacts / COMPARE_PLOT
    drawn = redacted(comparing.plot(made))
    trouble = shown(drawn, picture)
    where = workspace.relative(picture) if drawn and not trouble else None
    if as_json:
        say(json.dumps(comparing.data(made, where), indent=1))
    else:
        say("\n".join(comparing.lines(made, measured)))
        if trouble:
            say(f"no plot: {workspace.relative(picture)} cannot be written ({trouble})")
        elif where:
            say(f"plot: {where}")
    return made.exit_code


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


def calibrate_noise(root: Path, options: Options, starts: str) -> int:
    """Start the server so often, measure each time, and keep the spread; return 0, or 2 when something was missing."""
    from pipeline import noise
    from pipeline import remedy as remedies

    number = noise.parsed(starts)
    refuse_attached(root, options, "start again and again")
    session = Session(root, options)
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        bed = bed_of(session)
        if bed is None:
            return 2
        with remedies.set_aside(bed.installation.vllm, workspace):
            started, clock = now(), time.perf_counter()
            made = noise.calibrated(bed, number)
            pipeline.store.write(noise.NOTE, bed.because(), started, time.perf_counter() - clock, made)
            say("\n".join(noise.lines(made)))
        session.say_profile()
    return 0


def sweep(root: Path, options: Options, axes: str | None, dry_run: bool, ray_address: str | None) -> int:
    """Run the pipeline for each cell of a matrix; return 0 when a cell passes every gate, 1 when none does, 2 when none was measured."""
    from pipeline.sweep import run as sweeping

    layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
    workspace = Workspace(root, quiet=True)
    base = layers.config(None)
    machine = check_gpu(base.gpu.model_copy(update={"required": False}), base.visible)
    asked = sweeping.Asked(axes, ray_address, dry_run, options.force, options.sets)
    made = sweeping.Sweeping(layers, machine, asked, workspace, say)
    if dry_run:
        return made.dry_run()
    with locked(workspace):
        launch = state.read(workspace)
        if launch is not None and state.is_running(launch):
            raise BusyError(f"our server runs (pid {launch.pid}) and would disturb the cells", "stop it first: `./inv stop`")
        return made.run()


def doctor(root: Path, options: Options) -> int:
    """Print what can be checked without starting anything; return 1 when something must be mended first."""
    from pipeline import doctor as checks

    workspace, asked = Workspace(root, quiet=True), "auto"
    first = []
    try:
        layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
        asked, origin = layers.profile
        visible = layers.config(None if asked == "auto" else asked).visible
        machine = check_gpu(layers.config(None).gpu.model_copy(update={"required": False}), visible)
        config = layers.config(machine.profile if asked == "auto" else asked)
        seen = f"profile {config.profile.root} ({machine.profile_reason if asked == 'auto' else origin})"
        first.append(checks.Finding("OK", "configuration", seen))
    except ConfigError as error:
        first.append(checks.Finding("FAIL", "configuration", error.message, error.hint))
        config = Config()
        machine = check_gpu(config.gpu, config.visible)
    try:
        with locked(workspace):
            pass
    except BusyError as error:
        first.append(checks.Finding("WARN", "lock", error.message, error.hint))
    findings = chain(first, checks.examine(config, machine, asked != "auto", workspace))
    return 0 if checks.shown(findings, say) else 1


def plan(root: Path, options: Options, total_mib: str | None) -> int:
    """Print what fits the device before anything is downloaded; return 0 when the profile in force does, 1 not, 2 unknown."""
    from pipeline import planning

    size = planning.total(total_mib)
    session = Session(root, options, quiet=True)
    machine = check_gpu(session.layers.config(None).gpu.model_copy(update={"required": False}), session.visible())
    launch = state.read(session.workspace)
    ours = launch is not None and state.is_running(launch)
    found = planning.survey(session.layers, machine, session.workspace, size, ours)
    say("\n".join(planning.lines(found)))
    return planning.code(found)


def status(root: Path, options: Options) -> int:
    """Print the server's state and each stage's."""
    session = Session(root, options, quiet=True)
    launch = state.read(session.workspace)
    url = session.config.attach.url
    if url:
        say(f"server: attached to {url} (`./inv serve` asks it)")
    elif launch is None:
        say("server: not running")
    elif not state.is_running(launch):
        left = state.members(launch)
        cause = gone(launch, session.workspace)
        say(f"{cause.message} (pid {launch.pid}, {len(left)} processes left; `./inv stop` cleans up)\n  → {cause.hint}")
    else:
        answers = "answers" if control_of(launch, session.workspace).answers() else "does not answer (starting?)"
        say(f"server: {launch.base_url}/v1  model {launch.model}  pid {launch.pid}  {answers}  log {launch.log}")
    crashes = noted(session.workspace)
    if crashes:
        last = crashes[-1]
        say(f"crashes: {len(crashes)} on record under `serve --watch`, the last {last.at:%Y-%m-%d %H:%M:%S} UTC: {last.cause}")
    say_stages(session, [stage.name for stage in session.pipeline.stages])
    session.say_profile()
    return 0


def why(root: Path, options: Options, names: Sequence[str] = ()) -> int:
    """Print for each stage whether it would run, and why."""
    session = Session(root, options, quiet=True)
    session.pipeline.ensure(["check-gpu"])
    say_stages(session, names or [stage.name for stage in session.pipeline.stages])
    session.say_profile()
    return 0


def say_stages(session: Session, names: Sequence[str]) -> None:
    """Print a line per stage: unchanged, or why it would run."""
    pipeline = session.pipeline
    would: set[str] = set()
    for stage in pipeline.chain(names):
        reason = pipeline.why(stage)
        waits = [maker.name for maker in pipeline.upstream(stage) if maker.name in would]
        if not stage.observes and (reason or waits):
            would.add(stage.name)
        if stage.name in names:
            say(f"  {stage.name:<17}{reason or (f'after {waits[0]}, if its outcome changes' if waits else 'unchanged')}")


def publish(root: Path, options: Options, issue: str | None, repo: str | None, branch: str | None, dry_run: bool) -> int:
    """Push the report and comment on the issue; only show it where that is asked for, or where nothing can log in."""
    from pipeline.publish import publication as publishing
    from pipeline.publish.github import TOKENS, remote_of, target_of, token_of, transport_to
    from pipeline.publish.repository import local_setting

    number = (issue or "").removeprefix("#")
    if not number.isdecimal():
        raise PublishError(f"no issue has the number {issue!r}" if issue else "which issue?", "for example `./inv publish --issue 132`")
    # As JSON, so that YAML takes a branch called "on" for a word.
    given = [f"publish.{name}={json.dumps(value)}" for name, value in (("repo", repo), ("branch", branch)) if value is not None]
    session = Session(root, replace(options, sets=(*options.sets, *given)), quiet=True)
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
    return 0


def first_model(server: Handle, workspace: Workspace) -> str:
    """Return the model that the server names first; ServerError when it names none."""
    cards = control_of(server, workspace).models()
    if not cards:
        raise ServerError(f"the server at {server.base_url} names no model", "wait until it has loaded one, or attach to another")
    return cards[0].id


def env(root: Path, options: Options, show_key: bool, as_json: bool) -> int:
    """Print what clients of the server need: of the one that runs, the attached one, or the last one on record."""
    from pipeline import exports

    session = Session(root, options, quiet=True)
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
    if as_json:
        print(json.dumps(exports.as_json(server.base_url, model, key, show_key), indent=1))
    else:
        print("\n".join(exports.lines(server.base_url, model, key, show_key)))
    return 0


def logs(root: Path, follow: bool) -> int:
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
                    return 0
                time.sleep(0.2)


def graph() -> str:
    """Return the stages and their edges as a mermaid flowchart."""
    pipeline = Pipeline(STAGES, Workspace(Path()), lambda kind: kind(), NOTES)
    lines = ["flowchart LR"]
    for stage in pipeline.stages:
        for maker in pipeline.upstream(stage):
            optional = maker.makes in stage.reads.values()
            lines.append(f"    {maker.name} {'-.->' if optional else '-->'} {stage.name}")
    return "\n".join(lines)


def clean(root: Path, everything: bool) -> int:
    """Remove records, logs and samples; with `everything` also runs, environment, models, caches. Refuses while a server runs."""
    workspace = Workspace(root)
    launch = state.read(workspace)
    if launch is not None and state.members(launch):
        raise PipelineError(f"our server is running (pid {launch.pid})", "stop it first: `./inv stop`")
    with locked(workspace):
        # Runs and their noise are measurements that nothing can make again.
        kept = {".gitignore", ".lock", ".lock-holder", *(() if everything else ("runs", "noise.json", "sweep"))}
        doomed = [path for path in workspace.artifacts.iterdir() if path.name not in kept]
        if everything:
            doomed += [workspace.server_environment, workspace.models, workspace.cache]
        for path in doomed:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    say(f"removed {', '.join(workspace.relative(path) for path in doomed) or 'nothing'}")
    return 0
