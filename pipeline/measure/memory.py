"""Figures from a server's memory samples: peak, steady, drift, stable, gaps, and the state of the GPU. Pure: samples in, figures out.

A sample is a line of the sampler's file as a dict: `t` in seconds, `rss_mib` and sometimes `pss_mib` of the server's processes,
`gpu_used_mib` and `gpu_tree_mib` by device, `devices` with NVML's readings of each, `gpu_error` if NVML failed.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from math import ceil, inf
from statistics import median
from typing import Any

from pipeline.measure.drift import Point, Slope, decile_change, slope_of, telling_span
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.verdicts import digits
from pipeline.message import Digits, Sentence, _
from pipeline.values import Frozen

WARM_UP_S, WARM_UP_SHARE = 60.0, 0.2  # dropped from the start of a load, whichever is shorter
SETTLING_SHARE = 0.5  # of the rise in the first half of a load; a smaller rise in the second half is not steady
GAP_PERIODS = 3
MOMENT_S = 0.05  # a client's pause from an answer to its next request
GAPS_AT_MOST = 0.05  # share of the load; with more, stability is not judged
S_PER_H = 3600
# The smallest step in which each series can grow, MiB. CUDA maps memory in pages of 2 MiB, and PyTorch asks for no less
# (kSmallBuffer in c10/cuda/CUDACachingAllocator.h); the sampler rounds host memory to 0.1.
SERIES = {"vram": 2.0, "host_pss": 0.1, "host_rss": 0.1}
STATES = {
    "gpu_utilization": ("util_percent", "%"),
    "gpu_temperature_c": ("temperature_c", "°C"),
    "gpu_power_w": ("power_w", "W"),
    "gpu_clock_mhz": ("sm_clock_mhz", "MHz"),
}
# Words in NVML's reasons for throttling a GPU; idle and application clocks are no throttling.
THROTTLES = ("thermal", "power", "slowdown")
Sample = dict[str, Any]
Span = tuple[float, float]


class Budget(Frozen):
    """How many MiB memory may grow by in so many hours of load, for it to be called stable."""

    mib: float
    horizon_h: float

    @property
    def mib_h(self) -> float:
        """Return the drift that just uses it up."""
        return self.mib / self.horizon_h

    def load_s(self, series: str) -> float:
        """Return the least load on one launch, its warm-up counted, after which a series without any step is stable.

        A little more, because the first and the last sample are not at its very ends.
        """
        return with_warm_up_s(1.02 * SERIES[series] / self.mib_h * S_PER_H)


class Gaps(Frozen):
    """Times without samples: intervals of more than three sampling periods."""

    count: int
    longest_s: float
    total_s: float


def gaps(times: Sequence[float], spans: Iterable[Span]) -> Gaps:
    """Return the gaps within the spans, whose ends count as samples; the period is the median interval of the sorted `times`."""
    steps = [after - before for before, after in pairwise(times)]
    longest_step = GAP_PERIODS * median(steps) if steps else 0.0
    inside = [[begin, *times[bisect_right(times, begin) : bisect_left(times, end)], end] for begin, end in spans]
    lengths_s = [after - before for span in inside for before, after in pairwise(span) if after - before > longest_step]
    return Gaps(count=len(lengths_s), longest_s=round(max(lengths_s, default=0.0), 3), total_s=round(sum(lengths_s), 3))


def together(parts: Sequence[Gaps]) -> Gaps:
    """Return the gaps of several launches combined."""
    return Gaps(
        count=sum(part.count for part in parts),
        longest_s=max((part.longest_s for part in parts), default=0.0),
        total_s=round(sum(part.total_s for part in parts), 3),
    )


def settled(spans: Iterable[Span]) -> list[Span]:
    """Return the spans of load, each without its warm-up."""
    return [(end - warmed_s(end - begin), end) for begin, end in spans]


def warmed_s(load_s: float) -> float:
    """Return how many seconds of a load follow its warm-up."""
    return load_s - min(WARM_UP_S, WARM_UP_SHARE * load_s)


def with_warm_up_s(settled_s: float) -> float:
    """Return the seconds of load that leave `settled_s` after its warm-up."""
    return min(settled_s + WARM_UP_S, settled_s / (1 - WARM_UP_SHARE))


def total_s(spans: Iterable[Span]) -> float:
    """Return the total length of the spans."""
    return sum(end - begin for begin, end in spans)


def united(spans: Iterable[Span]) -> list[Span]:
    """Return the spans sorted and merged, so that none overlap; a pause of up to 50 ms between requests does not split a span."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin - merged[-1][1] <= MOMENT_S:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def latest(spans: Sequence[Span], seconds: float) -> list[Span]:
    """Return the last `seconds` of the spans, which are sorted and disjoint; all of them if they are shorter."""
    tail: list[Span] = []
    for begin, end in reversed(spans):
        left_s = seconds - total_s(tail)
        if left_s <= 0:
            break
        tail.insert(0, (max(begin, end - left_s), end))
    return tail


