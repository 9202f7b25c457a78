"""The kept runs: list them, and compare two."""

from pathlib import Path

from pipeline.engine.record import Store, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.experiments import noise
from pipeline.redact import redacted
from pipeline.runs import compare as comparison
from pipeline.runs import history as listing
from pipeline.runs import kept
from pipeline.terminal import Output, Silent

PLOT = "compare.svg"


def history(root: Path) -> Output:
    """List the kept runs, newest first."""
    workspace = Workspace(root, Silent())
    return Output(0, listing.lines(workspace), listing.data(workspace))


def compare(root: Path, first: str, second: str, anyway: bool) -> Output:
    """Compare run `second` with run `first`; 1 when a figure is worse, 2 when none can be compared, else 0."""
    workspace = Workspace(root, Silent())
    pair = kept.find(first, workspace), kept.find(second, workspace)
    record = Store(workspace.artifacts).outcome(noise.NOTE, noise.RunNoise).data
    run_noise = record if record is not None and comparison.fits(record, pair) else None
    result = comparison.compare(*pair, run_noise, anyway)
    path = workspace.artifacts / PLOT
    svg = redacted(comparison.plot(result))
    trouble = write_plot(svg, path)
    where = workspace.relative(path) if svg and not trouble else None
    plot = f"no plot: {workspace.relative(path)} cannot be written ({trouble})" if trouble else f"plot: {where}" if where else ""
    parts = [*comparison.lines(result, run_noise), *([plot] if plot else [])]
    return Output(result.exit_code, parts, comparison.data(result, where))


def write_plot(svg: str, path: Path) -> str:
    """Write the plot, or remove an older one if `svg` is empty; return the error, which changes no verdict."""
    try:
        if svg:
            write_atomic(path, svg)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return str(error.strerror)
    return ""
