"""bench: Measure TTFT, decode throughput, and throughput and latency under closed and open load."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.client.answer import Answer
from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Measurement, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, NothingAnsweredError
from pipeline.load.calibration import Calibration, Contention, calibrate, contention
from pipeline.load.capacity import PER_S, Trial, best_rate, capacity_figure, find_capacity
from pipeline.load.levels import Level, OpenLevel, judged_valid, level_of, meeting, open_level_of
from pipeline.load.phases import LoadPhases, processes_of
from pipeline.load.spread import Batch, Crew
from pipeline.load.stamps import (
    NO_GAP,
    answer_ms,
    between_ms,
    compressed,
    first_byte_ms,
    first_due_ms,
    first_ms,
    gaps_of,
    pace_ms,
    per_token_ms,
    whole_due_ms,
    whole_ms,
)
from pipeline.measure.arrivals import Arrival
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.latency import arrived_after_first, ttft_ms
from pipeline.measure.starts import over_starts
from pipeline.measure.statistics import NO_SUCCESS, clustered_percentile_figure, percentile_figure, quantile, share_figure
from pipeline.message import Digits, _
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, log_of, restart
from pipeline.vllm import metrics
from pipeline.vllm.ledger import TOLERANCE, TOLERANCE_MS, LedgerEntry, MeanCheck, mean_check
from pipeline.vllm.metrics import Counters, Metrics, rise

ALL_REASONING = _("no answer began, all of it was reasoning")
BUSY_S = 0.4  # of load on the server while the client is measured beside it; it lasts until the answers are complete
# The figures, by the begin of their names, that a check of the client's stamps against the server's speaks for or against.
RESTS_ON = {"TTFT": ("ttft_", "ttfat_"), "TPOT": ("tpot_ms_", "decode_tok_s_"), "ITL": ("itl_ms_",), "E2E": ("e2e_ms_",)}
RESTS_ON_COLD = ("ttft_ms_", "ttfat_ms_", "first_byte_ms_")
RESTS_ON_PACE = ("tpot_ms_", "decode_tok_s_", "goodput_", "poisson_goodput", "constant_goodput", "capacity_")
RESTS_ON_LENGTH = ("tpot_ms_", "decode_tok_s_", "e2e_ms_", "system_tok_s_", "goodput_", "poisson_", "constant_", "capacity_")


class BenchResult(Measurement):
    """Latency of single requests, throughput and latency under load, the client's calibration, and its ledger against the server's.

    `contradictory` counts the answers whose usage is not what their chunks carried, `uncounted` those whose chunks do not say,
    and `replaced` the idle connections that the server had closed. `busy` is the client beside the working server, empty for load
    clients on other hosts. A field is None where an older version did not record it. Hit tokens are None also where the server
    has no such metric, and `first_request_ttft_ms` where that request failed.
    """

    prompt_tokens: int
    output_tokens: int
    tokens_per_chunk: float | None
    warmups: int
    first_request_ttft_ms: float | None
    cold_hit_tokens: int | None
    warm_hit_tokens: int | None
    levels: list[Level]
    open_levels: list[OpenLevel]
    trials: list[Trial]
    limits: RequestLimits
    calibrations: list[Calibration]
    busy: list[Contention] = []
    ceiling_chunks_s: float | None
    ledger: list[LedgerEntry]
    means: list[MeanCheck]
    raw: str
    contradictory: int | None = None
    uncounted: int | None = None
    replaced: int | None = None


def bench(settings: BenchConfig, limits: RequestLimits, server: Server, workspace: Workspace) -> BenchResult:
    """Calibrate the client, then measure TTFT, TPOT and throughput under closed and open load."""
    if server.attached and settings.starts > 1:
        trouble = f"bench.starts is {settings.starts}, and the server at {server.attached} is not ours to start"
        raise ConfigError(trouble, "measure it on one start: --set bench.starts=1")
    records = [measure_start(settings, limits, server, workspace)]
    while len(records) < settings.starts:
        server = restart(server, workspace)
        records.append(measure_start(settings, limits, server, workspace))
    names = records[-1].figures
    return records[-1].model_copy(update={"figures": {name: over_starts([record.figures[name] for record in records]) for name in names}})


def measure_start(settings: BenchConfig, limits: RequestLimits, server: Server, workspace: Workspace) -> BenchResult:
    """Return the record of one start of the server, watched meanwhile; its stamps replace those of the start before."""
    from pipeline.load.workers import crew_of  # imported here to save an unchanged run 5 ms

    urls = (server.handle.base_url, *server.replicas)
    with crew_of(settings, urls, workspace.say) as crew, watched(server.handle, workspace, "bench") as target:
        return measure(settings, limits, server, replace(target, replicas=server.replicas), workspace, crew=crew)


def measure(
    settings: BenchConfig,
    limits: RequestLimits,
    server: Server,
    target: Endpoint,
    workspace: Workspace,
    raw: Path | None = None,
    crew: Crew | None = None,
) -> BenchResult:
    """Run every phase and return the record; the time stamps go to `raw`, and the caller watches the server.

    A `crew` sends the load of all concurrencies above 1. Without one this process sends it, or several where one is too slow.
    """
    counters = Counters([Control(url, target.api_key) for url in (target.base_url, *target.replicas)])
    concurrencies = sorted({1, *settings.concurrency})
    workspace.say(f"bench: the client itself, against a stub at concurrency {', '.join(map(str, concurrencies))}")
    calibrations, ceiling = calibrate(concurrencies, settings.client_delay_ms, crew)
    phases = LoadPhases(
        server.model, target, settings, workspace, {entry.concurrency: crew or processes_of(entry) for entry in calibrations[1:]}
    )
    at_start = counters.read()
    first = phases.closed_loop("the first request", phases.new_numbers(1), 1, 1)
    cold_numbers = phases.new_numbers(settings.ttft_requests)
    phases.closed_loop("warm-up", phases.new_numbers(settings.warmup_requests), 1, 1)
    before_cold = counters.read()
    cold = phases.closed_loop("TTFT, cold prefix cache", cold_numbers, 1, 1)
    before_warm = counters.read()
    warm = phases.closed_loop("TTFT, warm prefix cache", cold_numbers, 1, 1)
    after_warm = counters.read()
    alone = phases.closed_loop("warm-up", phases.new_numbers(1), settings.output_tokens, 1)
    readings: list[Metrics] = []
    decode = phases.lasting("decode", settings.decode_requests, 1, alone, lambda: readings.append(counters.read()))
    before_decode, after_decode = readings[-1], counters.read()
    for batch in (cold, decode):
        if not batch.good:
            raise NothingAnsweredError(
                f"bench: no request succeeded: {batch.answers[0].error}", "see the server's log", log_of(server, workspace)
            )
    closed_loops = {1: decode}
    for concurrency in concurrencies[1:]:
        closed_loops[concurrency] = phases.level(concurrency)
    best = best_rate(closed_loops)
    offered_per_s = settings.open_rate_req_s or settings.open_share * best[0]
    open_loops = {arrival: phases.open_loop(arrival, offered_per_s) for arrival in settings.open_loop}
    trials = find_capacity(phases, settings, limits, best, workspace.say) if settings.find_capacity else []
    busy = [] if crew else contention({each: partial(phases.busy, each, BUSY_S) for each in sorted({1, concurrencies[-1]})})
    at_end = counters.read()
    raw = raw or workspace.artifacts / "raw" / "bench.jsonl.gz"
    write_atomic(raw, compressed(phases.lines))
    crowded = {entry.concurrency: entry.trouble(settings.client_busy_delay_ms) for entry in busy}
    levels = [
        level_of(
            entry,
            closed_loops[entry.concurrency],
            settings.client_delay_ms,
            ceiling,
            limits,
            next((trouble for concurrency, trouble in crowded.items() if concurrency >= entry.concurrency), ""),
        )
        for entry in calibrations
    ]
    open_levels = [open_level_of(arrival, offered_per_s, batch, limits, levels[-1].invalid) for arrival, batch in open_loops.items()]
    warm_hits, cold_hits = rise(before_warm, after_warm, metrics.CACHE_HITS), rise(before_cold, before_warm, metrics.CACHE_HITS)
    ledger = [
        LedgerEntry(name=_("output tokens"), client=phases.tokens, server=rise(at_start, at_end, metrics.GENERATED_TOKENS)),
        LedgerEntry(name=_("prompt tokens"), client=phases.prompt_tokens, server=rise(at_start, at_end, metrics.PROMPT_TOKENS)),
        LedgerEntry(name=_("requests answered"), client=phases.answered, server=rise(at_start, at_end, metrics.SUCCESSES)),
    ]
    means = [
        mean_check("TTFT", metrics.TTFT_SECONDS, first_ms(cold.answers), before_cold, before_warm),
        mean_check("TPOT", metrics.TPOT_SECONDS, per_token_ms(decode.answers), before_decode, after_decode),
        mean_check("ITL", metrics.ITL_SECONDS, between_ms(decode.answers), before_decode, after_decode),
        mean_check("E2E", metrics.E2E_SECONDS, whole_ms(decode.answers), before_decode, after_decode),
    ]
    figures = {
        **judged_valid(levels[0], lone_figures(cold, decode, closed_loops.values(), open_loops.values())),
        **judged_valid(levels[0], warm_figures(warm, warm_hits)),
        **{name: figure for entry in levels for name, figure in judged_valid(entry, closed_figures(entry, closed_loops, limits)).items()},
        **judged_valid(levels[-1], open_figures(open_loops, limits)),
        **judged_valid(levels[-1], {"capacity_req_s": capacity_figure(trials)}),
    }
    lengths = [answer.tokens for batch in (*closed_loops.values(), *open_loops.values()) for answer in batch.good]
    of_all = [
        *(("", entry.contradiction) for entry in ledger),
        *((prefix, check.contradiction) for check in means for prefix in RESTS_ON[check.name]),
        *((prefix, wrong_usage(phases)) for prefix in RESTS_ON_LENGTH),
        *((prefix, wrong_length(lengths, settings.output_tokens)) for prefix in RESTS_ON_LENGTH),
        *((prefix, held_back(cold, decode)) for prefix in RESTS_ON_PACE),
    ]
    warm_cold = _("the server's own counter shows {n} cached prompt tokens in the cold arm", n=cold_hits) if cold_hits else ""
    contradictions = [
        *of_all,
        *((f"{arrival}_", level.doubt) for arrival, level in zip(open_loops, open_levels, strict=True)),
        ("capacity_", wrong_length(sorted(phases.trial_tokens), settings.output_tokens)),
        *((prefix, warm_cold) for prefix in RESTS_ON_COLD),
    ]
    return BenchResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={**contradicted(figures, contradictions), **offered_figures(open_levels)},
        prompt_tokens=cold.good[0].prompt_tokens,
        output_tokens=settings.output_tokens,
        tokens_per_chunk=round(sum(answer.tokens for answer in decode.good) / sum(len(answer.chunk_ns) for answer in decode.good), 3),
        warmups=settings.warmup_requests,
        first_request_ttft_ms=next(iter(first_ms(first.answers)), None),
        cold_hit_tokens=cold_hits,
        warm_hit_tokens=warm_hits,
        levels=[entry.model_copy(update={"figures": contradicted(entry.figures, of_all)}) for entry in levels],
        open_levels=[entry.model_copy(update={"figures": contradicted(entry.figures, of_all)}) for entry in open_levels],
        trials=trials,
        limits=limits,
        calibrations=calibrations,
        busy=busy,
        ceiling_chunks_s=ceiling,
        ledger=ledger,
        means=means,
        raw=workspace.relative(raw),
        contradictory=len(phases.contradictory),
        uncounted=phases.uncounted,
        replaced=phases.replaced,
    )


def wrong_usage(phases: LoadPhases) -> str:
    """Return that the usage of answers is not what their chunks carried; empty where it is, or the server does not tell."""
    wrong = phases.contradictory
    if not wrong:
        return ""
    carried = wrong[0].chunk_tokens
    return _(
        "the usage of {n} of {answered} answers is not what came: of the first it says {usage} tokens, its chunks carried {carried}",
        n=len(wrong),
        answered=phases.answered,
        usage=wrong[0].tokens,
        carried=_("text") if carried is None else sum(carried),
    )


def held_back(cold: Batch, decode: Batch) -> str:
    """Return that the first text of long answers comes later than that of one token, so that TPOT reads too low; empty where not.

    Something between holds tokens back, and lets them go faster than they were made. What arrives with the first text may take
    its time: (tokens then − 1) × TPOT. Compared are the bounds of the medians, the extremes where they are too few for bounds.
    """
    waits, paces, shares = [], [], []
    for answer in decode.good:
        pace = pace_ms(answer)
        if pace is not None:
            later = sum(tokens for _, tokens in arrived_after_first(answer.first_ns, answer.chunk_ns, answer.tokens_by_chunk))
            made_before = sum(answer.tokens_by_chunk) - later
            waits.append(ttft_ms(answer.sent_ns, answer.first_ns) - (made_before - 1) * pace)
            paces.append(pace)
            shares.append(later)
    alone = first_ms(cold.answers)
    if not waits or not alone:
        return ""
    low, high = percentile_figure(waits, 0.5, "ms").low, percentile_figure(alone, 0.5, "ms").high
    late = (min(waits) if low is None else low) - (max(alone) if high is None else high)
    pace = quantile(paces, 0.5)
    if late <= TOLERANCE_MS or late / quantile(shares, 0.5) <= TOLERANCE * pace:
        return ""
    return _(
        "the first token of a long answer came {late} ms later than that of an answer of one token: something holds tokens back",
        late=Digits(f"{late:.3g}"),
    )


def contradicted(figures: Mapping[str, Figure], contradictions: Iterable[tuple[str, str]]) -> dict[str, Figure]:
    """Return the figures, INVALID where a reason stands for the begin of their name; an empty one is none."""
    result = dict(figures)
    for prefix, reason in contradictions:
        result |= invalidated({name: figure for name, figure in result.items() if name.startswith(prefix)}, reason)
    return result


def wrong_length(lengths: Iterable[int], output_tokens: int) -> str:
    """Return that an answer is not of the length that max_tokens and ignore_eos ask for; empty where all are."""
    wrong = next((tokens for tokens in lengths if tokens != output_tokens), None)
    if wrong is None:
        return ""
    return _("an answer has {n} tokens where max_tokens and ignore_eos asked for {needed}", n=wrong, needed=output_tokens)


def latency_figure(batch: Batch, values: Callable[[Sequence[Answer]], list[float]], q: float, reason: str = NO_SUCCESS) -> Figure:
    """Return a percentile of a batch's latencies, with how many requests gave none."""
    found = values(batch.answers)
    return percentile_figure(found, q, "ms", reason, len(batch.answers) - len(found))


