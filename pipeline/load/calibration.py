"""Calibration of the client against a stub: how late it stamps a chunk, the CPU time per chunk, and its highest chunk rate."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.errors import MeasureError
from pipeline.load.generator import closed_loop
from pipeline.load.spread import ROOT, Batch, Crew, Processes, Task, loop, shares
from pipeline.measure.statistics import quantile
from pipeline.message import Digits, _
from pipeline.values import Frozen

STUB_MODEL = "stub"
FIRST_MS, EACH_MS = 20.0, 5.0
MOST_CHUNKS_S = 6400.0  # the stub keeps its schedule up to this rate; beyond it, the schedule is slowed
CALIBRATION_TOKENS = 32
HURRIED_TOKENS, HURRIED_REQUESTS = 500, 64
ANSWER_S = 60.0
TRIES = 3  # a moment of noise on the machine does not disqualify the client
PROBES = 2  # requests to the stub at once while the server computes
CEILING_SHARE = 0.5  # the client must be able to take twice the rate that it takes


class Calibration(Frozen):
    """Cost of the client at one concurrency, measured against a stub: delay from send to stamp, and CPU time, per chunk.

    Processes on `nodes` of a cluster each have a stub on the same node, and their share of the concurrency.
    """

    concurrency: int
    processes: int = 1
    nodes: int = 0
    chunks: int
    delay_ms_p50: float
    delay_ms_p95: float
    cpu_us_per_chunk: float

    def trouble(self, budget_ms: float, chunks_s: float, ceiling_chunks_s: float) -> str:
        """Return why figures at this concurrency and chunk rate are invalid, or "" if they are valid."""
        if self.delay_ms_p95 > budget_ms:
            values = {"delay": Digits(f"{self.delay_ms_p95:.3g}"), "budget": Digits(f"{budget_ms:g}")}
            return _("the client saw chunks {delay} ms late (p95 against a stub), over its budget of {budget} ms", **values)
        most = self.processes * ceiling_chunks_s
        if chunks_s > CEILING_SHARE * most:
            rates = {"came": round(chunks_s), "most": round(most)}
            return _("{came} chunks/s came, over half of the {most} that the client can take", **rates)
        return ""


class Contention(Frozen):
    """How late the client saw a stub's chunks while the server answered so many requests at once, in ms."""

    concurrency: int
    chunks: int
    delay_ms_p50: float
    delay_ms_p95: float

    def trouble(self, budget_ms: float) -> str:
        """Return why figures at this concurrency are invalid, or "" if they are valid."""
        if self.delay_ms_p95 <= budget_ms:
            return ""
        values = {"delay": Digits(f"{self.delay_ms_p95:.3g}"), "budget": Digits(f"{budget_ms:g}")}
        return _(
            "while the server computed, the client saw chunks {delay} ms late (p95 against a stub), over its budget of {budget} ms",
            **values,
        )


def calibrate(concurrencies: Sequence[int], budget_ms: float, crew: Crew | None = None) -> tuple[list[Calibration], float]:
    """Return a calibration for each concurrency, and the ceiling of one process in chunks per second, parsing included.

    If one process stays over its budget after a few tries, the number of processes doubles, up to the number of cores. Above
    concurrency 1, a `crew` uses its own clients instead; the ceiling is then that of its slowest client.
    """
    levels = []
    for concurrency in concurrencies:
        if crew is not None and concurrency > 1:
            levels.append(best_of_crew(crew, concurrency, budget_ms))
            continue
        with paced(concurrency) as target:
            levels.append(best_calibration(target, concurrency, budget_ms))
    if crew is None or max(concurrencies) == 1:
        return levels, Hurried(max(concurrencies)).do(0)
    counts = shares(max(concurrencies), crew.count)
    return levels, min(results_of(crew, [Hurried(count) for count in counts]))


@contextmanager
def paced(concurrency: int) -> Iterator[Endpoint]:
    """Run a stub with a schedule that it can keep at this concurrency."""
    with stub("--first-ms", f"{FIRST_MS:g}", "--each-ms", f"{max(EACH_MS, 1000 * concurrency / MOST_CHUNKS_S):g}") as target:
        yield target


def best_calibration(target: Endpoint, concurrency: int, budget_ms: float) -> Calibration:
    """Return the first calibration within the budget, else the one with the shortest delays."""
    tries: list[Calibration] = []
    processes = 1
    while processes <= min(concurrency, os.cpu_count() or 1):
        for _attempt in range(TRIES):
            tries.append(calibration(target, concurrency, processes))
            if tries[-1].delay_ms_p95 <= budget_ms:
                return tries[-1]
        processes *= 2
    return min(tries, key=lambda entry: entry.delay_ms_p95)


def best_of_crew(crew: Crew, concurrency: int, budget_ms: float) -> Calibration:
    """Return the first calibration of the crew within the budget, else the one with the shortest delays."""
    tries: list[Calibration] = []
    counts = shares(concurrency, crew.count)
    for _attempt in range(TRIES):
        results = results_of(crew, [Paced(count) for count in counts])
        delays = [delay for one, _ in results for delay in one]
        tries.append(calibration_of(concurrency, len(counts), delays, sum(cpu_s for _, cpu_s in results), crew.nodes))
        if tries[-1].delay_ms_p95 <= budget_ms:
            return tries[-1]
    return min(tries, key=lambda entry: entry.delay_ms_p95)


