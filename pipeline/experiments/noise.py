"""calibrate-noise: how far figures move between starts of the server, so that `compare` does not take noise for a change."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.contexts import request_limits
from pipeline.engine.record import Measurement
from pipeline.errors import ConfigError
from pipeline.experiments.inputs import ServerInputs
from pipeline.measure import comparison
from pipeline.measure.directions import direction_of
from pipeline.measure.verdicts import digits
from pipeline.report.noise import NOISE_NOTE, FigureNoise, RunNoise
from pipeline.server.stop import stop_current
from pipeline.server.watch import watched
from pipeline.stages import bench, test_router
from pipeline.stages.serve import Server

ROUTER_CASES = 16  # enough for the latency; the whole suite would take minutes per start


def parse_starts(starts: str) -> int:
    """Return the number of starts; ConfigError for anything but an integer of at least 2."""
    if not starts.isdecimal() or int(starts) < 2:
        raise ConfigError(f"--starts: expected a number from 2 on, got {starts!r}", "for example --starts 3")
    return int(starts)


def calibrated(inputs: ServerInputs, starts: int) -> RunNoise:
    """Start the server `starts` times, measure and stop it each time; the stages' records and stamps stay unchanged."""
    measurements: list[list[Measurement]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, starts + 1):
            inputs.workspace.say(f"start {number} of {starts}")
            try:
                server = inputs.serve(inputs.config.serve)
                measurements.append(list(measured(inputs, server, Path(folder))))
            finally:
                stop_current(inputs.workspace)
    return RunNoise(
        device=server.device,
        model=server.model,
        vllm=server.vllm,
        starts=starts,
        simulated=any(record.simulated for records in measurements for record in records),
        figures=spreads(measurements),
    )


def measured(inputs: ServerInputs, server: Server, folder: Path) -> list[Measurement]:
    """Measure one start: bench, and the router test unless the weights are random."""
    config, workspace = inputs.config, inputs.workspace
    with watched(server.handle, workspace) as target:
        records: list[Measurement] = [
            bench.measure(config.bench, request_limits(config.gates), server, target, workspace, folder / "bench.jsonl.gz")
        ]
        if not server.random_weights:
            router = config.router.model_copy(update={"cases": min(ROUTER_CASES, config.router.cases), "unary_cases": 0})
            records.append(test_router.send_suite(router, server, target, workspace, folder / "test-router.jsonl"))
    return records


def spreads(measurements: Sequence[Sequence[Measurement]]) -> dict[str, FigureNoise]:
    """Return the spread of each timed figure that every start gave; `test-router` itself judges the quality of answers."""
    result = {}
    stages = {bench.BenchResult: "bench", test_router.RouterResult: "test-router"}
    for position, record in enumerate(measurements[0]):
        for name, figure in record.figures.items():
            figures = [records[position].figures.get(name) for records in measurements]
            values = [one.valid for one in figures if one is not None and one.valid is not None]
            metric = f"{stages[type(record)]}.{name}"
            entry = direction_of(metric)
            is_timed = entry is not None and entry.kind is not None and entry.kind.noise > 0
            spread = comparison.spread(values) if is_timed and len(values) == len(measurements) else None
            if spread is not None:
                result[metric] = FigureNoise(
                    unit=figure.unit, n=spread.n, values=values, relative_range=spread.relative_range, variation=spread.variation
                )
    return result


def lines(noise: RunNoise) -> list[str]:
    """Return the spread as lines for the terminal."""
    width = max((len(name) for name in noise.figures), default=0)
    return [
        f"run-to-run noise of {noise.starts} starts: {noise.model} on {noise.device}, vLLM {noise.vllm}",
        *(
            f"{name:<{width}}  {digits(min(entry.values))} to {digits(max(entry.values))} {entry.unit}, "
            f"range {percent(entry.relative_range)}, coefficient of variation {percent(entry.variation)}"
            for name, entry in noise.figures.items()
        ),
        f"artifacts/{NOISE_NOTE}.json; `./inv compare` takes it where device, model and vLLM are these",
    ]


def percent(share: float) -> str:
    """Return the share in percent, to a tenth."""
    return f"{100 * share:.1f} %"
