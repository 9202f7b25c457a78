"""Results of a closed loop and of an open loop, each with its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.client.answer import Answer
from pipeline.contexts import RequestLimits
from pipeline.load.calibration import Calibration
from pipeline.load.spread import Batch
from pipeline.load.stamps import NO_GAP, Values, answer_ms, between_ms, first_ms, pace_ms, per_token_ms, whole_due_ms, whole_ms
from pipeline.measure.arrivals import RISE, Arrival, came_per_s, overloaded
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.latency import NS_PER_MS, e2e_ms, meets_limits, most_in_flight, steady_tok_s, ttft_ms
from pipeline.measure.statistics import NO_SUCCESS, least_for_bound, percentile_figure, quantile, share_figure
from pipeline.message import Digits, Sentence, _
from pipeline.values import Frozen

CLOCK_SHARE = 0.01  # largest error of the clients' clocks, as a share of the loop's wall time
# The latencies of every level, in ms; a further one is one more line here.
LATENCIES: dict[str, Values] = {
    "ttft_ms": first_ms,
    "ttfat_ms": answer_ms,
    "tpot_ms": per_token_ms,
    "itl_ms": between_ms,
    "e2e_ms": whole_ms,
}
NO_LIMITS = RequestLimits()
PERCENTS = (50, 90, 95, 99)
FELL_BEHIND = _("the server fell behind: latency rose with each arrival")
TOO_SHORT = _(
    "latency rose until the arrivals ended, too soon to tell whether the server keeps up: lower bench.open_share, or raise bench.open_min_s"
)
NEEDS_BOUND = 99  # a percentile this high is measured only where n allows an upper bound


class Level(Frozen):
    """One closed loop at a fixed concurrency; `client_cpu_share` is our CPU time / wall time, 1 being one whole core.

    `steady_tok_s` covers only the time while all requests are in flight; None if there is none. `clock_ms` is the largest error
    of the time between stamps of two clients, since clients of different hosts have their clocks aligned by round trips. `figures`
    are those of `level_figures`; an older version did not record them.
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
    figures: dict[str, Figure] = {}


class OpenLevel(Frozen):
    """One open loop: the rate of its schedule and the rate at which requests came, its result, and how late the client itself sent.

    `overloaded` is None where the arrivals ended too soon to tell. `figures` are those of `level_figures`. An older version recorded
    neither them nor `came_per_s`.
    """

    arrival: Arrival
    rate_per_s: float
    came_per_s: float | None = None
    requests: int
    failed: int
    wall_s: float
    delay_ms_p50: float
    delay_ms_max: float
    in_flight_max: int
    overloaded: bool | None
    figures: dict[str, Figure] = {}

    @property
    def doubt(self) -> Sentence:
        """Return why its latencies say how long it lasted, or may; empty where they do not."""
        return TOO_SHORT if self.overloaded is None else FELL_BEHIND if self.overloaded else ""


def level_of(
    calibration: Calibration,
    batch: Batch,
    budget_ms: float,
    ceiling_chunks_s: float,
    limits: RequestLimits = NO_LIMITS,
    crowded: str = "",
) -> Level:
    """Return the result of one closed loop; its throughput is output tokens of successful requests / wall time.

    The client has to be within its budget while nothing else runs; `crowded` is why it was not while the server computed, if so.
    """
    tokens = sum(answer.tokens for answer in batch.good)
    chunks_s = sum(len(answer.chunk_ns) for answer in batch.good) / batch.wall_s
    steady = steady_tok_s([(answer.sent_ns, answer.chunk_ns, answer.tokens_by_chunk) for answer in batch.good], calibration.concurrency)
    invalid = calibration.trouble(budget_ms, chunks_s, ceiling_chunks_s) or crowded or clock_trouble(batch)
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
        invalid=invalid,
        figures=invalidated(level_figures(batch, limits, len(batch.answers) / batch.wall_s), invalid),
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


def open_level_of(arrival: Arrival, rate_per_s: float, batch: Batch, limits: RequestLimits, invalid: str = "") -> OpenLevel:
    """Return the result of one open loop; `invalid` is why its figures are, if so."""
    delays = [(answer.sent_ns - answer.scheduled_ns) / NS_PER_MS for answer in batch.answers]
    came = came_per_s([answer.sent_ns / 1e9 for answer in batch.answers])
    figures = level_figures(batch, limits, came or len(batch.answers) / batch.wall_s)
    level = OpenLevel(
        arrival=arrival,
        rate_per_s=round(rate_per_s, 4),
        came_per_s=None if came is None else round(came, 4),
        requests=len(batch.answers),
        failed=batch.failed,
        wall_s=round(batch.wall_s, 3),
        delay_ms_p50=round(quantile(delays, 0.5), 3),
        delay_ms_max=round(max(delays), 3),
        in_flight_max=most_in_flight([(answer.sent_ns, answer.last_ns) for answer in batch.good]),
        overloaded=falls_behind(batch),
    )
    return level.model_copy(update={"figures": invalidated(invalidated(figures, invalid), level.doubt)})


def falls_behind(batch: Batch, rise: float = RISE) -> bool | None:
    """Tell whether the server cannot keep up: latency from the scheduled send rises in order of arrival; None where too few tell."""
    good = sorted(batch.good, key=lambda answer: answer.scheduled_ns)
    return overloaded([answer.scheduled_ns / 1e9 for answer in good], whole_due_ms(good), rise)


def as_scheduled(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers as if each had been sent when it was due, from which latency counts in an open loop."""
    return [replace(answer, sent_ns=answer.scheduled_ns) for answer in answers]


def level_figures(batch: Batch, limits: RequestLimits, per_s: float) -> dict[str, Figure]:
    """Return the latency percentiles of a level, counted from the scheduled send, and its goodput.

    Goodput is a share, and a rate: requests/s that meet every limit, where `per_s` were sent. n counts requests; where a request has
    several values, as for ITL, they depend on each other, and there are no bounds.
    """
    total, good = len(batch.answers), meeting(batch, limits)
    figures = {
        "goodput_percent": share_figure(good, total),
        "goodput_req_s": Figure(value=per_s * good / total, unit="requests/s", n=total, failed=batch.failed),
    }
    answers = as_scheduled(batch.good)
    for name, values_of in LATENCIES.items():
        by_request = [values for answer in answers if (values := values_of([answer]))]
        for percent in PERCENTS:
            figures[f"{name}_p{percent}"] = latency_figure(by_request, percent, batch.failed, NO_GAP if answers else NO_SUCCESS)
    return figures


def latency_figure(by_request: Sequence[Sequence[float]], percent: int, failed: int, reason: str) -> Figure:
    """Return a percentile of the values of all requests, in ms; `reason` is why there are none, if so."""
    n, q = len(by_request), percent / 100
    if n and percent >= NEEDS_BOUND and n < least_for_bound(q):
        return not_measured("ms", _("n = {n}, and p{percent} takes {least}", n=n, percent=percent, least=least_for_bound(q)))
    values = sorted(value for request in by_request for value in request)
    if len(values) > n:
        return Figure(value=quantile(values, q), unit="ms", n=n, failed=failed)
    return percentile_figure(values, q, "ms", reason).model_copy(update={"failed": failed})


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
