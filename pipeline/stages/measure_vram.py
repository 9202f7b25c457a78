"""measure-vram: Measure the server's GPU and host memory under load, with a baseline from before its start."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import reduce
from itertools import chain
from operator import or_
from pathlib import Path
from typing import Literal

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.config.schema import VramConfig
from pipeline.engine.record import Measurement, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, MeasureError, NothingAnsweredError
from pipeline.load.generator import closed_loop
from pipeline.measure import memory
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.memory import Budget, Gaps, Sample, Span
from pipeline.message import Sentence, _
from pipeline.server.loads import LOADS_FILE, Loads, Notebook, read_loads
from pipeline.server.state import Left
from pipeline.server.watch import watched
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.values import Frozen
from pipeline.vllm.breakdown import Breakdown, breakdown
from pipeline.vllm.kernels import compiled, is_monitored
from pipeline.vllm.kv_fill import Fill, fill_kv_cache, flag, room_of
from pipeline.vllm.meter import Meter, metered
from pipeline.vllm.plan import plan_error_figure

OWN = "measure-vram"  # the sender's name of the load that this stage adds
OUTPUT_TOKENS = 32
REQUEST_TIMEOUT_S = 60
SLICE_S = 60.0  # answers are kept in memory for at most one slice of load


class Load(Frozen):
    """The load on the server: its spans by the monotonic clock, its requests, and the readings of the server's metrics.

    `seconds_by` splits the spans by sender, where other tests contributed. Requests and KV-cache readings are those of this
    stage's own load only. `preempted` counts the preemptions during the load; None where the server's metrics lack them.
    """

    spans: list[Span] = []
    seconds_by: dict[str, float] = {}
    requests: int = 0
    failed: int = 0
    error: str = ""  # of the first failed request
    kv_peak_percent: float | None = None
    kv_readings: int = 0
    preempted: int | None = None

    @property
    def seconds(self) -> float:
        """Return the duration of the load, without pauses."""
        return memory.total_s(self.spans)


class Anchor(Frozen):
    """One moment on two clocks: the monotonic clock of the samples and the wall clock of the records."""

    monotonic_s: float
    wall: datetime

    def at(self, wall: datetime) -> float:
        """Return the wall-clock time `wall` on the monotonic clock."""
        return self.monotonic_s + (wall - self.wall).total_seconds()


class MemoryUse(Measurement):
    """Peak, steady state, drift and stability of device and host memory, the load, and the breakdown in the server's log.

    `method` names how the server's device memory is separated from that of other programs. `preemptions` counts since the
    server's start; None where its metrics lack them. `throttled` and `gpu_errors` count samples by reason, the throttled
    ones under load only. `device_peaks_mib` is keyed by the device's number among the visible ones. `compiled_kernels` are
    those that the log names as compiled after the warm-up; None where the server did not watch for them. `fill` is how far the
    KV cache was filled on purpose; None where an older version did not, and in a soak. `pss_samples` counts the samples of the
    host's PSS under load.
    """

    method: Sentence
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
    compiled_kernels: list[str] | None = None
    fill: Fill | None = None
    pss_samples: int | None = None


SoakState = Literal["running", "interrupted", "complete", "failed"]


class Soak(MemoryUse):
    """Memory under hours of load, and the state of the soak; one that was killed stays `running`."""

    asked_h: float
    state: SoakState


def measure_vram(settings: VramConfig, machine: Machine, server: Server, workspace: Workspace) -> MemoryUse:
    """Evaluate the server's memory samples under the load of the other tests; add load where theirs was too short."""
    if server.attached:
        raise MeaninglessError(_("the memory of the server at {address} is not ours to measure", address=server.attached))
    with watched(server.handle, workspace) as target:
        return load_and_read(settings, machine, server, target, workspace)


