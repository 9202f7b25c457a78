"""bench: time to first token, decode throughput, throughput and latency under closed and open load."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.client.answer import Answer
from pipeline.client.control import CACHE_HITS, GENERATED_TOKENS, PROMPT_TOKENS, SUCCESSES, Control
from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Measurement, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import NothingAnsweredError
from pipeline.load.calibration import Calibration, calibrate
from pipeline.load.generator import Target, streamed
from pipeline.load.spread import Crew, Load, Processes, loop
from pipeline.load.stamps import between_ms, compressed, first_ms, per_token_ms, raw_line, whole_ms
from pipeline.measure.arrivals import Arrival, overloaded, schedule
from pipeline.measure.capacity import highest
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.latency import NS_PER_MS, e2e_ms, meets_limits, most_in_flight, steady_tok_s, tpot_ms, ttft_ms
from pipeline.measure.statistics import percentile_figure, quantile, share_figure
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, log_of

TTFT_SECONDS = "vllm:time_to_first_token_seconds"
TPOT_SECONDS = "vllm:request_time_per_output_token_seconds"
ITL_SECONDS = "vllm:inter_token_latency_seconds"
E2E_SECONDS = "vllm:e2e_request_latency_seconds"
# The server's clock starts after it has read the request and stops before the answer is on its way.
TOLERANCE_MS = 5.0
TOLERANCE = 0.05
CLOCK_SHARE = 0.01  # of a loop's wall time: so far may clients' clocks be apart
NO_GAP = "no answer has two tokens apart in time"
QUESTION = "Describe an ordinary day in town number {number}, from morning to night."
Metrics = Mapping[str, float]


class Level(BaseModel):
    """One closed loop at a fixed concurrency; `client_cpu_share` is our own CPU time / wall time, 1 being one whole core.

    `steady_tok_s` counts only while all are in flight; None where that never lasts. By `clock_ms` the time between stamps of two
    clients may be wrong: those of different hosts were brought to one clock by round trips.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

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
    invalid: str = ""


class OpenLevel(BaseModel):
    """One open loop: the rate that was offered, what became of it, and how late the client itself sent (the schedule's delay)."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    arrival: Arrival
    rate_per_s: float
    requests: int
    failed: int
    wall_s: float
    delay_ms_p50: float
    delay_ms_max: float
    in_flight_max: int
    overloaded: bool


class Trial(BaseModel):
    """One rate of the search for capacity."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    rate_per_s: float
    goodput_percent: float
    overloaded: bool
    meets: bool


class Count(BaseModel):
    """What the client counted and how far the server's own counter rose meanwhile; None where it has no such metric."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str
    client: int
    server: int | None

    @property
    def agrees(self) -> bool:
        return self.client == self.server


class MeanCheck(BaseModel):
    """A mean by the client's stamps beside the server's own, both in ms; `server_ms` is None where it has no such metric."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    name: str
    requests: int
    client_ms: float
    server_ms: float | None
    tolerance_ms: float

    @property
    def agrees(self) -> bool:
        return self.server_ms is not None and abs(self.client_ms - self.server_ms) <= self.tolerance_ms


class BenchResult(Measurement):
    """Latency alone, throughput and latency under load, the client's own calibration, and its ledger against the server's."""

    prompt_tokens: int
    output_tokens: int
    tokens_per_chunk: float
    warmups: int
    first_request_ttft_ms: float | None
    cold_hit_tokens: int | None
    warm_hit_tokens: int | None
    levels: list[Level]
    open_levels: list[OpenLevel]
    trials: list[Trial]
    limits: RequestLimits
    calibrations: list[Calibration]
    ceiling_chunks_s: float
    ledger: list[Count]
    means: list[MeanCheck]
    raw: str


@dataclass(frozen=True)
class Batch:
    """The answers of one loop, the wall seconds, and our own CPU seconds meanwhile; `warmups` were sent before and not counted."""

    answers: list[Answer]
    wall_s: float
    cpu_s: float
    warmups: int = 0
    clock_ms: float = 0.0

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.ok]

    @property
    def failed(self) -> int:
        return len(self.answers) - len(self.good)


