"""The phases of a benchmark: batches of requests in a closed or an open loop, with their counts and stamps."""

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
from pipeline.load.spread import Batch, Crew, Processes, loop
from pipeline.load.stamps import raw_line
from pipeline.measure.arrivals import Arrival, schedule

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
        self.lines: list[dict[str, Any]] = []

    def new_numbers(self, requests: int) -> range:
        """Return unused numbers for this many prompts."""
        self.numbered += requests
        return range(self.numbered - requests, self.numbered)

    def closed_loop(self, what: str, numbers: range, output_tokens: int, concurrency: int) -> Batch:
        """Return the answers to these prompts in a closed loop."""
        on_progress = self.announce(f"{what}, concurrency {concurrency}, {output_tokens} output tokens", len(numbers))
        payloads = self.payloads(numbers, output_tokens)
        timeout_s = self.settings.timeout_s
        crew = self.crews.get(concurrency)
        return self.keep(f"{what} c{concurrency}", loop(self.target, payloads, concurrency, timeout_s, crew, on_progress))

    def level(self, concurrency: int) -> Batch:
        """Return a closed loop at this concurrency, after as many warm-up requests."""
        settings = self.settings
        self.closed_loop("warm-up", self.new_numbers(concurrency), settings.output_tokens, concurrency)
        numbers = self.new_numbers(max(settings.requests_per_level, concurrency))
        return replace(self.closed_loop("closed loop", numbers, settings.output_tokens, concurrency), warmups=concurrency)

    def open_loop(self, arrival: Arrival, rate_per_s: float, requests: int) -> Batch:
        """Return the answers to requests that arrive at this rate."""
        on_progress = self.announce(f"open loop, {arrival}, {rate_per_s:.3g} requests/s", requests)
        payloads = self.payloads(self.new_numbers(requests), self.settings.output_tokens)
        due_s = schedule(arrival, rate_per_s, requests, self.settings.seed)
        most = max(self.crews, default=1)
        batch = loop(self.target, payloads, most, self.settings.timeout_s, self.crews.get(most), on_progress, due_s)
        return self.keep(f"{arrival} {rate_per_s:.4g}/s", batch)

    def announce(self, what: str, total: int) -> Callable[[int], None]:
        """Report what is sent, unless it is a warm-up; return the callback that receives the number of answers."""
        if what.startswith("warm-up"):
            return lambda _: None
        self.workspace.say(f"bench: {total} requests, {what}")
        return self.workspace.progress("bench", total)

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