def load_and_read(settings: VramConfig, machine: Machine, server: Server, target: Endpoint, workspace: Workspace) -> MemoryUse:
    """Return the record of a run; the caller watches the server.

    The load of router, determinism and bench on this server's launches counts; load is added only up to `load_s` seconds, and
    as much as this launch lacks to tell whether memory is stable, where `load_s` is enough for that. Of a longer load the last
    `load_s` seconds count, because the first request of each kind allocates memory once. The first minute of each launch's load
    (a fifth where it lasts less than five minutes) is its warm-up, which steady state, range, drift and change leave out. The
    KV cache is filled first.
    """
    paths = [(workspace.root / launch.samples).with_name(LOADS_FILE) for launch in server.handle.launches]
    filled_at, fill = time.monotonic(), fill_once(settings, server, target, workspace)
    if fill.requests:
        Notebook(paths[-1], OWN).fill(filled_at, fill.preempted)
    loads = [read_loads(path) for path in paths]
    spans = [memory.united(chain(*each.spans.values())) for each in loads]
    budget = budget_of(settings)
    tells_s = budget.load_s("host_rss" if machine.reason else "vram")
    lacks_s = tells_s - memory.total_s(spans[-1]) if tells_s <= settings.load_s else 0.0
    missing_s = max(0.0, settings.load_s - memory.total_s(chain(*spans)), lacks_s)
    load = Load(preempted=0)
    if missing_s:
        load, meter = add_load(settings, missing_s, server, target, workspace)
        own_load = Loads({OWN: load.spans}, [] if meter.preemptions_before is None else [(load.spans[0][0], meter.preemptions_before)])
        loads[-1] = loads[-1] | own_load
        spans[-1] = memory.united([*spans[-1], *load.spans])
    else:
        workspace.say(f"memory: the other tests put {settings.load_s:g} s of load on the server, so none is added")
        meter = Meter(Control.of(target))
    counted_spans = memory.latest(list(chain(*spans)), settings.load_s)
    calm = chain(*(memory.latest(each, memory.warmed_s(memory.total_s(each))) for each in spans))
    preempted = preempted_since(counted_spans[0][0], loads, spans, meter.preemptions)
    load = load.model_copy(update={"spans": counted_spans, "seconds_by": seconds_by(loads, counted_spans), "preempted": preempted})
    memories = [
        *(LaunchMemory(launch, workspace, may_be_gone=True) for launch in server.handle.earlier),
        LaunchMemory(server.handle, workspace),
    ]
    record = memory_use(load, budget, meter.preemptions, machine, server, *memories, calm=memory.shared(counted_spans, list(calm)))
    filled = not_measured("%", fill.why)
    if fill.percent is not None:
        filled = Figure(value=fill.percent, unit="%", n=fill.readings, reason=fill.why)
    kernels = compiled_kernels(server.handle.launches, workspace)
    return record.model_copy(update={"compiled_kernels": kernels, "fill": fill, "figures": {**record.figures, "kv_filled_percent": filled}})


def budget_of(settings: VramConfig) -> Budget:
    """Return what memory may grow by."""
    return Budget(mib=settings.drift_budget_mib, horizon_h=settings.horizon_h)


def fill_once(settings: VramConfig, server: Server, target: Endpoint, workspace: Workspace) -> Fill:
    """Fill the KV cache, where its size is known and the settings give it time."""
    if not settings.fill_s:
        return Fill(why=_("vram.fill_s is 0"))
    with suppress(OSError):
        log = (workspace.root / server.handle.log).read_text(encoding="utf-8", errors="replace")
        if kv_tokens := breakdown(log).kv_tokens or (server.plan.kv_tokens if server.plan else None):
            workspace.say(f"memory: filling the KV cache of {kv_tokens} tokens, at most {settings.fill_s:g} s")
            engines = flag(server.command, "--data-parallel-size") or 1
            return fill_kv_cache(target, server.model, room_of(server.command, kv_tokens, server.max_model_len), settings.fill_s, engines)
    return Fill(why=_("neither the server's log nor the plan tells the size of the KV cache"))


def add_load(settings: VramConfig, seconds: float, server: Server, target: Endpoint, workspace: Workspace) -> tuple[Load, Meter]:
    """Put load on the server for `seconds`; return the load and the meter of its metrics."""
    workspace.say(f"memory: {seconds:.3g} s of load at concurrency {settings.concurrency}")
    on_progress = workspace.progress("memory, seconds of load", round(seconds))
    with metered(target) as meter:
        start_s = time.monotonic()
        load = Load(spans=[(start_s, start_s)], preempted=0)
        while (left_s := start_s + seconds - time.monotonic()) > 0 and target.alive():
            load = apply_load(load, target, server.model, settings.concurrency, min(left_s, SLICE_S), on_progress)
    if load.failed == load.requests:
        raise NothingAnsweredError(f"memory: no request of the load succeeded: {load.error or 'none was sent'}", "see the server's log")
    return with_readings(load, meter), meter


