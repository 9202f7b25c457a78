"""bench: time to first token, decode throughput alone, system throughput under load."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.client.answer import Answer
from pipeline.client.control import GENERATED_TOKENS, Control
from pipeline.client.load import Target, closed_loop, streamed
from pipeline.config import BenchConfig
from pipeline.errors import MeasureError
from pipeline.measure.figures import Figure
from pipeline.measure.latency import e2e_ms, tpot_ms, ttft_ms
from pipeline.measure.statistics import percentile_figure, share_figure
from pipeline.record import Measurement, write_atomic
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, log_of
from pipeline.workspace import Workspace

TTFT_SECONDS = "vllm:time_to_first_token_seconds"
TPOT_SECONDS = "vllm:request_time_per_output_token_seconds"
# The server's clock starts after it has read the request and stops before the answer is on its way.
TOLERANCE_MS = 5.0
TOLERANCE = 0.05
NO_GAP = "no answer has two tokens apart in time"
QUESTION = "Describe an ordinary day in town number {number}, from morning to night."


class Level(BaseModel):
    """One closed loop at a fixed concurrency; `client_cpu_share` is our own CPU time / wall time, 1 being one whole core."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    concurrency: int
    requests: int
    failed: int
    output_tokens: int
    wall_s: float
    throughput_tok_s: float
    client_cpu_share: float


