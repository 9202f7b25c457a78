"""Results of a closed loop, of an open loop, and of the search for capacity."""

from collections.abc import Mapping

from pipeline.client.answer import Answer
from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.load.calibration import Calibration
from pipeline.load.phases import LoadPhases
from pipeline.load.spread import Batch
from pipeline.load.stamps import pace_ms
from pipeline.measure.arrivals import Arrival, overloaded
from pipeline.measure.capacity import highest
from pipeline.measure.figures import Figure, invalidated
from pipeline.measure.latency import NS_PER_MS, e2e_ms, meets_limits, most_in_flight, steady_tok_s, ttft_ms
from pipeline.measure.statistics import quantile
from pipeline.message import Digits, Sentence, _
from pipeline.values import Frozen

CLOCK_SHARE = 0.01  # largest error of the clients' clocks, as a share of the loop's wall time


class Level(Frozen):
    """One closed loop at a fixed concurrency; `client_cpu_share` is our CPU time / wall time, 1 being one whole core.

    `steady_tok_s` covers only the time while all requests are in flight; None if there is none. `clock_ms` is the largest error
    of the time between stamps of two clients, since clients of different hosts have their clocks aligned by round trips.
    """

    concurrency: int
    warmups: int
    requests: int
    failed: int
    output_tokens: int
    wall_s: float
    throughput_tok_s: float
    steady_tok_s: float | None
    chunks_s: float
    client_cpu_share: float
    clock_ms: float = 0.0
    invalid: Sentence = ""


class OpenLevel(Frozen):
    """One open loop: the offered rate, its result, and how late the client itself sent (delay against the schedule)."""

    arrival: Arrival
    rate_per_s: float
    requests: int
    failed: int
    wall_s: float
    delay_ms_p50: float
    delay_ms_max: float
    in_flight_max: int
    overloaded: bool


class Trial(Frozen):
    """One trial of the search for capacity."""

    rate_per_s: float
    goodput_percent: float
    overloaded: bool
    meets: bool


def level_of(calibration: Calibration, batch: Batch, budget_ms: float, ceiling_chunks_s: float) -> Level:
    """Return the result of one closed loop; its throughput is output tokens of successful requests / wall time."""
    tokens = sum(answer.tokens for answer in batch.good)
    chunks_s = sum(len(answer.chunk_ns) for answer in batch.good) / batch.wall_s
    steady = steady_tok_s([(answer.sent_ns, answer.chunk_ns, answer.tokens_by_chunk) for answer in batch.good], calibration.concurrency)
    return Level(
        concurrency=calibration.concurrency,
        warmups=batch.warmups,
        requests=len(batch.answers),
        failed=batch.failed,
        output_tokens=tokens,
        wall_s=round(batch.wall_s, 3),
        throughput_tok_s=round(tokens / batch.wall_s, 2),
        steady_tok_s=None if steady is None else round(steady, 2),
        chunks_s=round(chunks_s, 2),
        client_cpu_share=round(batch.cpu_s / batch.wall_s, 4),
        clock_ms=round(batch.clock_ms, 4),
        invalid=calibration.trouble(budget_ms, chunks_s, ceiling_chunks_s) or clock_trouble(batch),
    )


def clock_trouble(batch: Batch) -> str:
    """Return why the time from the first client's send to the last one's chunk is too uncertain, or "" if it is not."""
    if batch.clock_ms <= CLOCK_SHARE * 1000 * batch.wall_s:
        return ""
    return _(
        "the clocks of its clients may be {clock} ms apart, over {share}% of its {wall} s",
        clock=Digits(f"{batch.clock_ms:.3g}"),
        share=round(100 * CLOCK_SHARE),
        wall=Digits(f"{batch.wall_s:.3g}"),
    )


def open_level_of(arrival: Arrival, rate_per_s: float, batch: Batch) -> OpenLevel:
    """Return the result of one open loop."""
    delays = [(answer.sent_ns - answer.scheduled_ns) / NS_PER_MS for answer in batch.answers]
    return OpenLevel(
        arrival=arrival,
        rate_per_s=round(rate_per_s, 4),
        requests=len(batch.answers),
        failed=batch.failed,
        wall_s=round(batch.wall_s, 3),
        delay_ms_p50=round(quantile(delays, 0.5), 3),
        delay_ms_max=round(max(delays), 3),
        in_flight_max=most_in_flight([(answer.sent_ns, answer.last_ns) for answer in batch.good]),
        overloaded=falls_behind(batch),
    )


def falls_behind(batch: Batch) -> bool:
    """Tell whether the server cannot keep up: latency from the scheduled send rises in order of arrival."""
    return overloaded([e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in batch.good])


def find_capacity(phases: LoadPhases, settings: BenchConfig, limits: RequestLimits, best_per_s: float) -> list[Trial]:
    """Return the trials of a search for the highest Poisson rate at which enough requests meet the limits.

    The first trial is at 1.5 × the best closed loop's rate, `best_per_s`.
    """
    trials: list[Trial] = []

    def meets(rate_per_s: float) -> bool:
        batch = phases.open_loop("poisson", rate_per_s, settings.capacity_requests)
        good_percent = 100 * meeting(batch, limits) / len(batch.answers)
        behind = falls_behind(batch)
        passes = good_percent >= settings.capacity_goodput and not behind
        trials.append(Trial(rate_per_s=round(rate_per_s, 4), goodput_percent=round(good_percent, 2), overloaded=behind, meets=passes))
        return passes

    highest(meets, 1.5 * best_per_s, settings.capacity_steps)
    return trials


def meeting(batch: Batch, limits: RequestLimits) -> int:
    """Return how many requests meet the limits, with latency counted from the scheduled send."""
    limits_ms = (limits.ttft_ms, limits.tpot_ms, limits.e2e_ms)
    return sum(
        meets_limits(
            ttft_ms(answer.scheduled_ns, answer.first_ns),
            pace_at_worst_ms(answer),
            e2e_ms(answer.scheduled_ns, answer.last_ns),
            limits_ms,
        )
        for answer in batch.good
    )


def pace_at_worst_ms(answer: Answer) -> float | None:
    """Return the answer's TPOT; where all came at once, the most that it can have been; None for one token."""
    if answer.tokens < 2:
        return None
    pace = pace_ms(answer)
    return e2e_ms(answer.sent_ns, answer.last_ns) / (answer.tokens - 1) if pace is None else pace


def judged_valid(entry: Level, figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return the figures, marked INVALID where the client was over its budget at that concurrency; what was answered stands."""
    return {**invalidated(figures, entry.invalid), **{name: figure for name, figure in figures.items() if name == "answered"}}