def seconds_by(launches: Sequence[Loads], counted_spans: Sequence[Span]) -> dict[str, float]:
    """Return the seconds of the counted load by sender."""
    spans = reduce(or_, launches).spans
    seconds_of = {who: memory.total_s(memory.shared(memory.united(each), counted_spans)) for who, each in spans.items()}
    return {who: round(seconds, 1) for who, seconds in seconds_of.items() if seconds}


def preempted_since(at_s: float, launches: Sequence[Loads], spans: Sequence[Sequence[Span]], now: int | None) -> int | None:
    """Return the preemptions since `at_s`, or since the last reading before it; None where a launch's count is unknown.

    What filling the KV cache preempted, now or when this stage ran before, is not the load's doing.
    """
    total = 0
    for number, (loads, load_spans) in enumerate(zip(launches, spans, strict=True), 1):
        if not load_spans or load_spans[-1][1] <= at_s:
            continue
        count_at_end = now if number == len(launches) else max((count for _, count in loads.preemptions), default=None)
        since_s, before = max(((at, count) for at, count in loads.preemptions if at <= at_s), default=(0.0, 0))
        by_fills = [count for at, count in loads.fills if at >= since_s]
        if count_at_end is None or None in by_fills:
            return None
        total += count_at_end - before - sum(count or 0 for count in by_fills)
    return total


def apply_load(
    load: Load, target: Endpoint, model: str, concurrency: int, seconds: float, on_progress: Callable[[int], None] = lambda _load_s: None
) -> Load:
    """Keep `concurrency` requests in flight for `seconds`; return `load` with their counts added and its last span extended.

    `on_progress` receives the total seconds of load.
    """
    start_s: float | None = None  # set once the client is ready to send
    payloads = (
        streamed(model, [{"role": "user", "content": f"Tell story number {number}."}], OUTPUT_TOKENS, ignore_eos=True)
        for number in itertools.count(load.requests)
    )

    def keep_going() -> bool:
        nonlocal start_s
        start_s = start_s or time.monotonic()
        elapsed_s = time.monotonic() - start_s
        on_progress(int(load.seconds + min(elapsed_s, seconds)))
        return elapsed_s < seconds

    answers, _ = closed_loop(target, payloads, concurrency, REQUEST_TIMEOUT_S, keep_going)
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
    """Return `load` with the meter's readings added to its own."""
    peaks = [peak for peak in (load.kv_peak_percent, meter.kv_peak_percent) if peak is not None]
    uncounted = load.preempted is None or meter.preempted is None
    return load.model_copy(
        update={
            "kv_peak_percent": max(peaks, default=None),
            "kv_readings": load.kv_readings + meter.readings,
            "preempted": None if uncounted else (load.preempted or 0) + (meter.preempted or 0),
        }
    )


def compiled_kernels(launches: Iterable[Left], workspace: Workspace) -> list[str] | None:
    """Return the kernels that the logs name as compiled after the warm-up; None where no server watched for them."""
    names: list[str] | None = None
    for launch in launches:
        with suppress(OSError):
            log = (workspace.root / launch.log).read_bytes()
            if is_monitored(log.decode("utf-8", errors="replace")):
                names = [*(names or []), *compiled(log[launch.log_start :].decode("utf-8", errors="replace"))]
    return None if names is None else list(dict.fromkeys(names))


class LaunchMemory:
    """The memory samples and the log of a launch; the samples are read incrementally, the log once.

    The files of a launch before a restart may be missing (`may_be_gone`); whatever is left of them counts.
    """

    def __init__(self, launch: Left, workspace: Workspace, may_be_gone: bool = False) -> None:
        self.samples = Samples(workspace.root / launch.samples, may_be_gone)
        self.digest = memory.Digest()
        log = workspace.root / launch.log
        text = "" if may_be_gone and not log.exists() else log.read_text(encoding="utf-8", errors="replace")
        self.breakdown = breakdown(text)


