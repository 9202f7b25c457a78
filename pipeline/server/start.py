"""Starting our own server and waiting until it is ready and proven to be ours; a failed start leaves nothing running."""

import time
from typing import NamedTuple

from pipeline.client.endpoint import Endpoint
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, ServerError
from pipeline.server import launch as launching
from pipeline.server import state
from pipeline.server.identity import prove
from pipeline.server.keys import control_of, key_of
from pipeline.server.readiness import DEATH_S, died, gone, log_words, wait_until_ready
from pipeline.server.state import Handle, Launch
from pipeline.server.stop import stop_current, stop_server
from pipeline.vllm.identity import Proof, is_real
from pipeline.vllm.kernels import compiles_on_demand
from pipeline.vllm.warm_up import warm_up


class Ready(NamedTuple):
    """A ready server: whether it is real (every proof holds), whether it takes system messages, the proofs, and how to reach it."""

    real: bool
    takes_system: bool
    proofs: list[Proof]
    handle: Handle


def relaunch(launch: Launch, version: str, workspace: Workspace) -> Ready:
    """Start a stopped launch again, with the same command and environment."""
    launching.start(launch.settings, launch.command, launch.model, workspace, launch.request_fields)
    ready = await_ready(version, workspace)
    new_launch = state.read(workspace)
    if new_launch is not None:
        state.write(workspace, new_launch.model_copy(update={"stays": launch.stays}))
    return ready


def await_ready(version: str, workspace: Workspace) -> Ready:
    """Wait until the launch on record is ready and proven to be ours; stop it where that fails."""
    try:
        return await_proofs(version, workspace)
    except BaseException:  # also Ctrl-C: a failed start must not outlive its command
        stop_current(workspace)
        raise


def clear_old(workspace: Workspace) -> None:
    """Stop our earlier server, or the processes that are left of it."""
    launch = state.read(workspace)
    if launch is None:
        return
    if state.is_running(launch):
        workspace.say(f"stopping our earlier server (pid {launch.pid}, port {launch.port})")
    else:
        workspace.say(f"our earlier {gone(launch, workspace).message.removeprefix('the ')} (pid {launch.pid})")
    for killed in stop_server(launch, workspace).killed:
        workspace.say(f"killed what was left of it: {killed}")


def await_proofs(version: str, workspace: Workspace) -> Ready:
    """Wait until the launch on record is ready and proven; ServerError otherwise."""
    launch = state.read(workspace)
    assert launch is not None, "nobody else stops it while we hold the lock"
    log = workspace.root / launch.log
    control = control_of(launch, workspace)
    phases, ready_s = wait_until_ready(launch, log, control, workspace.say)
    try:
        proofs = prove(launch, control, version)
        takes_system = control.takes_system(launch.model)
    except MeasureError as error:
        dead = state.dies_within(launch.pid, launch.created, DEATH_S)
        raise (died(log) if dead else ServerError(error.message, log_words(log), log)) from error
    failures = [proof for proof in proofs if not proof.holds and not proof.fix]
    if failures:
        raise ServerError(
            f"what answers on port {launch.port} is not the server we started: {failures[0].claim}: {failures[0].seen}",
            "stop the other program, or choose another serve.port",
            log,
        )
    workspace.say(f"ready after {ready_s:.1f} s")
    if compiles_on_demand(log.read_text(encoding="utf-8", errors="replace")):
        start_s = time.monotonic()
        target = Endpoint(launch.base_url, lambda: state.is_running(launch), key_of(launch, workspace), fields=launch.request_fields)
        count = warm_up(target, launch.model, launch.settings.max_num_seqs, launch.settings.max_model_len)
        workspace.say(f"warmed up with {count} requests in {time.monotonic() - start_s:.1f} s")
    handle = Handle(
        launch_id=launch.id,
        base_url=launch.base_url,
        keyed=launch.keyed,
        pid=launch.pid,
        created=launch.created,
        log=launch.log,
        log_start=log.stat().st_size,
        samples=workspace.relative(workspace.launches / launch.id / state.SAMPLES),
        ready_s=round(ready_s, 2),
        request_fields=launch.request_fields,
        phases_s={name: round(seconds, 2) for name, seconds in phases.durations(ready_s).items()},
    )
    return Ready(is_real(proofs), takes_system, proofs, handle)
