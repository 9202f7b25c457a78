"""Start a server of ours and wait until it is ready and proven; what was started goes where that fails."""

import time
from typing import Any

from pipeline.client.target import Target
from pipeline.config.schema import ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, ServerError
from pipeline.server import launch as launching
from pipeline.server import state
from pipeline.server.identity import prove
from pipeline.server.keys import control_of, key_of
from pipeline.server.readiness import DEATH_S, died, gone, wait_until_ready
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import stop_current, stop_server
from pipeline.vllm.identity import Proof, is_real
from pipeline.vllm.kernels import is_monitored
from pipeline.vllm.warm_up import warm_up


def relaunch(launch: Launch, version: str, workspace: Workspace) -> dict[str, Any]:
    """Start what was stopped again, with the same command and environment; return what changes in the server's record."""
    proofs, handle = start_and_prove(launch.settings, launch.command, launch.model, version, workspace)
    started = state.read(workspace)
    if started is not None:
        state.write(workspace, started.model_copy(update={"stays": launch.stays}))
    return {"real": is_real(proofs), "proofs": proofs, "handle": handle}


def start_and_prove(settings: ServeConfig, words: list[str], model: str, version: str, workspace: Workspace) -> tuple[list[Proof], Handle]:
    """Start `words` and wait; return the proofs and the handle of a launch that is ready and ours, or leave nothing running."""
    launching.start(settings, words, model, workspace)
    try:
        return await_server(version, workspace)
    except BaseException:  # also Ctrl-C: what we started must not outlive us
        stop_current(workspace)
        raise


def clear_old(workspace: Workspace) -> None:
    """Stop our own earlier server, or what is left of it."""
    old = state.read(workspace)
    if old is None:
        return
    if state.is_running(old):
        workspace.say(f"stopping our earlier server (pid {old.pid}, port {old.port})")
    else:
        workspace.say(f"our earlier {gone(old, workspace).message.removeprefix('the ')} (pid {old.pid})")
    for killed in stop_server(old, workspace).killed:
        workspace.say(f"killed what was left of it: {killed}")


def await_server(version: str, workspace: Workspace) -> tuple[list[Proof], Handle]:
    """Return (proofs, handle) of the launch on record once it is ready and proven; ServerError otherwise."""
    launch = state.read(workspace)
    assert launch is not None, "nobody else stops it while we hold the lock"
    log = workspace.root / launch.log
    control = control_of(launch, workspace)
    phases, ready_s = wait_until_ready(launch, log, control, workspace.say)
    try:
        proofs = prove(launch, control, version)
    except MeasureError as error:
        gone = state.dies_within(launch.pid, launch.created, DEATH_S)
        raise (died(log) if gone else ServerError(error.message, "see its log", log)) from error
    failed = [proof for proof in proofs if not proof.holds]
    if failed:
        raise ServerError(
            f"what answers on port {launch.port} is not the server we started: {failed[0].claim}: {failed[0].seen}",
            "stop the other program, or choose another serve.port",
            log,
        )
    workspace.say(f"ready after {ready_s:.1f} s")
    if is_monitored(log.read_text(encoding="utf-8", errors="replace")):
        began = time.monotonic()
        target = Target(launch.base_url, lambda: state.is_running(launch), key_of(launch, workspace))
        count = warm_up(target, launch.model, launch.settings.max_num_seqs, launch.settings.max_model_len)
        workspace.say(f"warmed up with {count} requests in {time.monotonic() - began:.1f} s")
    return proofs, Handle(
        launch_id=launch.id,
        base_url=launch.base_url,
        keyed=launch.keyed,
        pid=launch.pid,
        created=launch.created,
        log=launch.log,
        log_start=log.stat().st_size,
        samples=workspace.relative(workspace.launches / launch.id / state.SAMPLES),
        ready_s=round(ready_s, 2),
        phases_s={name: round(seconds, 2) for name, seconds in phases.durations(ready_s).items()},
    )
