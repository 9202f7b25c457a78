"""The phases of a benchmark: batches of requests in a closed or an open loop, with their counts and stamps."""

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.config.schema import BenchConfig
from pipeline.engine.workspace import Workspace
from pipeline.load.calibration import Calibration
from pipeline.load.spread import Batch, Crew, Least, Processes, loop
from pipeline.load.stamps import raw_line
from pipeline.measure.arrivals import Arrival, schedule

MOST_BUSY_PER_S = 2000
PACES = 3  # loops at most from which the number of prompts is learned
SPARE = 4  # times as many prompts as the warm-up's pace needs for the least duration of a level
QUESTION = "Describe an ordinary day in town number {number}, from morning to night."


class LoadPhases:
    """Sends batches of requests, and counts their tokens and stamps; only requests of the same number share a prefix-cache entry."""

    def __init__(
        self,
        model: str,
        target: Endpoint,
        settings: BenchConfig,
        workspace: Workspace,
        crews: Mapping[int, Crew | None] | None = None,
    ) -> None:
        self.model = model
        self.target = target
        self.settings = settings
        self.workspace = workspace
        self.crews = crews or {}  # crews by concurrency; None or no entry means this process alone
        # A cache salt of this run, because the server may have answered the same prompts before.
        self.salt = secrets.token_hex(8)
        self.began_ns = time.perf_counter_ns()
        self.numbered = 0
        self.answered = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.replaced = 0  # idle connections that the server had closed
        self.contradictory: list[Answer] = []
        self.uncounted = 0  # answers whose chunks do not tell how many tokens they carry
        self.trial_tokens: set[int] = set()  # of an answer in the search for capacity
        self.lines: list[dict[str, Any]] = []

    def new_numbers(self, requests: int) -> range:
        """Return unused numbers for this many prompts."""
        self.numbered += requests
        return range(self.numbered - requests, self.numbered)

    def closed_loop(self, what: str, numbers: range, output_tokens: int, concurrency: int) -> Batch:
        """Return the answers to these prompts in a closed loop."""
        return self.keep(f"{what} c{concurrency}", self.closed(what, numbers, output_tokens, concurrency))

    def closed(self, what: str, numbers: range, output_tokens: int, concurrency: int, least: Least | None = None) -> Batch:
        """Return the answers to these prompts in a closed loop, or to as many as `least` asks for; they are not counted yet."""
        total = len(numbers) if least is None else least.requests
        on_progress = self.announce(f"{what}, concurrency {concurrency}, {output_tokens} output tokens", total, least)
        payloads = self.payloads(numbers, output_tokens)
        return loop(self.target, payloads, concurrency, self.settings.timeout_s, self.crews.get(concurrency), on_progress, least)

    def level(self, concurrency: int) -> Batch:
        """Return a closed loop at this concurrency, after as many warm-up requests."""
        settings = self.settings
        warm = self.closed_loop("warm-up", self.new_numbers(concurrency), settings.output_tokens, concurrency)
        return self.lasting("closed loop", max(settings.requests_per_level, concurrency), concurrency, warm)

    def lasting(self, what: str, requests: int, concurrency: int, warm: Batch, before: Callable[[], object] = lambda: None) -> Batch:
        """Return a closed loop of at least so many requests and `level_min_s`, after its warm-up; `before` is called as it begins.

        The warm-up's pace tells how many prompts are enough. Where it was so much slower, as while kernels compile, that they run out
        too soon, that loop counts as a further warm-up, and another one begins.
        """
        settings, least = self.settings, Least(requests, self.settings.level_min_s)
        warmups = len(warm.answers)
        for left in reversed(range(PACES)):
            ample = math.ceil(SPARE * least.seconds * len(warm.answers) / warm.wall_s) if least.seconds else 0
            numbers = self.new_numbers(max(requests, ample))
            before()
            batch = self.closed(what, numbers, settings.output_tokens, concurrency, least)
            if not left or batch.wall_s >= least.seconds or len(batch.answers) < len(numbers):
                break
            warm = self.keep(f"warm-up c{concurrency}", batch)
            warmups += len(batch.answers)
        return replace(self.keep(f"{what} c{concurrency}", batch), warmups=warmups)

    def busy(self, concurrency: int, seconds: float) -> Batch:
        """Keep the server busy for so long with requests that count for no figure."""
        least = Least(concurrency, seconds)
        numbers = self.new_numbers(max(concurrency, math.ceil(MOST_BUSY_PER_S * seconds)))
        return self.keep(f"warm-up c{concurrency}", self.closed("warm-up", numbers, self.settings.output_tokens, concurrency, least))

    def open_loop(self, arrival: Arrival, rate_per_s: float) -> Batch:
        """Return the answers to requests that arrive at this rate, at least `open_requests` and for at least `open_min_s`."""
        settings = self.settings
        requests = max(settings.open_requests, math.ceil(settings.open_min_s * rate_per_s))
        return self.keep(f"{arrival} {rate_per_s:.4g}/s", self.arrivals(arrival, rate_per_s, requests, settings.seed))

    def trial(self, rate_per_s: float, requests: int, seed: int) -> Batch:
        """Return the answers to Poisson arrivals for the search for capacity; of their stamps, the first and the last chunk's are kept."""
        batch = self.arrivals("poisson", rate_per_s, requests, seed)
        self.trial_tokens |= {answer.tokens for answer in batch.good}
        ends = [replace(answer, chunk_ns=[answer.first_ns, answer.last_ns] if answer.ok else []) for answer in batch.answers]
        self.keep(f"capacity {rate_per_s:.4g}/s", replace(batch, answers=ends))
        return batch

    def arrivals(self, arrival: Arrival, rate_per_s: float, requests: int, seed: int) -> Batch:
        """Return the answers to requests by a schedule."""
        on_progress = self.announce(f"open loop, {arrival}, {rate_per_s:.3g} requests/s", requests)
        payloads = self.payloads(self.new_numbers(requests), self.settings.output_tokens)
        due_s = schedule(arrival, rate_per_s, requests, seed)
        most = max(self.crews, default=1)
        return loop(self.target, payloads, most, self.settings.timeout_s, self.crews.get(most), on_progress, due_s)

    def announce(self, what: str, total: int, least: Least | None = None) -> Callable[[int], None]:
        """Report what is sent, unless it is a warm-up; return the callback that receives the number of answers."""
        if what.startswith("warm-up"):
            return lambda _: None
        if least is None or not least.seconds:
            self.workspace.say(f"bench: {total} requests, {what}")
            return self.workspace.progress("bench", total)
        self.workspace.say(f"bench: at least {total} requests and {least.seconds:g} s, {what}")
        return lambda _: None

    def payloads(self, numbers: range, output_tokens: int) -> list[dict[str, Any]]:
        """Return requests of fixed length; each number has its own prompt and cache salt."""
        return [
            streamed(
                self.model,
                [{"role": "user", "content": QUESTION.format(number=number)}],
                output_tokens,
                ignore_eos=True,
                cache_salt=f"{self.salt}-{number}",
            )
            for number in numbers
        ]

    def keep(self, phase: str, batch: Batch) -> Batch:
        """Record the batch's counts and stamps, and return it."""
        answers = batch.answers
        self.answered += sum(answer.ok for answer in answers)
        self.tokens += sum(answer.tokens for answer in answers)
        self.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.replaced += sum(answer.replaced for answer in answers)
        self.contradictory += [answer for answer in answers if answer.contradicts_itself]
        self.uncounted += sum(answer.ok and answer.chunk_tokens is None for answer in answers)
        self.lines += [raw_line(phase, answer, self.began_ns) for answer in answers]
        return batch


def processes_of(calibration: Calibration) -> Processes | None:
    """Return the client processes that the calibration needed, or None if this process is enough."""
    return Processes(calibration.processes) if calibration.processes > 1 else None