def memory_use(
    load: Load,
    budget: Budget,
    preemptions: int | None,
    machine: Machine,
    server: Server,
    *memories: LaunchMemory,
    calm: Sequence[Span] | None = None,
) -> MemoryUse:
    """Return the record of the memory under `load`, from the launches' samples and logs; `calm` is the load without its warm-up."""
    for memory_of_launch in memories:
        memory_of_launch.digest.take(memory_of_launch.samples.new(), load.spans)
    digests = [memory_of_launch.digest for memory_of_launch in memories if memory_of_launch.digest.times]
    if not any(digest.loaded for digest in digests):
        raise MeasureError("memory: the sampler wrote nothing during the load", f"see sampler.log beside {server.handle.samples}")
    vram_series = [memory.told_apart(digest.own, digest.used, digest.baseline) for digest in digests]
    errors = dict(sorted(sum((digest.errors for digest in digests), Counter[str]()).items()))
    error_list = ", ".join(f"{name} in {count} samples" for name, count in errors.items())
    no_gpu = machine.reason or (
        _("the driver failed: {reason}", reason=error_list) if error_list else _("the driver tells no memory figures")
    )
    series = {
        "vram": [points for _, points in vram_series],
        "host_pss": [digest.host["pss_mib"] for digest in digests],
        "host_rss": [digest.host["rss_mib"] for digest in digests],
    }
    calm = memory.settled(load.spans) if calm is None else calm
    figures: dict[str, Figure] = {}
    for name, launches in series.items():
        reason = no_gpu if name == "vram" else _("no sample under load")
        figures |= memory.series_figures(name, launches, load.spans, calm, budget, reason)
    devices: dict[int, float] = {}
    for digest in digests:
        devices |= {at: max(peak, devices.get(at, peak)) for at, peak in digest.device_peaks_mib().items()}
    peak = figures["vram_peak_mib"]
    if len(devices) > 1:  # the plan is for a single device
        peak = Figure(value=max(devices.values()), unit="MiB", n=peak.n)
    figures["plan_error"] = plan_error_figure(server.plan, peak)
    kv_reason = _("the server's metrics do not tell") if load.requests else _("it is read while load is added, and none was")
    kv_peak = not_measured("%", kv_reason)
    if load.kv_peak_percent is not None:
        kv_peak = Figure(value=load.kv_peak_percent, unit="%", n=load.kv_readings)
    preempted = not_measured("", _("the server does not count preemptions"))
    if load.preempted is not None:
        preempted = Figure(value=load.preempted, unit="", n=int(round(load.seconds, 3)))
    states = sum((digest.states for digest in digests), memory.States())
    ends = [*(digest.times[-1] for digest in digests[:-1]), max(load.spans[-1][1], digests[-1].times[0])]
    return MemoryUse(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={**figures, **states.figures(no_gpu), "kv_cache_peak": kv_peak, "preemptions": preempted},
        method=vram_series[-1][0],
        samples=sum(len(digest.times) for digest in digests),
        samples_file=server.handle.samples,
        anchor=Anchor(monotonic_s=time.monotonic(), wall=now()),
        load=load,
        gaps=memory.together([memory.gaps(digest.times, [(digest.times[0], end)]) for digest, end in zip(digests, ends, strict=True)]),
        baseline_gpu_mib=memories[-1].digest.baseline,
        device_peaks_mib=devices,
        breakdown=memories[-1].breakdown,
        preemptions=preemptions,
        throttled=dict(sorted(states.reasons.items())),
        gpu_errors=errors,
        pss_samples=sum(len(memory.within(points, load.spans)) for points in series["host_pss"]),
    )


class Samples:
    """A file of samples that is still being written; each read continues where the last one ended. `lines` counts the lines read."""

    def __init__(self, path: Path, may_be_gone: bool = False) -> None:
        self.path = path
        self.may_be_gone = may_be_gone
        self.offset = self.lines = 0

    def new(self) -> Iterator[Sample]:
        """Yield the samples since the last read; an unfinished line is left for the next one, a damaged line is skipped."""
        try:
            file = self.path.open("rb")
        except OSError as error:
            if self.may_be_gone:
                return
            raise MeasureError(f"memory: no samples: {error}", "restart the server with `invoke serve --force`") from error
        with file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                self.lines += 1
                with suppress(ValueError):
                    sample = json.loads(line)
                    if isinstance(sample, dict) and isinstance(sample.get("t"), int | float):
                        yield sample


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples in the file."""
    return Samples(path).new()
