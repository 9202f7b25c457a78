"""measure-vram: what the server holds of the GPU's memory and of the host's, from before its start, under load."""

import itertools
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.client.control import PREEMPTIONS, Control
from pipeline.client.load import Target, closed_loop, streamed
from pipeline.config import VramConfig
from pipeline.errors import MeaninglessError, MeasureError, NothingAnsweredError
from pipeline.measure.figures import Figure, not_measured
from pipeline.record import Measurement
from pipeline.server.breakdown import Breakdown, breakdown
from pipeline.server.watch import watched
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.workspace import Workspace

OUTPUT_TOKENS = 32
Sample = dict[str, Any]


class MemoryUse(Measurement):
    """Peak and steady memory of device and host (MiB), how the device's was told apart, the load, and what the log says.

    `preemptions` counts since the server's start; None where its metrics do not tell.
    """

    method: str
    samples: int
    load_s: float
    load_requests: int
    baseline_gpu_mib: float | None
    breakdown: Breakdown
    preemptions: int | None


def measure_vram(settings: VramConfig, machine: Machine, server: Server, workspace: Workspace) -> MemoryUse:
    """Put load on the server and read its memory samples, GPU and host."""
    if server.attached:
        raise MeaninglessError(f"the memory of the server at {server.attached} is not ours to measure")
    with watched(server.handle, workspace) as target:
        return load_and_read(settings, machine, server, target, workspace)


def load_and_read(settings: VramConfig, machine: Machine, server: Server, target: Target, workspace: Workspace) -> MemoryUse:
    """Return the record of a run; the server is watched by the caller."""
    workspace.say(f"memory: {settings.load_s:g} s of load at concurrency {settings.concurrency}")
    began = time.monotonic()
    payloads = (
        streamed(server.model, [{"role": "user", "content": f"Tell story number {number}."}], OUTPUT_TOKENS, ignore_eos=True)
        for number in itertools.count()
    )
    told = workspace.progress("memory, seconds of load", round(settings.load_s))

    def keep_going() -> bool:
        passed_s = time.monotonic() - began
        told(min(int(passed_s), round(settings.load_s)))
        return passed_s < settings.load_s

    answers, _ = closed_loop(target, payloads, settings.concurrency, 60, keep_going)
    ended = time.monotonic()
    if not any(answer.ok for answer in answers):
        raise NothingAnsweredError(f"memory: no request of the load succeeded: {answers[0].error}", "see the server's log")
    preempted = Control(target.base_url, target.api_key).metrics().get(PREEMPTIONS)
    samples = read_samples(workspace.root / server.handle.samples)
    loaded = [sample for sample in samples if began <= sample["t"] <= ended]
    if not loaded:
        raise MeasureError("memory: the sampler wrote nothing during the load", f"see sampler.log beside {server.handle.samples}")
    baseline = next((device_use(sample, "gpu_used_mib") for sample in samples if "processes" not in sample), None)
    method, gpu = gpu_series(samples, baseline)
    _, gpu_loaded = gpu_series(loaded, baseline)
    return MemoryUse(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={
            **gpu_figures(gpu, gpu_loaded, machine.reason or "the driver tells no memory figures"),
            "host_pss_peak_mib": peak_figure([sample["pss_mib"] for sample in samples if "pss_mib" in sample]),
            "host_pss_steady_mib": steady_figure([sample["pss_mib"] for sample in loaded if "pss_mib" in sample]),
            "host_rss_peak_mib": peak_figure([sample["rss_mib"] for sample in samples if "rss_mib" in sample]),
        },
        method=method,
        samples=len(samples),
        load_s=round(ended - began, 1),
        load_requests=len(answers),
        baseline_gpu_mib=baseline,
        breakdown=breakdown((workspace.root / server.handle.log).read_text(encoding="utf-8", errors="replace")),
        preemptions=None if preempted is None else int(preempted),
    )


def read_samples(path: Path) -> list[Sample]:
    """Return the samples in the file; a last line that is being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise MeasureError(f"memory: no samples: {error}", "restart the server with `invoke serve --force`") from error
    return [json.loads(line) for line in lines if line.endswith("\n")]


def gpu_series(samples: list[Sample], baseline: float | None) -> tuple[str, list[float]]:
    """Return (method, MiB per sample): the process tree's own use where the driver tells, else used − baseline."""
    tree = [device_use(sample, "gpu_tree_mib") for sample in samples]
    own = [value for value in tree if value is not None]
    if own:
        return "NVML, sum over the server's processes", own
    if baseline is None:
        return "", []
    used = [device_use(sample, "gpu_used_mib") for sample in samples]
    return "NVML, device used − baseline before the start", [value - baseline for value in used if value is not None]


def device_use(sample: Sample, key: str) -> float | None:
    """Return the sample's sum over devices, or None where no device told a value."""
    values = [value for value in sample.get(key, []) if value is not None]
    return sum(values) if values else None


def gpu_figures(series: list[float], loaded: list[float], reason: str) -> dict[str, Figure]:
    """Return the device figures, NOT_MEASURED with `reason` where nothing was told."""
    names = ("vram_peak_mib", "vram_steady_mib", "vram_range_mib")
    if not series or not loaded:
        return {name: not_measured("MiB", reason) for name in names}
    spread = Figure(value=max(loaded) - min(loaded), unit="MiB", n=len(loaded))
    return dict(zip(names, (peak_figure(series), steady_figure(loaded), spread), strict=True))


def peak_figure(values: list[float]) -> Figure:
    """Return the largest value."""
    return Figure(value=max(values), unit="MiB", n=len(values)) if values else not_measured("MiB", "no sample")


def steady_figure(values: list[float]) -> Figure:
    """Return the median under load."""
    return Figure(value=median(values), unit="MiB", n=len(values)) if values else not_measured("MiB", "no sample")