def lone_figures(cold: Batch, decode: Batch, closed_loops: Iterable[Batch], open_loops: Iterable[Batch]) -> dict[str, Figure]:
    """Return the figures of requests sent one at a time, and the share of all requests that were answered.

    TTFAT is of the cold arm, like TTFT. If the single token there is reasoning, it is of the decode arm.
    """
    rates = [1000 / pace for pace in per_token_ms(decode.answers)]
    gaps = [found for found in gaps_of(decode.answers) if found]
    no_gaps = len(decode.answers) - len(gaps)
    batches = [cold, *closed_loops, *open_loops]
    total = sum(len(batch.answers) for batch in batches)
    answering = cold if all(answer.answer_ns for answer in cold.good) else decode
    return {
        "answered": share_figure(total - sum(batch.failed for batch in batches), total),
        **{f"ttft_ms_p{percent}": latency_figure(cold, first_ms, percent / 100) for percent in (50, 95)},
        **{f"ttfat_ms_p{percent}": latency_figure(answering, answer_ms, percent / 100, ALL_REASONING) for percent in (50, 95)},
        "first_byte_ms_p50": latency_figure(cold, first_byte_ms, 0.5),
        "tpot_ms_p50": latency_figure(decode, per_token_ms, 0.5, NO_GAP),
        **{f"itl_ms_p{percent}": clustered_percentile_figure(gaps, percent / 100, "ms", NO_GAP, no_gaps) for percent in (50, 95)},
        "decode_tok_s_p50": percentile_figure(rates, 0.5, "tok/s", NO_GAP, len(decode.answers) - len(rates)),
        "e2e_ms_p50": latency_figure(decode, whole_ms, 0.5),
    }


