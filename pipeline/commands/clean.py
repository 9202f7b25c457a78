"""clean: remove what commands leave behind."""

import shutil
from pathlib import Path

from pipeline.commands.session import locked
from pipeline.engine.workspace import Workspace
from pipeline.errors import PipelineError
from pipeline.server import state
from pipeline.terminal import Output

FILES = {".gitignore", ".lock", ".lock-holder"}
MEASUREMENTS = {"runs", "noise.json", "sweep", "sweep.json"}  # kept, because they cannot be reproduced


def clean(root: Path, everything: bool) -> Output:
    """Remove records, logs and samples; with `everything` also runs, environment, models and caches. PipelineError while a server runs."""
    workspace = Workspace(root)
    launch = state.read(workspace)
    if launch is not None and state.members(launch):
        raise PipelineError(f"our server is running (pid {launch.pid})", "stop it first: `./inv stop`")
    with locked(workspace):
        keep = FILES if everything else FILES | MEASUREMENTS
        paths = [path for path in workspace.artifacts.iterdir() if path.name not in keep]
        if everything:
            paths += [workspace.server_environment, workspace.models, workspace.cache]
        for path in paths:
            if path.is_dir() and not path.is_symlink():  # a link goes, what it leads to stays
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return Output(0, [f"removed {', '.join(workspace.relative(path) for path in paths) or 'nothing'}"], None)
