"""The server: start, restart, follow, stop, and run it under systemd."""

import sys
import time
from dataclasses import replace
from pathlib import Path

from pipeline.commands.chain import run_stage
from pipeline.commands.session import Options, Session, locked
from pipeline.commands.watch import keep_running
from pipeline.commands.words import say, stop_line
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError, ConfigError, PipelineError, ServerError
from pipeline.redact import redacted
from pipeline.server import state
from pipeline.server.readiness import gone
from pipeline.server.stop import stop_server
from pipeline.server.unit import unit
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import join_node
from pipeline.terminal import FAILED, Output, show

FOLLOW_S = 0.2


def serve(root: Path, options: Options, foreground: bool, watch: bool) -> Output:
    """Start the server and leave it running; `foreground` follows its log and stops it on Ctrl-C, `watch` restarts it after a crash."""
    if foreground or watch:
        if options.json:
            raise ConfigError("--json is for a command that ends", "leave out --foreground and --watch, or --json")
        Session(root, options, silent=True).refuse_attached("watch")
    if watch and not options.why:
        return keep_running(root, options)
    output = run_stage(root, options, "serve")
    if output.code or options.why or not foreground:
        return output
    show(output.parts)
    return attend(root)


def restart(root: Path, options: Options) -> Output:
    """Stop our server, if it runs, and start it again."""
    Session(root, options, silent=True).refuse_attached("restart")
    return run_stage(root, replace(options, force=True), "serve")


def join(root: Path, options: Options) -> Output:
    """Start this node's share of a model that spans several hosts, and stay until the server ends or Ctrl-C."""
    session = Session(root, options)
    session.refuse_attached("join")
    workspace, pipeline = session.workspace, session.pipeline
    with locked(workspace):
        pipeline.ensure(["install", "download-model"])
        machine, installation, model = (pipeline.outcome(kind).data for kind in (Machine, Installation, Model))
        if machine is None or installation is None or model is None:
            return FAILED
        launch = join_node(session.config.serve, machine, installation, model, workspace)
        state.write(workspace, launch.model_copy(update={"stays": True}))
    return attend(root)


def attend(root: Path) -> Output:
    """Follow the server's log until it ends.

    Ctrl-C stops the server. A server that died is cleaned up and raised as ServerError. If another command stopped or restarted the
    server, nothing is left to do.
    """
    workspace = Workspace(root)
    launch = state.read(workspace)
    if launch is None:
        raise ServerError("the server is gone already", "see `./inv logs`")
    try:
        logs(root, follow=True)
    except KeyboardInterrupt:
        if state.current(workspace, launch.id) is not None:
            say(stop_line(launch, stop_server(launch, workspace)))
        raise
    try:
        with locked(workspace):
            if state.current(workspace, launch.id) is not None:
                trouble = gone(launch, workspace)
                stop_server(launch, workspace)
                raise trouble
    except BusyError as error:
        return Output(0, [error.message], None)
    return Output(0, [], None)


def logs(root: Path, follow: bool) -> Output:
    """Print the log of the current (or last) server; with `follow`, until the server ends or Ctrl-C."""
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
                    return Output(0, [], None)
                time.sleep(FOLLOW_S)


def stop(root: Path) -> Output:
    """Stop our server, or say that none is running."""
    workspace = Workspace(root)
    with locked(workspace):
        launch = state.read(workspace)
        if launch is None:
            return Output(0, ["no server of ours is running"], {"exit_code": 0, "stopped": None})
        death = [] if state.is_running(launch) else [gone(launch, workspace).message]
        closing = stop_server(launch, workspace)
        code = 0 if closing.port_free else 2
        facts = {"exit_code": code, "stopped": closing.model_dump(mode="json"), "died": death[0] if death else None}
        return Output(code, [*death, stop_line(launch, closing)], facts)


def systemd_unit(root: Path, options: Options) -> Output:
    """Return a systemd unit that keeps the server running with these options."""
    session = Session(root, options, silent=True)
    words = [*(["--profile", options.profile] if options.profile else []), *(word for text in options.sets for word in ("--set", text))]
    return Output(0, [unit(root, words, session.config.serve)], None, verbatim=True)
