"""history: the kept runs, each with its environment, its verdict and a few figures."""

from typing import Any

from pipeline.engine.workspace import Workspace
from pipeline.errors import RecordError
from pipeline.measure.verdicts import digits
from pipeline.runs.kept import Run, readable, short
from pipeline.terminal import OutputPart, TextTable

HEADLINES = {
    "bench.ttft_ms_p95": "TTFT p95",
    "bench.decode_tok_s_p50": "decode",
    "test-router.constrained_latency_ms_p50": "router p50",
    "measure-vram.vram_peak_mib": "VRAM peak",
}


def lines(workspace: Workspace) -> list[OutputPart]:
    """Return the runs for the terminal, and why others cannot be read."""
    readings = readable(workspace)
    runs = [run for run in readings if isinstance(run, Run)]
    broken = [f"cannot be read: {error.message}" for error in readings if isinstance(error, RecordError)]
    if not readings:
        return ["no run is kept yet; `./inv all` keeps one"]
    header = ("time (UTC)", "id", "profile", "device", "model", "verdict", *HEADLINES.values())
    return [*([TextTable(header, [cells_of(run) for run in runs])] if runs else []), *broken]


def cells_of(run: Run) -> list[str]:
    """Return a run's cells of the table."""
    document = run.document
    facts = document.environment
    when = f"{document.finished:%Y-%m-%d %H:%M:%S}" if document.finished else "-"
    name = short(run.name) if run.name == document.run_id else run.name
    passed = sum(gate.verdict == "PASS" for gate in document.gates)
    figures = [document.figure(metric) for metric in HEADLINES]
    values = [
        f"{digits(figure.value)} {figure.unit}" if figure and figure.value is not None and not figure.invalid else "-" for figure in figures
    ]
    return [
        when,
        name,
        facts.profile,
        facts.device or "-",
        facts.model or "-",
        f"{document.verdict} ({passed} of {len(document.gates)} gates)",
        *values,
    ]


def data(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the runs for programs."""
    return [entry(run) for run in readable(workspace)]


def entry(run: Run | RecordError) -> dict[str, Any]:
    """Return a run for programs, or the error if it cannot be read."""
    if isinstance(run, RecordError):
        return {"error": run.message}
    document = run.document
    figures = {metric: document.figure(metric) for metric in HEADLINES}
    return {
        "id": run.name,
        "started": document.started and document.started.isoformat(),
        "finished": document.finished and document.finished.isoformat(),
        **document.environment.model_dump(include={"profile", "device", "model", "vllm"}),
        "verdict": document.verdict,
        "exit_code": document.exit_code,
        "headline": document.headline,
        "figures": {metric: figure.value if figure else None for metric, figure in figures.items()},
    }