def bench(settings: BenchConfig, limits: RequestLimits, server: Server, workspace: Workspace) -> BenchResult:
    """Measure TTFT, TPOT and throughput, in a closed and an open loop, after the client itself."""
    from pipeline.load.workers import crew_of  # 5 ms that an unchanged run does without

    urls = (server.handle.base_url, *server.replicas)
    with crew_of(settings, urls, workspace.say) as crew, watched(server.handle, workspace, "bench") as target:
        return measure(settings, limits, server, replace(target, replicas=server.replicas), workspace, crew=crew)


def measure(
    settings: BenchConfig,
    limits: RequestLimits,
    server: Server,
    target: Target,
    workspace: Workspace,
    raw: Path | None = None,
    crew: Crew | None = None,
) -> BenchResult:
    """Return the record of a run, whose stamps go to `raw`; the server is watched by the caller.

    A `crew` sends what is more than one request at a time; without it this process does, or several where one is too slow.
    """
    counters = Counters([Control(url, target.api_key) for url in (target.base_url, *target.replicas)])
    concurrencies = sorted({1, *settings.concurrency})
    workspace.say(f"bench: the client itself, against a stub at concurrency {', '.join(map(str, concurrencies))}")
    calibrations, ceiling = calibrate(concurrencies, settings.client_delay_ms, crew)
    run = Run(server, target, settings, workspace, {entry.concurrency: crew or processes(entry) for entry in calibrations[1:]})
    at_start = counters.read()
    first = run.closed("the first request", run.new(1), 1, 1)
    cold_numbers = run.new(settings.ttft_requests)
    run.closed("warm-up", run.new(settings.warmup_requests), 1, 1)
    before_cold = counters.read()
    cold = run.closed("TTFT, cold prefix cache", cold_numbers, 1, 1)
    before_warm = counters.read()
    warm = run.closed("TTFT, warm prefix cache", cold_numbers, 1, 1)
    after_warm = counters.read()
    run.closed("warm-up", run.new(1), settings.output_tokens, 1)
    before_decode = counters.read()
    decode = replace(run.closed("decode", run.new(settings.decode_requests), settings.output_tokens, 1), warmups=1)
    after_decode = counters.read()
    for batch in (cold, decode):
        if not batch.good:
            raise NothingAnsweredError(
                f"bench: no request succeeded: {batch.answers[0].error}", "see the server's log", log_of(server, workspace)
            )
    loops = {1: decode}
    for concurrency in concurrencies[1:]:
        run.closed("warm-up", run.new(concurrency), settings.output_tokens, concurrency)
        numbers = run.new(max(settings.requests_per_level, concurrency))
        loops[concurrency] = replace(run.closed("closed loop", numbers, settings.output_tokens, concurrency), warmups=concurrency)
    best_per_s = max(len(batch.good) / batch.wall_s for batch in loops.values())
    opened = {arrival: run.opened(arrival, settings.open_share * best_per_s, settings.open_requests) for arrival in settings.open_loop}
    trials = capacity(run, settings, limits, best_per_s) if settings.find_capacity else []
    at_end = counters.read()
    raw = raw or workspace.artifacts / "raw" / "bench.jsonl.gz"
    write_atomic(raw, compressed(run.lines))
    levels = [level(entry, loops[entry.concurrency], settings.client_delay_ms, ceiling) for entry in calibrations]
    open_levels = [open_level(arrival, settings.open_share * best_per_s, batch) for arrival, batch in opened.items()]
    warm_hits = rise(before_warm, after_warm, CACHE_HITS)
    return BenchResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={
            **valid(levels[0], figures(cold, decode, loops.values(), opened.values())),
            **valid(levels[0], warm_figures(warm, warm_hits)),
            **{name: figure for entry in levels for name, figure in valid(entry, closed_figures(entry, loops, limits)).items()},
            **valid(levels[-1], open_figures(opened, limits)),
            **valid(levels[-1], {"capacity_req_s": capacity_figure(trials)}),
        },
        prompt_tokens=cold.good[0].prompt_tokens,
        output_tokens=settings.output_tokens,
        tokens_per_chunk=round(sum(answer.tokens for answer in decode.good) / sum(len(answer.chunk_ns) for answer in decode.good), 3),
        warmups=settings.warmup_requests,
        first_request_ttft_ms=next(iter(first_ms(first.answers)), None),
        cold_hit_tokens=rise(before_cold, before_warm, CACHE_HITS),
        warm_hit_tokens=warm_hits,
        levels=levels,
        open_levels=open_levels,
        trials=trials,
        limits=limits,
        calibrations=calibrations,
        ceiling_chunks_s=ceiling,
        ledger=[
            Count(name="output tokens", client=run.tokens, server=rise(at_start, at_end, GENERATED_TOKENS)),
            Count(name="prompt tokens", client=run.prompt_tokens, server=rise(at_start, at_end, PROMPT_TOKENS)),
            Count(name="requests answered", client=run.answered, server=rise(at_start, at_end, SUCCESSES)),
        ],
        means=[
            mean_check("TTFT", TTFT_SECONDS, first_ms(cold.answers), before_cold, before_warm),
            mean_check("TPOT", TPOT_SECONDS, per_token_ms(decode.answers), before_decode, after_decode),
            mean_check("ITL", ITL_SECONDS, between_ms(decode.answers), before_decode, after_decode),
            mean_check("E2E", E2E_SECONDS, whole_ms(decode.answers), before_decode, after_decode),
        ],
        raw=workspace.relative(raw),
    )


