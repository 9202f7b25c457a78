"""The search for capacity: trials of a Poisson rate, and the highest rate that the server sustains."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.load.levels import falls_behind, meeting
from pipeline.load.spread import Batch
from pipeline.load.stamps import whole_ms
from pipeline.measure.arrivals import came_per_s
from pipeline.measure.capacity import TRIAL_RISE, highest, least_requests, most_s, steady_per_s, trial_s
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.statistics import quantile, wilson
from pipeline.message import Digits, _
from pipeline.values import Frozen

PER_S = _("requests/s")
NEAR = 0.95  # of the best closed loop's rate: the lowest concurrency that reaches it has the service time without needless waiting


class Trial(Frozen):
    """One trial of the search for capacity: `requests` were judged, those of the ramp, the first `ramp_s` seconds, were not.

    `confirms` marks the second trial of the rate that was found. A field is None where an older version did not record it.
    """

    rate_per_s: float
    came_per_s: float | None = None
    requests: int | None = None
    ramp_s: float | None = None
    goodput_percent: float
    goodput_low: float | None = None
    overloaded: bool
    meets: bool
    confirms: bool = False


class Loops(Protocol):
    """Sends the trials."""

    def trial(self, rate_per_s: float, requests: int, seed: int) -> Batch:
        """Return the answers to Poisson arrivals at this rate."""


def best_rate(closed_loops: Mapping[int, Batch]) -> tuple[float, float]:
    """Return (requests/s of the best closed loop, service time in s); a loop has a good answer.

    The rate of a loop is that while it was full, or of the whole loop if it never was for a while. The service time is the p95
    latency at the lowest concurrency that comes within 5 % of the best: at a higher one, requests wait for each other.
    """
    rates = {}
    for concurrency, batch in sorted(closed_loops.items()):
        spans = [(answer.sent_ns / 1e9, answer.last_ns / 1e9) for answer in batch.good]
        rates[concurrency] = steady_per_s(spans, concurrency) or len(batch.good) / batch.wall_s
    best = max(rates.values())
    near = next(closed_loops[concurrency] for concurrency, rate in rates.items() if rate >= NEAR * best)
    return best, quantile(whole_ms(near.answers), 0.95) / 1000


def find_capacity(
    loops: Loops, settings: BenchConfig, limits: RequestLimits, best: tuple[float, float], say: Callable[[str], None]
) -> list[Trial]:
    """Return the trials of a search for the highest Poisson rate that the server sustains, at most the best closed loop's.

    `best` is the result of `best_rate`. A trial begins with a ramp of one service time, which is not judged: the server is still
    emptier than the rate fills it.
    """
    top, ramp_s = best
    requests = max(settings.capacity_requests, least_requests(settings.capacity_goodput))
    trials: list[Trial] = []
    tried: set[float] = set()

    def seconds(rate_per_s: float) -> float:
        return ramp_s + trial_s(rate_per_s, requests, settings.capacity_min_s, ramp_s)

    def meets(rate_per_s: float) -> bool:
        # Each trial has arrivals of its own, so that a confirmation is not the same trial again.
        count = math.ceil(rate_per_s * seconds(rate_per_s)) + 1
        batch = loops.trial(rate_per_s, count, settings.seed + len(trials))
        trial = trial_of(rate_per_s, batch, ramp_s, limits, settings.capacity_goodput)
        trials.append(trial.model_copy(update={"confirms": rate_per_s in tried}))
        tried.add(rate_per_s)
        return trial.meets

    longest_s = most_s(top, settings.capacity_steps, seconds, settings.capacity_max_s)
    say(
        f"bench: the search for capacity takes {longest_s / 60:.1f} minutes at most: up to {settings.capacity_steps} trials "
        f"of {seconds(top):.0f} s or more, from {top:.3g} requests/s down"
    )
    highest(meets, top, settings.capacity_steps, seconds, settings.capacity_max_s)
    return trials


def trial_of(rate_per_s: float, batch: Batch, ramp_s: float, limits: RequestLimits, goodput_percent: float) -> Trial:
    """Return the judgement on the requests of a trial that were due after the ramp.

    It meets the condition if the Wilson lower bound of goodput reaches `goodput_percent` and the server did not fall behind.
    """
    begin_ns = min(answer.scheduled_ns for answer in batch.answers) + int(ramp_s * 1e9)
    judged = replace(batch, answers=[answer for answer in batch.answers if answer.scheduled_ns >= begin_ns])
    good, n = meeting(judged, limits), len(judged.answers)
    low = wilson(good, n)[0]
    behind = falls_behind(batch, TRIAL_RISE) is not False
    came = came_per_s([answer.sent_ns / 1e9 for answer in batch.answers])
    return Trial(
        rate_per_s=round(rate_per_s, 4),
        came_per_s=None if came is None else round(came, 4),
        requests=n,
        ramp_s=round(ramp_s, 3),
        goodput_percent=round(100 * good / n, 2),
        goodput_low=round(100 * low, 2),
        overloaded=behind,
        meets=100 * low >= goodput_percent and not behind,
    )


def capacity_figure(trials: Sequence[Trial]) -> Figure:
    """Return the rate that was sustained twice, and as its upper bound the lowest rate that was not sustained."""
    if not trials:
        return not_measured(PER_S, _("bench.find_capacity is false"))
    last = trials[-1]
    missed = [trial.rate_per_s for trial in trials if not trial.meets]
    if last.meets and last.confirms:
        return Figure(value=last.rate_per_s, unit=PER_S, n=last.requests or 0, low=last.rate_per_s, high=min(missed, default=None))
    if any(trial.meets for trial in trials):
        return not_measured(PER_S, _("no rate was sustained twice within bench.capacity_steps and bench.capacity_max_s"))
    return not_measured(PER_S, _("no rate was sustained, down to {value} requests/s", value=Digits(f"{min(missed):.3g}")))
