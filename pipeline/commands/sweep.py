"""sweep: the whole chain for each cell of a matrix of models and settings."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from pipeline.commands.session import CONFIG_FILE, Options, Session, locked
from pipeline.config.layers import load_layers
from pipeline.contexts import visible_devices
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError
from pipeline.server import state
from pipeline.stages.check_gpu import check_gpu
from pipeline.sweep.rendering import render_again
from pipeline.sweep.run import Sweeping, SweepOptions
from pipeline.terminal import MARKS, Output, Silent, write


def sweep(root: Path, options: Options, grid: str | None, dry_run: bool, ray_address: str | None) -> Output:
    """Run the pipeline for each cell of a matrix; 0 when a cell passes every gate, 1 when none does, 2 when none was measured."""
    layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
    workspace = Workspace(root, Silent())
    base = layers.config(None)
    machine = check_gpu(base.gpu.model_copy(update={"required": False}), visible_devices(base.serve))

    def progress(text: str) -> None:
        if not options.quiet or text.startswith(MARKS["failed"]):
            write(sys.stderr, text)

    cells = Sweeping(layers, machine, SweepOptions(grid, ray_address, dry_run, options.force, options.sets), workspace, progress)
    if dry_run:
        return cells.dry_run()
    with locked(workspace):
        launch = state.read(workspace)
        if launch is not None and state.is_running(launch):
            raise BusyError(f"our server runs (pid {launch.pid}) and would disturb the cells", "stop it first: `./inv stop`")
        output, session = cells.run(), Session(root, options)
        return replace(output, parts=[*output.parts, render_again(session.pipeline, session.config.report.output)])
