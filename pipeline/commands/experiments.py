"""Commands that are more than a list of stages: determinism-remedy, soak, calibrate-noise."""

import os
import time
from pathlib import Path

from pipeline.commands.chain import why
from pipeline.commands.session import Options, Session, locked
from pipeline.commands.words import say
from pipeline.engine.record import now
from pipeline.experiments import noise
from pipeline.experiments import remedy as remedies
from pipeline.experiments import soak as soaks
from pipeline.experiments.inputs import ServerInputs
from pipeline.report.noise import NOISE_NOTE
from pipeline.server import state
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import REMEDY_NOTE
from pipeline.terminal import FAILED, Output


def server_inputs(session: Session) -> ServerInputs | None:
    """Install and download what is missing, and return what a server starts from; None if a stage failed."""
    pipeline = session.pipeline
    pipeline.ensure(["install", "download-model"], present=True)
    machine, installation, model = (pipeline.outcome(kind).data for kind in (Machine, Installation, Model))
    if machine is None or installation is None or model is None:
        return None
    return ServerInputs(session.config, machine, installation, model, session.workspace)


def determinism_remedy(root: Path, options: Options) -> Output:
    """Measure a server without the remedy for unequal answers and one with it.

    Exit code 0 when all answers agree with the remedy, 1 when some differ, 2 when a side was not measured.
    """
    session = Session(root, options)
    session.refuse_attached("start with another environment")
    workspace = session.workspace
    with locked(workspace):
        inputs = server_inputs(session)
        if inputs is None:
            return FAILED
        remedy = remedies.remedy_of(inputs, os.environ)
        with remedies.set_aside(inputs.installation.vllm, workspace), workspace.screen.running("determinism-remedy", ""):
            started, clock = now(), time.perf_counter()
            proof = remedies.prove(remedy, inputs)
            session.pipeline.store.write(REMEDY_NOTE, inputs.because(), started, time.perf_counter() - clock, proof)
        code = remedies.verdict(proof)
        facts = {"exit_code": code, "profile": session.profile_data(), "data": proof.model_dump(mode="json")}
        return Output(code, [*remedies.lines(proof), session.profile_words()], facts)


def soak(root: Path, options: Options, hours: str) -> Output:
    """Keep load on the server for `hours` in all; 0 when memory is stable, 1 when not shown to be, 2 when not measured."""
    total_h = soaks.parse_hours(hours)
    if options.why:
        return why(root, options, ["serve"])
    session = Session(root, options)
    session.refuse_attached("measure the memory of")
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        try:
            pipeline.ensure(["serve"], present=True)
            machine, server = pipeline.outcome(Machine).data, pipeline.outcome(Server).data
            if machine is None or server is None:
                return FAILED
            with workspace.screen.running("soak", ""):
                result = soaks.soak(session.config.vram, total_h, options.force, machine, server, workspace)
        except KeyboardInterrupt:
            say_server_stays(session)
            raise
        except BaseException:
            session.stop_own()
            raise
        session.stop_own()
        code = soaks.code(result)
        facts = {"exit_code": code, "profile": session.profile_data(), "data": result.model_dump(mode="json")}
        return Output(code, [*soaks.lines(result), session.profile_words()], facts)


def say_server_stays(session: Session) -> None:
    """Print that the server of an interrupted soak keeps running, if it does."""
    launch = state.read(session.workspace)
    if launch is not None and state.is_running(launch):
        say(f"the server (pid {launch.pid}) runs on, so that the same command can go on with it; `./inv stop` ends it")


def calibrate_noise(root: Path, options: Options, starts: str) -> Output:
    """Start and measure the server `starts` times and record the spread; 0, or 2 when a stage failed."""
    number = noise.parse_starts(starts)
    session = Session(root, options)
    session.refuse_attached("start again and again")
    workspace = session.workspace
    with locked(workspace):
        inputs = server_inputs(session)
        if inputs is None:
            return FAILED
        with remedies.set_aside(inputs.installation.vllm, workspace), workspace.screen.running("calibrate-noise", ""):
            started, clock = now(), time.perf_counter()
            spread = noise.calibrated(inputs, number)
            session.pipeline.store.write(NOISE_NOTE, inputs.because(), started, time.perf_counter() - clock, spread)
        facts = {"exit_code": 0, "profile": session.profile_data(), "data": spread.model_dump(mode="json")}
        return Output(0, [*noise.lines(spread), session.profile_words()], facts)