@dataclass(frozen=True)
class Counters:
    """The metrics of the server, or of all the replicas together."""

    controls: list[Control]

    def read(self) -> Metrics:
        """Return each metric summed over the servers, and only those that each of them has."""
        told = [control.metrics() for control in self.controls]
        return {name: sum(each[name] for each in told) for name in set.intersection(*(set(each) for each in told))}


class Run:
    """Sends batches of requests that share no prefix-cache entry unless told to, and keeps count of their tokens and stamps."""

    def __init__(
        self,
        server: Server,
        target: Target,
        settings: BenchConfig,
        workspace: Workspace,
        crews: Mapping[int, Crew | None] | None = None,
    ) -> None:
        self.server = server
        self.target = target
        self.settings = settings
        self.workspace = workspace
        self.crews = crews or {}  # of clients, by concurrency; this process alone where there is none
        # A cache salt of this run alone: the server may have answered the same prompts before.
        self.salt = secrets.token_hex(8)
        self.began_ns = time.perf_counter_ns()
        self.numbered = 0
        self.answered = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.lines: list[dict[str, Any]] = []

    def new(self, requests: int) -> range:
        """Return the numbers of so many new prompts."""
        self.numbered += requests
        return range(self.numbered - requests, self.numbered)

    def closed(self, what: str, numbers: range, output_tokens: int, concurrency: int) -> Batch:
        """Return the answers to these prompts in a closed loop."""
        told = self.telling(f"{what}, concurrency {concurrency}, {output_tokens} output tokens", len(numbers))
        payloads = self.payloads(numbers, output_tokens)
        timeout_s = self.settings.timeout_s
        crew = self.crews.get(concurrency)
        return self.kept(f"{what} c{concurrency}", loop(self.target, payloads, concurrency, timeout_s, crew, told))

    def opened(self, arrival: Arrival, rate_per_s: float, requests: int) -> Batch:
        """Return the answers to requests that arrive at this rate."""
        told = self.telling(f"open loop, {arrival}, {rate_per_s:.3g} requests/s", requests)
        payloads = self.payloads(self.new(requests), self.settings.output_tokens)
        due_s = schedule(arrival, rate_per_s, requests, self.settings.seed)
        most = max(self.crews, default=1)
        made = loop(self.target, payloads, most, self.settings.timeout_s, self.crews.get(most), told, due_s)
        return self.kept(f"{arrival} {rate_per_s:.4g}/s", made)

    def telling(self, what: str, total: int) -> Callable[[int], None]:
        if what.startswith("warm-up"):
            return lambda _: None
        self.workspace.say(f"bench: {total} requests, {what}")
        return self.workspace.progress("bench", total)

    def payloads(self, numbers: range, output_tokens: int) -> list[dict[str, Any]]:
        """Return fixed-length requests; each number has a prompt and a cache salt of its own."""
        return [
            streamed(
                self.server.model,
                [{"role": "user", "content": QUESTION.format(number=number)}],
                output_tokens,
                ignore_eos=True,
                cache_salt=f"{self.salt}-{number}",
            )
            for number in numbers
        ]

    def kept(self, phase: str, made: Load) -> Batch:
        """Return the batch, with its counts and stamps kept."""
        answers = made.answers
        self.answered += sum(answer.ok for answer in answers)
        self.tokens += sum(answer.tokens for answer in answers)
        self.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.lines += [raw_line(phase, answer, self.began_ns) for answer in answers]
        return Batch(answers, made.wall_s, made.cpu_s, clock_ms=made.clock_ms)