class Ledger(BaseModel):
    """Output tokens as the client counted them and as the server's own counter rose meanwhile."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    client_tokens: int
    server_tokens: int | None

    @property
    def agrees(self) -> bool:
        return self.client_tokens == self.server_tokens


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
    """Latency alone, throughput at each concurrency, and the ledger."""

    prompt_tokens: int
    output_tokens: int
    first_request_ttft_ms: float | None
    levels: list[Level]
    ledger: Ledger
    means: list[MeanCheck]
    raw: str


def bench(settings: BenchConfig, server: Server, workspace: Workspace) -> BenchResult:
    """Measure TTFT, TPOT and throughput, cold prefix cache, closed loop."""
    with watched(server.handle, workspace) as target:
        return measure(settings, server, target, workspace)


def measure(settings: BenchConfig, server: Server, target: Target, workspace: Workspace) -> BenchResult:
    """Return the record of a run; the server is watched by the caller."""
    control = Control(target.base_url, target.api_key)
    counted_before = control.metrics().get(GENERATED_TOKENS)
    run = Run(server, target, settings)
    workspace.say(f"bench: TTFT, {settings.warmup_requests} warm-ups and {settings.ttft_requests} requests at concurrency 1")
    warm, _, _ = run.send(settings.warmup_requests, 1, 1)
    before = control.metrics()
    ttft, _, _ = run.send(settings.ttft_requests, 1, 1)
    between = control.metrics()
    workspace.say(f"bench: decode, {settings.decode_requests} × {settings.output_tokens} tokens at concurrency 1")
    run.send(1, settings.output_tokens, 1)
    decode_before = control.metrics()
    decode, *decode_cost = run.send(settings.decode_requests, settings.output_tokens, 1)
    decode_after = control.metrics()
    levels = []
    for concurrency in settings.concurrency:
        if concurrency == 1:
            levels.append(level(1, decode, *decode_cost))
            continue
        workspace.say(f"bench: {settings.requests_per_level} × {settings.output_tokens} tokens at concurrency {concurrency}")
        run.send(concurrency, 2, concurrency)
        answers, *cost = run.send(max(settings.requests_per_level, concurrency), settings.output_tokens, concurrency)
        levels.append(level(concurrency, answers, *cost))
    if not any(answer.ok for answer in ttft) or not any(answer.ok for answer in decode):
        raise MeasureError(f"bench: no request succeeded: {(ttft + decode)[0].error}", "see the server's log", log_of(server, workspace))
    counted_after = control.metrics().get(GENERATED_TOKENS)
    counted = None if counted_before is None or counted_after is None else int(counted_after - counted_before)
    raw = workspace.artifacts / "raw" / "bench.jsonl"
    write_atomic(raw, "".join(json.dumps(line) + "\n" for line in run.lines))
    return BenchResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures=figures(ttft, decode, levels),
        prompt_tokens=next(answer.prompt_tokens for answer in ttft if answer.ok),
        output_tokens=settings.output_tokens,
        first_request_ttft_ms=ttft_ms(warm[0].sent_ns, warm[0].first_ns) if warm[0].ok else None,
        levels=levels,
        ledger=Ledger(client_tokens=run.tokens, server_tokens=counted),
        means=[
            mean_check("TTFT", TTFT_SECONDS, first_ms(ttft), before, between),
            mean_check("TPOT", TPOT_SECONDS, per_token_ms(decode), decode_before, decode_after),
        ],
        raw=workspace.relative(raw),
    )


class Run:
    """Sends batches of requests that share no prefix-cache entry, and keeps count of their tokens and stamps."""

    def __init__(self, server: Server, target: Target, settings: BenchConfig) -> None:
        self.server = server
        self.target = target
        self.settings = settings
        # A cache salt of this run alone: the server may have answered the same prompts before.
        self.salt = secrets.token_hex(8)
        self.sent = 0
        self.tokens = 0
        self.lines: list[dict[str, Any]] = []

    def send(self, requests: int, output_tokens: int, concurrency: int) -> tuple[list[Answer], float, float]:
        """Return (answers, wall seconds, our own CPU seconds meanwhile) of a closed loop of fixed-length answers."""
        payloads = []
        for number in range(self.sent, self.sent + requests):
            messages = [{"role": "user", "content": QUESTION.format(number=number)}]
            salt = f"{self.salt}-{number}"
            payloads.append(streamed(self.server.model, messages, output_tokens, ignore_eos=True, cache_salt=salt))
        self.sent += requests
        cpu = time.process_time()
        answers, wall_s = closed_loop(self.target, payloads, concurrency, self.settings.timeout_s)
        cpu_s = time.process_time() - cpu
        self.tokens += sum(answer.tokens for answer in answers)
        self.lines += [
            {
                "concurrency": concurrency,
                "sent_ns": answer.sent_ns,
                "chunk_ns": [at - answer.sent_ns for at in answer.chunk_ns],
                "tokens": answer.tokens,
                "prompt_tokens": answer.prompt_tokens,
                "cached_tokens": answer.cached_tokens,
                "error": answer.error,
            }
            for answer in answers
        ]
        return answers, wall_s, cpu_s


def level(concurrency: int, answers: list[Answer], wall_s: float, cpu_s: float) -> Level:
    """Return the system throughput of one closed loop: output tokens of successful requests / wall time."""
    tokens = sum(answer.tokens for answer in answers if answer.ok)
    return Level(
        concurrency=concurrency,
        requests=len(answers),
        failed=sum(not answer.ok for answer in answers),
        output_tokens=tokens,
        wall_s=round(wall_s, 3),
        throughput_tok_s=round(tokens / wall_s, 2),
        client_cpu_share=round(cpu_s / wall_s, 4),
    )


def first_ms(answers: list[Answer]) -> list[float]:
    """Return the TTFT of each successful answer."""
    return [ttft_ms(answer.sent_ns, answer.first_ns) for answer in answers if answer.ok]


def per_token_ms(answers: list[Answer]) -> list[float]:
    """Return the TPOT of each successful answer of two tokens and more."""
    return [tpot_ms(answer.first_ns, answer.last_ns, answer.tokens) for answer in answers if answer.ok and answer.tokens > 1]


def mean_check(name: str, metric: str, client: list[float], before: Mapping[str, float], after: Mapping[str, float]) -> MeanCheck:
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


def figures(ttft: list[Answer], decode: list[Answer], levels: list[Level]) -> dict[str, Figure]:
    """Return the figures that gates and report take."""
    first, tpot = first_ms(ttft), per_token_ms(decode)
    e2e = [e2e_ms(answer.sent_ns, answer.last_ns) for answer in decode if answer.ok]
    loaded = [entry for entry in levels if entry.concurrency != 1]  # concurrency 1 is the decode requests again
    sent = [len(ttft), len(decode), *(entry.requests for entry in loaded)]
    failed = [sum(not answer.ok for answer in (*ttft, *decode)), *(entry.failed for entry in loaded)]
    result = {
        "answered": share_figure(sum(sent) - sum(failed), sum(sent)),
        "ttft_ms_p50": percentile_figure(first, 0.5, "ms"),
        "ttft_ms_p95": percentile_figure(first, 0.95, "ms"),
        "tpot_ms_p50": percentile_figure(tpot, 0.5, "ms", NO_GAP),
        "decode_tok_s_p50": percentile_figure([1000 / value for value in tpot if value > 0], 0.5, "tok/s", NO_GAP),
        "e2e_ms_p50": percentile_figure(e2e, 0.5, "ms"),
    }
    for entry in levels:
        result[f"system_tok_s_c{entry.concurrency}"] = Figure(value=entry.throughput_tok_s, unit="tok/s", n=entry.requests - entry.failed)
    return result