def warm_figures(warm: Batch, hit_tokens: int | None) -> dict[str, Figure]:
    """Return TTFT with a warm prefix cache; NOT_MEASURED where the server's own counter shows no hit."""
    no_counter, no_hits = _("{name} is not available", name=metrics.CACHE_HITS), _("{name} did not rise", name=metrics.CACHE_HITS)
    reason = no_counter if hit_tokens is None else "" if hit_tokens else no_hits
    return {
        f"ttft_warm_ms_p{percent}": not_measured("ms", reason) if reason else latency_figure(warm, first_ms, percent / 100)
        for percent in (50, 95)
    }


def closed_figures(entry: Level, closed_loops: Mapping[int, Batch], limits: RequestLimits) -> dict[str, Figure]:
    """Return the throughput and goodput of one closed loop."""
    batch = closed_loops[entry.concurrency]
    return {
        f"system_tok_s_c{entry.concurrency}": Figure(value=entry.throughput_tok_s, unit="tok/s", n=len(batch.good)),
        f"goodput_c{entry.concurrency}": share_figure(meeting(batch, limits), len(batch.answers)),
    }


def open_figures(open_loops: Mapping[Arrival, Batch], limits: RequestLimits) -> dict[str, Figure]:
    """Return the goodput of each open loop, and its latency counted from the scheduled send."""
    figures = {}
    for arrival, batch in open_loops.items():
        figures[f"{arrival}_ttft_ms_p95"] = latency_figure(batch, first_due_ms, 0.95)
        figures[f"{arrival}_e2e_ms_p50"] = latency_figure(batch, whole_due_ms, 0.5)
        figures[f"{arrival}_e2e_ms_p95"] = latency_figure(batch, whole_due_ms, 0.95)
        figures[f"{arrival}_goodput"] = share_figure(meeting(batch, limits), len(batch.answers))
    return figures


def offered_figures(levels: Iterable[OpenLevel]) -> dict[str, Figure]:
    """Return the rate that each open loop offered, which stands whatever became of it."""
    return {f"{level.arrival}_rate_req_s": Figure(value=level.rate_per_s, unit=PER_S, n=level.requests) for level in levels}