def processes(calibration: Calibration) -> Processes | None:
    """Return the client's processes as it was calibrated; None for this one alone."""
    return Processes(calibration.processes) if calibration.processes > 1 else None


def level(calibration: Calibration, batch: Batch, budget_ms: float, ceiling_chunks_s: float) -> Level:
    """Return the system throughput of one closed loop: output tokens of successful requests / wall time."""
    tokens = sum(answer.tokens for answer in batch.good)
    chunks_s = sum(len(answer.chunk_ns) for answer in batch.good) / batch.wall_s
    steady = steady_tok_s([(answer.sent_ns, answer.chunk_ns, answer.tokens) for answer in batch.good], calibration.concurrency)
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
    """Return why the time from the first client's send to the last one's chunk is not known well enough; empty when it is."""
    if batch.clock_ms <= CLOCK_SHARE * 1000 * batch.wall_s:
        return ""
    return f"the clocks of its clients may be {batch.clock_ms:.3g} ms apart, over {CLOCK_SHARE:.0%} of its {batch.wall_s:.3g} s"


def open_level(arrival: Arrival, rate_per_s: float, batch: Batch) -> OpenLevel:
    """Return what became of one open loop."""
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
    """Tell whether the server did not keep up: latency from the scheduled send rises with the order of arrival."""
    return overloaded([e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in batch.good])


def capacity(run: Run, settings: BenchConfig, limits: RequestLimits, best_per_s: float) -> list[Trial]:
    """Search for the highest Poisson rate at which enough requests meet the limits, up to 1.5 × the best closed loop's."""
    trials: list[Trial] = []

    def meets(rate_per_s: float) -> bool:
        batch = run.opened("poisson", rate_per_s, settings.capacity_requests)
        good_percent = 100 * meeting(batch, limits) / len(batch.answers)
        behind = falls_behind(batch)
        met = good_percent >= settings.capacity_goodput and not behind
        trials.append(Trial(rate_per_s=round(rate_per_s, 4), goodput_percent=round(good_percent, 2), overloaded=behind, meets=met))
        return met

    highest(meets, 1.5 * best_per_s, settings.capacity_steps)
    return trials


def capacity_figure(trials: Sequence[Trial]) -> Figure:
    """Return the highest rate that met the limits, with the lowest that did not as its upper bound."""
    if not trials:
        return not_measured("requests/s", "bench.find_capacity is false")
    met = [trial.rate_per_s for trial in trials if trial.meets]
    missed = [trial.rate_per_s for trial in trials if not trial.meets]
    if not met:
        return not_measured("requests/s", f"no rate met the limits, down to {min(missed):.3g} requests/s")
    return Figure(value=max(met), unit="requests/s", n=len(trials), low=max(met), high=min(missed, default=None))


def meeting(batch: Batch, limits: RequestLimits) -> int:
    """Return how many requests meet the limits, each counted from its scheduled send."""
    wanted = (limits.ttft_ms, limits.tpot_ms, limits.e2e_ms)
    return sum(
        meets_limits(
            ttft_ms(answer.scheduled_ns, answer.first_ns),
            tpot_ms(answer.first_ns, answer.last_ns, answer.tokens) if answer.tokens > 1 else None,
            e2e_ms(answer.scheduled_ns, answer.last_ns),
            wanted,
        )
        for answer in batch.good
    )


def rise(before: Metrics, after: Metrics, name: str) -> int | None:
    """Return how far a counter rose; None where the server has no such metric."""
    return int(after[name] - before[name]) if name in before and name in after else None


