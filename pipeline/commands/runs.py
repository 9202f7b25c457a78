"""The kept runs: list them, and compare two."""

from pathlib import Path

from pipeline.commands.session import Options, Session
from pipeline.engine.record import write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.redact import redacted
from pipeline.runs import compare as comparison
from pipeline.runs import history as listing
from pipeline.runs import kept
from pipeline.terminal import Output, Silent

COMPARE_PLOT = "compare.svg"


def history(root: Path) -> Output:
    """List the kept runs, newest first."""
    workspace = Workspace(root, Silent())
    return Output(0, listing.lines(workspace), listing.data(workspace))


def compare(root: Path, options: Options, first: str, second: str, only: str | None, anyway: bool) -> Output:
    """Compare run `second` with run `first`; 1 when a figure that decides is worse, 2 when none can be compared, else 0."""
    workspace = Workspace(root, Silent())
    figures = Session(root, options, silent=True).config.compare.figures if only is None else listed(only)
    a, b = kept.find(first, workspace), kept.find(second, workspace)
    measured, where_measured = comparison.noise_that_fits(a, b, workspace.artifacts)
    result = comparison.compare(a, b, measured, anyway, figures)
    path = workspace.artifacts / COMPARE_PLOT
    svg = redacted(comparison.plot(result))
    trouble = write_plot(svg, path)
    where = workspace.relative(path) if svg and not trouble else None
    plot = f"no plot: {workspace.relative(path)} cannot be written ({trouble})" if trouble else f"plot: {where}" if where else ""
    parts = [*comparison.lines(result, measured, where_measured), *([plot] if plot else [])]
    return Output(result.exit_code, parts, comparison.data(result, where))


def listed(only: str) -> list[str]:
    """Return the figures that --only names; ConfigError where it names none."""
    names = [name for part in only.split(",") if (name := part.strip())]
    if not names:
        raise ConfigError("--only: expected figures, as in bench.ttft_ms_p95,bench.decode_tok_s_p50")
    return names


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