def shared(some: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """Return the times that are in both."""
    pairs = ((max(one[0], other[0]), min(one[1], other[1])) for one in some for other in others)
    return sorted((begin, end) for begin, end in pairs if begin < end)


def within(points: Sequence[Point], spans: Iterable[Span]) -> list[Point]:
    """Return the points that lie in one of the spans; points are sorted by time."""
    return [point for begin, end in spans for point in points[bisect_left(points, (begin, -inf)) : bisect_right(points, (end, inf))]]


def under_load(points: Sequence[Point], spans: Iterable[Span]) -> list[Point]:
    """Return the points within the spans, each at the hours of load before it: pauses between the spans take no time."""
    found: list[Point] = []
    before_s = 0.0
    for begin, end in spans:
        found += [((before_s + at - begin) / S_PER_H, value) for at, value in within(points, [(begin, end)])]
        before_s += end - begin
    return found


def device_use(sample: Sample, key: str) -> float | None:
    """Return the sample's sum over devices, or None if no device has a value."""
    values = [value for value in sample.get(key, []) if value is not None]
    return sum(values) if values else None


def baseline_mib(samples: Iterable[Sample]) -> float | None:
    """Return the memory that was used on the devices before the server started."""
    readings = (device_use(sample, "gpu_used_mib") for sample in samples if "processes" not in sample)
    return next((used for used in readings if used is not None), None)


def gpu_points(samples: Sequence[Sample], baseline: float | None) -> tuple[str, list[Point]]:
    """Return (method, MiB over time): the process tree's own use if the driver reports it, else used − baseline."""
    own, used = (points((sample["t"], device_use(sample, key)) for sample in samples) for key in ("gpu_tree_mib", "gpu_used_mib"))
    return told_apart(own, used, baseline)


def told_apart(own: list[Point], used: Sequence[Point], baseline: float | None) -> tuple[str, list[Point]]:
    """Return (method, MiB over time) from the process tree's own use, or from the devices' use if that is unknown."""
    if own:
        return _("NVML, sum over the server's processes"), own
    if baseline is None:
        return "", []
    return _("NVML, device used − baseline before the start"), [(at, value - baseline) for at, value in used]


def host_points(samples: Iterable[Sample], key: str) -> list[Point]:
    """Return MiB over time of the server's processes, while there are any."""
    return points((sample["t"], sample.get(key)) for sample in samples if sample.get("processes"))


def points(pairs: Iterable[tuple[float, float | None]]) -> list[Point]:
    """Return the pairs that have a value."""
    return [(at, value) for at, value in pairs if value is not None]


def series_figures(
    name: str, launches: Sequence[Sequence[Point]], spans: Sequence[Span], calm: Sequence[Span], budget: Budget, reason: str
) -> dict[str, Figure]:
    """Return the figures of one series, each named with the prefix `name`; those without points under load carry `reason` instead.

    `launches` are its points by start of the server, `spans` the load, `calm` the load after its warm-up. The peak is taken
    over all points, the other figures over the calm ones: range and change are the largest within one launch, and the drift,
    over hours of load, is that of changes within one launch, because a restart is not drift. `stable` is 100 or 0 %, and its n
    is the seconds of load.
    """
    highest = max((value for series in launches for _, value in series), default=None)
    measured = highest is not None and any(within(series, spans) for series in launches)
    peak = Figure(value=highest, unit="MiB", n=sum(map(len, launches))) if measured else not_measured("MiB", reason)
    settled = [series for series in launches if within(series, calm)]
    if not settled:
        units = {"steady_mib": "MiB", "range_mib": "MiB", "drift_mib_h": "MiB/h", "change_mib": "MiB", "stable": "%"}
        return {f"{name}_peak_mib": peak, **{f"{name}_{part}": not_measured(unit, reason) for part, unit in units.items()}}
    calm_launches = [within(series, calm) for series in settled]
    values, n = [[value for _, value in series] for series in calm_launches], sum(map(len, calm_launches))
    slope = slope_of([under_load(series, calm) for series in settled], SERIES[name])
    drift = not_measured("MiB/h", _("one sample has no slope"))
    if slope is not None:
        drift = Figure(value=slope.value, unit="MiB/h", n=n, low=slope.low, high=slope.high)
    missing = gaps([at for series in calm_launches for at, _ in series], calm)
    found = {
        "peak_mib": peak,
        "steady_mib": Figure(value=median(chain(*values)), unit="MiB", n=n),
        "range_mib": Figure(value=max(max(each) - min(each) for each in values), unit="MiB", n=n),
        "drift_mib_h": drift,
        "change_mib": Figure(value=max(map(decile_change, values)), unit="MiB", n=n),
        "stable": stable(slope, n, missing, total_s(spans), budget),
    }
    return {f"{name}_{part}": figure for part, figure in found.items()}


def stable(slope: Slope | None, samples: int, missing: Gaps, load_s: float, budget: Budget) -> Figure:
    """Return 100 % where the upper bound of the drift keeps the budget over the horizon, 0 % where the lower one does not; else undecided.

    n is the whole seconds of load; the gate decides how many are enough. A rise that in the second half of the load is less than
    half of that in the first is not steady: nothing follows from it for the horizon.
    """
    load_s = round(load_s, 3)  # rounding errors of the sum must not cost a whole second
    if slope is None or slope.low is None or slope.high is None:
        return not_measured("%", _("n = {n} samples are too few for a bound of the slope", n=samples))
    if missing.total_s > GAPS_AT_MOST * load_s:
        values = {"value": digits(missing.total_s), "target": digits(load_s)}
        return not_measured("%", _("samples are missing for {value} s of {target} s of load", **values))
    low, high = (digits(bound * budget.horizon_h) for bound in (slope.low, slope.high))
    said = {"hours": Digits(f"{budget.horizon_h:g}"), "target": Digits(f"{budget.mib:g}")}
    if slope.high <= budget.mib_h:
        return Figure(value=100.0, unit="%", n=int(load_s))
    first, second = slope.halves
    if slope.low > budget.mib_h and second < SETTLING_SHARE * first:
        rises = {"first": digits(first), "second": digits(second)}
        why = _(
            "it rose by {first} MiB in the first half of the load and by {second} in the second: it may still be settling, and more load "
            "would tell (vram.load_s)",
            **rises,
        )
        return undecided(why, load_s)
    if slope.low > budget.mib_h:
        why = _("rises by at least {low} MiB in {hours} h of load; {target} are allowed", low=low, **said)
        return Figure(value=0.0, unit="%", n=int(load_s), reason=why)
    short = _("the load was too short to say so: between {low} and {high} MiB in {hours} h", low=low, high=high, hours=said["hours"])
    return undecided(_("{reason}; {more}", reason=short, more=what_tells(slope, budget)), load_s)


def undecided(reason: Sentence, load_s: float) -> Figure:
    """Return that this load does not show whether memory is stable, and why."""
    return Figure(value=None, unit="%", n=int(load_s), low=0.0, high=100.0, reason=reason)


def what_tells(slope: Slope, budget: Budget) -> Sentence:
    """Return how much load on one launch would tell, if memory goes on as it does."""
    span_h = telling_span(slope, budget.mib_h)
    if span_h is None or span_h > budget.horizon_h:
        return _("no load of less than {hours} h would tell, only a larger vram.drift_budget_mib", hours=Digits(f"{budget.horizon_h:g}"))
    load_s = with_warm_up_s(span_h * S_PER_H)
    unit = 10 ** max(0, len(str(int(load_s))) - 2)  # two digits: it is an estimate
    return _("about {n} s of load after one start would tell (vram.load_s)", n=ceil(load_s / unit) * unit)


class States:
    """Counts of NVML's readings by value, so that hours of samples take no more memory than minutes.

    Of several devices the highest value counts, among those that hold the server's memory if the driver reports which.
    """

    def __init__(self) -> None:
        self.values: dict[str, Counter[float]] = {name: Counter() for name in STATES}
        self.reasons: Counter[str] = Counter()
        self.reports = self.throttled = 0

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        devices = used_devices(sample)
        for name, (key, _unit) in STATES.items():
            readings = [device[key] for device in devices if device.get(key) is not None]
            if readings:
                self.values[name][max(readings)] += 1
        reasons = throttles(devices)
        self.reasons.update(reasons)
        self.reports += any(device.get("throttle") is not None for device in devices)
        self.throttled += bool(reasons)

    def __add__(self, other: "States") -> "States":
        """Return the combined counts."""
        both = States()
        both.values = {name: self.values[name] + other.values[name] for name in STATES}
        both.reasons = self.reasons + other.reasons
        both.reports, both.throttled = self.reports + other.reports, self.throttled + other.throttled
        return both

    def figures(self, reason: str) -> dict[str, Figure]:
        """Return the medians, and the share of samples under thermal or power throttling."""
        found = {}
        for name, (_key, unit) in STATES.items():
            counts = self.values[name]
            found[name] = Figure(value=median_of(counts), unit=unit, n=counts.total()) if counts else not_measured(unit, reason)
        share = Figure(value=100 * self.throttled / self.reports, unit="%", n=self.reports) if self.reports else not_measured("%", reason)
        return {**found, "gpu_throttled": share}


def median_of(counts: Counter[float]) -> float:
    """Return the median of the counted values."""
    n = counts.total()
    found, passed = [], 0
    for value in sorted(counts):
        found += [value for index in ((n - 1) // 2, n // 2) if passed <= index < passed + counts[value]]
        passed += counts[value]
    return sum(found) / 2


class Digest:
    """Summary of a launch's samples; each sample is read once, however often figures are computed, as in a soak every minute."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.baseline: float | None = None
        self.own: list[Point] = []
        self.used: list[Point] = []
        self.host: dict[str, list[Point]] = {"pss_mib": [], "rss_mib": []}
        self.errors: Counter[str] = Counter()
        self.states = States()
        self.devices: dict[str, dict[int, float]] = {"gpu_tree_mib": {}, "gpu_used_mib": {}}  # the peak of each device
        self.baselines: list[float | None] = []  # memory used on each device at the baseline
        self.loaded = 0
        self.pending: deque[Sample] = deque()  # samples after the load so far

    def take(self, samples: Iterable[Sample], spans: Sequence[Span]) -> None:
        """Add the samples since the last call; `spans` are those of the load so far."""
        for sample in samples:
            at = sample["t"]
            self.times.append(at)
            if self.baseline is None:
                self.baseline = baseline_mib([sample])
                self.baselines = sample.get("gpu_used_mib", []) if self.baseline is not None else []
            for key, peaks in self.devices.items():
                peaks |= {at: max(peaks.get(at, value), value) for at, value in enumerate(sample.get(key, [])) if value is not None}
            self.own += points([(at, device_use(sample, "gpu_tree_mib"))])
            self.used += points([(at, device_use(sample, "gpu_used_mib"))])
            for key, series in self.host.items():
                series += host_points([sample], key)
            if sample.get("gpu_error"):
                self.errors[str(sample["gpu_error"])] += 1
            self.pending.append(sample)
        while self.pending and self.pending[0]["t"] <= spans[-1][1]:
            sample = self.pending.popleft()
            if any(begin <= sample["t"] <= end for begin, end in spans):
                self.loaded += 1
                self.states.add(sample)

    def device_peaks_mib(self) -> dict[int, float]:
        """Return the peak of each device that the server used, by its index among the visible ones, by the same method as the sum."""
        if self.own:
            return self.devices["gpu_tree_mib"]
        baselines = {at: held for at, held in enumerate(self.baselines) if held is not None}
        above = {at: peak - baselines[at] for at, peak in self.devices["gpu_used_mib"].items() if at in baselines}
        return {at: mib for at, mib in above.items() if mib > 0}


def used_devices(sample: Sample) -> list[dict[str, Any]]:
    """Return the sample's devices, without those known to hold none of the server's memory."""
    devices: list[dict[str, Any]] = sample.get("devices") or []
    tree = sample.get("gpu_tree_mib") or []
    if len(tree) != len(devices) or all(value is None for value in tree):
        return devices
    return [device for device, value in zip(devices, tree, strict=True) if value is not None]


def throttles(devices: Iterable[dict[str, Any]]) -> set[str]:
    """Return the reasons for which the devices are throttled."""
    reasons = {str(reason) for device in devices for reason in device.get("throttle") or []}
    return {reason for reason in reasons if any(word in reason.lower() for word in THROTTLES)}