def mean_check(name: str, metric: str, client: list[float], before: Metrics, after: Metrics) -> MeanCheck:
    """Return the client's mean beside the server's: the rise of the histogram's sum / the rise of its count."""
    ours = sum(client) / len(client) if client else 0.0
    total, count = (after.get(f"{metric}_{part}", 0.0) - before.get(f"{metric}_{part}", 0.0) for part in ("sum", "count"))
    theirs = 1000 * total / count if count else None
    return MeanCheck(
        name=name,
        requests=len(client),
        client_ms=round(ours, 3),
        server_ms=None if theirs is None else round(theirs, 3),
        tolerance_ms=round(TOLERANCE_MS + TOLERANCE * ours, 3),
    )


def figures(cold: Batch, decode: Batch, loops: Iterable[Batch], opened: Iterable[Batch]) -> dict[str, Figure]:
    """Return the figures of requests that are alone, and the share of all that were answered."""
    tpot = per_token_ms(decode.answers)
    counted = [cold, *loops, *opened]
    sent = sum(len(batch.answers) for batch in counted)
    return {
        "answered": share_figure(sent - sum(batch.failed for batch in counted), sent),
        "ttft_ms_p50": percentile_figure(first_ms(cold.answers), 0.5, "ms"),
        "ttft_ms_p95": percentile_figure(first_ms(cold.answers), 0.95, "ms"),
        "first_byte_ms_p50": percentile_figure([ttft_ms(answer.sent_ns, answer.first_byte_ns) for answer in cold.good], 0.5, "ms"),
        "tpot_ms_p50": percentile_figure(tpot, 0.5, "ms", NO_GAP),
        "itl_ms_p50": percentile_figure(between_ms(decode.answers), 0.5, "ms", NO_GAP),
        "itl_ms_p95": percentile_figure(between_ms(decode.answers), 0.95, "ms", NO_GAP),
        "decode_tok_s_p50": percentile_figure([1000 / value for value in tpot if value > 0], 0.5, "tok/s", NO_GAP),
        "e2e_ms_p50": percentile_figure(whole_ms(decode.answers), 0.5, "ms"),
    }


def warm_figures(warm: Batch, hit_tokens: int | None) -> dict[str, Figure]:
    """Return TTFT with a warm prefix cache; not measured where the server's own counter shows no hit."""
    reason = "" if hit_tokens else f"{CACHE_HITS} {'did not rise' if hit_tokens == 0 else 'is not available'}"
    return {
        f"ttft_warm_ms_p{percent}": not_measured("ms", reason) if reason else percentile_figure(first_ms(warm.answers), percent / 100, "ms")
        for percent in (50, 95)
    }


def closed_figures(entry: Level, loops: Mapping[int, Batch], limits: RequestLimits) -> dict[str, Figure]:
    """Return throughput and goodput of one closed loop."""
    batch = loops[entry.concurrency]
    return {
        f"system_tok_s_c{entry.concurrency}": Figure(value=entry.throughput_tok_s, unit="tok/s", n=len(batch.good)),
        f"goodput_c{entry.concurrency}": share_figure(meeting(batch, limits), len(batch.answers)),
    }


def valid(entry: Level, made: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return the figures, without their values where the client was over its budget at that concurrency; what was answered stands."""
    if not entry.invalid:
        return dict(made)
    return {name: figure if name == "answered" else not_measured(figure.unit, f"INVALID: {entry.invalid}") for name, figure in made.items()}


def open_figures(opened: Mapping[Arrival, Batch], limits: RequestLimits) -> dict[str, Figure]:
    """Return latency from the scheduled send, and goodput, of each open loop."""
    result = {}
    for arrival, batch in opened.items():
        first = [ttft_ms(answer.scheduled_ns, answer.first_ns) for answer in batch.good]
        whole = [e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in batch.good]
        result[f"{arrival}_ttft_ms_p95"] = percentile_figure(first, 0.95, "ms")
        result[f"{arrival}_e2e_ms_p50"] = percentile_figure(whole, 0.5, "ms")
        result[f"{arrival}_e2e_ms_p95"] = percentile_figure(whole, 0.95, "ms")
        result[f"{arrival}_goodput"] = share_figure(meeting(batch, limits), len(batch.answers))
    return result