def results_of(crew: Crew, tasks: Sequence[Task]) -> list[Any]:
    """Return the results of tasks that the clients run against their own stubs, which are always alive."""
    return [one.result for one in crew.run(tasks, lambda: True) if one is not None]


@dataclass(frozen=True)
class Paced:
    """A client's task: calibrate itself against a stub on its own host."""

    concurrency: int

    def do(self, start_ns: int) -> tuple[list[float], float]:  # noqa: ARG002 -- a task's signature
        """Return (each chunk's delay in ms, CPU seconds)."""
        with paced(self.concurrency) as target:
            return delays(target, self.concurrency, None)


@dataclass(frozen=True)
class Hurried:
    """A client's task: measure its ceiling against a stub that sends without waiting."""

    concurrency: int

    def do(self, start_ns: int) -> float:  # noqa: ARG002 -- a task's signature
        """Return the chunks per second, parsing included."""
        with stub() as target:
            payloads = [streamed(STUB_MODEL, [{"role": "user", "content": "x"}], HURRIED_TOKENS) for _ in range(HURRIED_REQUESTS)]
            began = time.perf_counter()
            answers, _ = closed_loop(target, payloads, self.concurrency, ANSWER_S)
            return round(sum(len(answer.chunk_ns) for answer in answers) / (time.perf_counter() - began), 1)


def calibration(target: Endpoint, concurrency: int, processes: int = 1) -> Calibration:
    """Return the client's calibration at one concurrency."""
    found, cpu_s = delays(target, concurrency, Processes(processes) if processes > 1 else None)
    return calibration_of(concurrency, processes, found, cpu_s)


def delays(target: Endpoint, concurrency: int, crew: Crew | None) -> tuple[list[float], float]:
    """Return (each chunk's delay in ms, our CPU seconds) from answers whose text holds the time each chunk was sent."""
    payloads = [streamed(STUB_MODEL, [{"role": "user", "content": "x"}], CALIBRATION_TOKENS) for _ in range(concurrency * 2 + 2)]
    closed_loop(target, payloads[:concurrency], concurrency, ANSWER_S)
    batch = loop(target, payloads, concurrency, ANSWER_S, crew)
    failed = next((answer.error for answer in batch.answers if not answer.ok), "")
    if failed:
        raise MeasureError(f"the client's calibration: {failed}")
    pairs = [pair for answer in batch.answers for pair in zip(answer.chunk_ns, answer.text.split(), strict=True)]
    return [(at - int(sent)) / 1e6 for at, sent in pairs], batch.cpu_s


def contention(loads: Mapping[int, Callable[[], Batch]]) -> list[Contention]:
    """Return the client's delays against a stub during each load on the server, by the load's concurrency; an idle machine hides them.

    The stub's answers arrive in this process, beside those of the load if it sends that too. A load without a good answer has none.
    """
    results = []
    with stub("--first-ms", f"{FIRST_MS:g}", "--each-ms", f"{EACH_MS:g}") as target:
        for concurrency, load in loads.items():
            answers, batch = beside(target, load)
            begin, end = min((one.sent_ns for one in batch.good), default=0), max((one.last_ns for one in batch.good), default=0)
            pairs = [pair for answer in answers if answer.ok for pair in zip(answer.chunk_ns, answer.text.split(), strict=True)]
            found = [(at - int(sent)) / 1e6 for at, sent in pairs if begin <= at <= end]
            if found:
                p50, p95 = (round(quantile(found, q), 4) for q in (0.5, 0.95))
                results.append(Contention(concurrency=concurrency, chunks=len(found), delay_ms_p50=p50, delay_ms_p95=p95))
    return results


def beside(target: Endpoint, load: Callable[[], Batch]) -> tuple[list[Answer], Batch]:
    """Return (the answers of the stub at `target` while `load` ran, the result of `load`)."""
    ending = threading.Event()
    payloads = (streamed(STUB_MODEL, [{"role": "user", "content": "x"}], CALIBRATION_TOKENS) for _ in itertools.count())
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(closed_loop, target, payloads, PROBES, ANSWER_S, lambda: not ending.is_set())
        try:
            batch = load()
        finally:
            ending.set()
        return probe.result()[0], batch


def calibration_of(concurrency: int, processes: int, delays_ms: Sequence[float], cpu_s: float, nodes: int = 0) -> Calibration:
    """Return the calibration that these delays give."""
    return Calibration(
        concurrency=concurrency,
        processes=processes,
        nodes=nodes,
        chunks=len(delays_ms),
        delay_ms_p50=round(quantile(delays_ms, 0.5), 4),
        delay_ms_p95=round(quantile(delays_ms, 0.95), 4),
        cpu_us_per_chunk=round(1e6 * cpu_s / len(delays_ms), 2),
    )


@contextmanager
def stub(*arguments: str) -> Iterator[Endpoint]:
    """Run the stub inside the block; it ends when its standard input closes."""
    command = [sys.executable, "-m", "pipeline.load.stub", *arguments]
    # In a session of its own, so that Ctrl-C reaches only us; we end the stub.
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise MeasureError("the client's calibration: the stub did not start")
            yield Endpoint(f"http://127.0.0.1:{port}")
        finally:
            process.stdin.close()
            process.stdin = None
