"""measure-vram: what the server holds of the GPU's memory and of the host's, from before its start, under load."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.client.load import Target, closed_loop, streamed
from pipeline.client.meter import Meter, metered
from pipeline.config import VramConfig
from pipeline.errors import MeaninglessError, MeasureError, NothingAnsweredError
from pipeline.gpu.plan import plan_error_figure
from pipeline.measure import memory
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.memory import Gaps, Sample, Span
from pipeline.record import Measurement, now
from pipeline.server.breakdown import Breakdown, breakdown
from pipeline.server.watch import watched
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.workspace import Workspace

OUTPUT_TOKENS = 32
TIMEOUT_S = 60
SLICE_S = 60.0  # answers are kept no longer than this


class Load(BaseModel):
    """What the server had to do: from when to when by the monotonic clock, how many requests, what its metrics said meanwhile.

    `preempted` counts the preemptions of the load; None where the server's metrics do not tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    spans: list[Span] = []
    requests: int = 0
    failed: int = 0
    error: str = ""  # of the first that failed
    kv_peak_percent: float | None = None
    kv_readings: int = 0
    preempted: int | None = None

    @property
    def seconds(self) -> float:
        """Return how long the load lasted, pauses left out."""
        return sum(end - begin for begin, end in self.spans)


class Anchor(BaseModel):
    """The same moment by the monotonic clock, which samples have, and by the wall clock, which records have."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    monotonic_s: float
    wall: datetime

    def at(self, wall: datetime) -> float:
        """Return that moment by the monotonic clock."""
        return self.monotonic_s + (wall - self.wall).total_seconds()


class MemoryUse(Measurement):
    """Peak, steady, drift and stability of device and host memory, how the device's was told apart, the load, and what the log says.

    `preemptions` counts since the server's start; None where its metrics do not tell. `throttled` and `gpu_errors` count
    samples by reason, throttled ones under load. `device_peaks_mib` is by the number of the device among the visible ones.
    """

    method: str
    samples: int
    samples_file: str
    anchor: Anchor
    load: Load
    gaps: Gaps
    baseline_gpu_mib: float | None
    device_peaks_mib: dict[int, float] = {}
    breakdown: Breakdown
    preemptions: int | None
    throttled: dict[str, int]
    gpu_errors: dict[str, int]


SoakState = Literal["running", "interrupted", "complete", "failed"]


class Soak(MemoryUse):
    """Memory under a load of hours, and how far that is: `running` is also what a killed one leaves."""

    asked_h: float
    state: SoakState


def measure_vram(settings: VramConfig, machine: Machine, server: Server, workspace: Workspace) -> MemoryUse:
    """Put load on the server and read its memory samples, GPU and host."""
    if server.attached:
        raise MeaninglessError(f"the memory of the server at {server.attached} is not ours to measure")
    with watched(server.handle, workspace) as target:
        return load_and_read(settings, machine, server, target, workspace)


def load_and_read(settings: VramConfig, machine: Machine, server: Server, target: Target, workspace: Workspace) -> MemoryUse:
    """Return the record of a run; the server is watched by the caller."""
    workspace.say(f"memory: {settings.load_s:g} s of load at concurrency {settings.concurrency}")
    told = workspace.progress("memory, seconds of load", round(settings.load_s))
    with metered(target) as meter:
        began = time.monotonic()
        load = Load(spans=[(began, began)], preempted=0)
        while (left_s := began + settings.load_s - time.monotonic()) > 0 and target.alive():
            load = pressed(load, target, server.model, settings.concurrency, min(left_s, SLICE_S), told)
    load = with_readings(load, meter)
    if load.failed == load.requests:
        raise NothingAnsweredError(f"memory: no request of the load succeeded: {load.error or 'none was sent'}", "see the server's log")
    return memory_use(load, meter.preemptions, machine, server, Watch(server, workspace))


def pressed(
    load: Load, target: Target, model: str, concurrency: int, seconds: float, told: Callable[[int], None] = lambda _load_s: None
) -> Load:
    """Keep so many requests in flight for so long; return `load` with what that added, its last span extended to the end.

    `told` hears the seconds of load so far.
    """
    began: float | None = None  # when the client is ready to send
    payloads = (
        streamed(model, [{"role": "user", "content": f"Tell story number {number}."}], OUTPUT_TOKENS, ignore_eos=True)
        for number in itertools.count(load.requests)
    )

    def keep_going() -> bool:
        nonlocal began
        began = began or time.monotonic()
        passed_s = time.monotonic() - began
        told(int(load.seconds + min(passed_s, seconds)))
        return passed_s < seconds

    answers, _ = closed_loop(target, payloads, concurrency, TIMEOUT_S, keep_going)
    errors = [answer.error for answer in answers if not answer.ok]
    *before, (begin, _) = load.spans
    return load.model_copy(
        update={
            "spans": [*before, (begin, time.monotonic())],
            "requests": load.requests + len(answers),
            "failed": load.failed + len(errors),
            "error": load.error or next(iter(errors), ""),
        }
    )


def with_readings(load: Load, meter: Meter) -> Load:
    """Return `load` with what the meter read since it was made, added to what it held before."""
    peaks = [peak for peak in (load.kv_peak_percent, meter.kv_peak_percent) if peak is not None]
    unknown = load.preempted is None or meter.preempted is None
    return load.model_copy(
        update={
            "kv_peak_percent": max(peaks, default=None),
            "kv_readings": load.kv_readings + meter.readings,
            "preempted": None if unknown else (load.preempted or 0) + (meter.preempted or 0),
        }
    )


class Watch:
    """What samples and log of a launch say: read on from where the last reading ended; the log, of the start only, once."""

    def __init__(self, server: Server, workspace: Workspace) -> None:
        self.samples = Samples(workspace.root / server.handle.samples)
        self.digest = memory.Digest()
        self.breakdown = breakdown((workspace.root / server.handle.log).read_text(encoding="utf-8", errors="replace"))


def memory_use(load: Load, preemptions: int | None, machine: Machine, server: Server, watch: Watch) -> MemoryUse:
    """Return what the launch's samples and its log say of this load."""
    digest = watch.digest
    digest.take(watch.samples.new(), load.spans)
    if not digest.loaded:
        raise MeasureError("memory: the sampler wrote nothing during the load", f"see sampler.log beside {server.handle.samples}")
    method, gpu = memory.told_apart(digest.own, digest.used, digest.baseline)
    errors = dict(sorted(digest.errors.items()))
    listed = ", ".join(f"{name} in {count} samples" for name, count in errors.items())
    no_gpu = machine.reason or (f"the driver failed: {listed}" if listed else "the driver tells no memory figures")
    series = {"vram": gpu, "host_pss": digest.host["pss_mib"], "host_rss": digest.host["rss_mib"]}
    figures: dict[str, Figure] = {}
    for name, points in series.items():
        reason = no_gpu if name == "vram" else "no sample under load"
        figures |= memory.series_figures(name, points, load.spans, load.preempted, reason)
    devices, peak = digest.device_peaks_mib(), figures["vram_peak_mib"]
    if len(devices) > 1:  # the plan is for one of them
        peak = Figure(value=max(devices.values()), unit="MiB", n=peak.n)
    figures["plan_error"] = plan_error_figure(server.plan, peak)
    kv = not_measured("%", "the server's metrics do not tell")
    if load.kv_peak_percent is not None:
        kv = Figure(value=load.kv_peak_percent, unit="%", n=load.kv_readings)
    return MemoryUse(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={**figures, **digest.states.figures(no_gpu), "kv_cache_peak": kv},
        method=method,
        samples=len(digest.times),
        samples_file=server.handle.samples,
        anchor=Anchor(monotonic_s=time.monotonic(), wall=now()),
        load=load,
        gaps=memory.gaps(digest.times, [(digest.times[0], load.spans[-1][1])]),
        baseline_gpu_mib=digest.baseline,
        device_peaks_mib=devices,
        breakdown=watch.breakdown,
        preemptions=preemptions,
        throttled=dict(sorted(digest.states.reasons.items())),
        gpu_errors=errors,
    )


class Samples:
    """A file of samples that is still written; each reading goes on where the last one ended. `lines` counts those read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = self.lines = 0

    def new(self) -> Iterator[Sample]:
        """Yield the samples since the last reading; a line that is being written waits, one that a power cut spoilt is left out."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise MeasureError(f"memory: no samples: {error}", "restart the server with `invoke serve --force`") from error
        with file:
            file.seek(self.at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.at += len(line)
                self.lines += 1
                with suppress(ValueError):
                    sample = json.loads(line)
                    if isinstance(sample, dict) and isinstance(sample.get("t"), int | float):
                        yield sample


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples in the file."""
    return Samples(path).new()
