"""Load from several clients, where one process cannot stamp in time: processes on this machine or on nodes of a cluster.

Run as a program, it is one client: it reads a pickled task from standard input, writes "ready", reads when to start, and writes
the pickled result to standard output. It ends when its input closes.
"""

import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.errors import MeasureError
from pipeline.load.clocks import Clock, apart_ns, by_ours
from pipeline.load.generator import LIVENESS_CHECK_S, TARGET_GONE, closed_loop, open_loop, report_span, uncollected
from pipeline.load.on_node import READY

ROOT = Path(__file__).resolve().parents[2]
LEAD_NS = int(LIVENESS_CHECK_S * 1e9)  # from the command to start until an open loop starts


@dataclass(frozen=True)
class Batch:
    """The answers of one loop in order, its wall seconds and our CPU seconds; `warmups` requests were sent before and not counted.

    `clock_ms` is the largest error of the time between stamps of two clients.
    """

    answers: list[Answer]
    wall_s: float
    cpu_s: float
    clock_ms: float = 0.0
    warmups: int = 0

    @property
    def good(self) -> list[Answer]:
        """Return the successful answers."""
        return [answer for answer in self.answers if answer.ok]

    @property
    def failed(self) -> int:
        """Return the number of failed requests."""
        return len(self.answers) - len(self.good)


@dataclass(frozen=True)
class Least:
    """The least number of requests and seconds of a closed loop, which sends no more once it has both."""

    requests: int
    seconds: float

    def keep_going(self) -> Callable[[], bool]:
        """Return the function that tells before each send whether to send it; the time runs from now."""
        sent = itertools.count()
        end = time.perf_counter() + self.seconds
        return lambda: next(sent) < self.requests or time.perf_counter() < end


Pace = Sequence[float] | Least | None  # when each request is due (s); the least size of a closed loop; all payloads in a closed loop


class Task(Protocol):
    """The work of one client; it must be picklable."""

    def do(self, start_ns: int) -> Any:
        """Do the work, an open loop from `start_ns` on by this host's clock; return a picklable result."""


@dataclass(frozen=True)
class ClientResult:
    """The result of a client's task, and its clock during the task."""

    result: Any
    clock: Clock


class Crew(Protocol):
    """Clients that work at the same time."""

    @property
    def count(self) -> int:
        """Return the number of clients."""

    @property
    def nodes(self) -> int:
        """Return the number of cluster nodes that they run on; 0 for processes on this machine."""

    def run(self, tasks: Sequence[Task], alive: Callable[[], bool]) -> list[ClientResult | None]:
        """Return the result of each client, or None if it was ended because the target was no longer `alive`.

        Raises MeasureError if a client is lost, because nobody knows what became of its requests.
        """


@dataclass(frozen=True)
class LoadShare:
    """One client's part of the load: an open loop if its pace says when each request is due, else a closed one."""

    base_urls: tuple[str, ...]
    payloads: list[dict[str, Any]]
    concurrency: int
    timeout_s: float
    api_key: str | None = field(repr=False)
    pace: tuple[float, ...] | Least | None = None

    def do(self, start_ns: int) -> tuple[list[Answer], float]:
        """Send the requests; return (answers in order, CPU seconds)."""
        first, *replicas = self.base_urls
        target = Endpoint(first, api_key=self.api_key, replicas=tuple(replicas))
        began = time.process_time()
        if self.pace is None or isinstance(self.pace, Least):
            answers, _ = closed_loop(target, self.payloads, self.concurrency, self.timeout_s, keep_going_of(self.pace))
        else:
            answers, _ = open_loop(target, self.payloads, self.pace, self.timeout_s, start_ns=start_ns)
        return answers, time.process_time() - began


@dataclass(frozen=True)
class Processes:
    """Client processes on this machine, which all stamp with the same clock."""

    count: int
    nodes: int = 0

    def run(self, tasks: Sequence[Task], alive: Callable[[], bool]) -> list[ClientResult | None]:
        """Run each task in a new process, as described in `Crew.run`."""
        command = [sys.executable, "-m", "pipeline.load.spread"]
        # In sessions of their own, so that Ctrl-C reaches only us; we end the processes.
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        workers = [subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) for _ in tasks]
        try:
            for worker, task in zip(workers, tasks, strict=True):
                job = pickle.dumps(task)
                send(worker, len(job).to_bytes(8, "big") + job)
            if not all(worker.stdout is not None and worker.stdout.readline() == READY for worker in workers):
                raise MeasureError("a process of the client did not start")
            start_ns = time.perf_counter_ns() + LEAD_NS
            for worker in workers:
                send(worker, b"%d\n" % start_ns)
            with ThreadPoolExecutor(len(workers)) as pool:
                futures = [pool.submit(worker.stdout.read) for worker in workers if worker.stdout is not None]
                try:
                    gone = await_results(futures, alive)
                finally:  # all done, target dead or Ctrl-C: what still runs must end, so that reading from it ends
                    for worker in workers:
                        worker.kill()
            results = [future.result() for future in futures]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        if not gone and not all(results):
            code = next(worker.returncode for worker, result in zip(workers, results, strict=True) if not result)
            raise MeasureError(
                f"a process of the load client ended in mid-measurement (exit code {code})", "free some memory, then run the same command"
            )
        return [ClientResult(pickle.loads(result), Clock()) if result else None for result in results]


def await_results(futures: Sequence["Future[bytes]"], alive: Callable[[], bool]) -> bool:
    """Wait for the results, until a process ends without one; tell whether the target died first."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, LIVENESS_CHECK_S, FIRST_COMPLETED)
        if not alive():
            return bool(waiting) or not all(future.result() for future in futures)
        if not all(future.result() for future in done):
            return False
    return False


def send(worker: "subprocess.Popen[bytes]", data: bytes) -> None:
    """Write data to the worker's input, unless it is closed."""
    assert worker.stdin is not None
    rest = memoryview(data)
    with suppress(BrokenPipeError):
        while rest:  # an unbuffered pipe may take only a part
            rest = rest[worker.stdin.write(rest) :]


def loop(
    target: Endpoint,
    payloads: Sequence[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    crew: Crew | None = None,
    on_progress: Callable[[int], None] = lambda _answered: None,
    pace: Pace = None,
) -> Batch:
    """Send `payloads` from this process or a crew, with `concurrency` in flight in total, or each when it is due.

    A pace of the least requests and seconds leaves the payloads beyond them unsent; there should be enough of them.
    """
    if crew is not None:
        return loop_of_crew(crew, target, payloads, concurrency, timeout_s, on_progress, pace)
    cpu = time.process_time()
    if pace is None or isinstance(pace, Least):
        answers, wall_s = closed_loop(target, payloads, concurrency, timeout_s, keep_going_of(pace), on_progress)
    else:
        answers, wall_s = open_loop(target, payloads, pace, timeout_s, on_progress)
    return Batch(answers, wall_s, time.process_time() - cpu)


def keep_going_of(pace: Least | None) -> Callable[[], bool]:
    """Return the function that tells a closed loop of this pace before each send whether to send it."""
    return (lambda: True) if pace is None else pace.keep_going()


def loop_of_crew(
    crew: Crew,
    target: Endpoint,
    payloads: Sequence[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    on_progress: Callable[[int], None],
    pace: Pace = None,
) -> Batch:
    """Run `loop` with a crew, whose clients start together when all are ready, and merge their stamps by our clock.

    The wall time runs from the first send (in an open loop: from when the first was due) to the last chunk. If the target dies,
    requests without a result from their client count as failed.
    """
    closed = pace is None or isinstance(pace, Least)
    count = min(crew.count, concurrency if closed else len(payloads))
    turns = [range(start, len(payloads), count) for start in range(count)]
    parts = [
        LoadShare(
            urls_from(target, turn.start),
            [{**target.fields, **payloads[index]} for index in turn],
            in_flight,
            timeout_s,
            target.api_key,
            pace_of(turn, count, pace),
        )
        for turn, in_flight in zip(turns, shares(max(concurrency, count), count), strict=True)
    ]
    began = time.perf_counter()
    answers: dict[int, Answer] = {}
    with uncollected():  # collecting so many answers would take longer than merging them
        results = crew.run(parts, target.alive)
        gone_ns = time.perf_counter_ns()
        for turn, one in zip(turns, results, strict=True):
            if one is not None:
                answers |= {index: by_ours(answer, one.clock) for index, answer in zip(turn, one.result[0], strict=False)}
            else:
                least = len(turn) if not isinstance(pace, Least) else -(-pace.requests // count)
                answers |= {index: Answer(gone_ns, error=TARGET_GONE, scheduled_ns=gone_ns) for index in turn[:least]}
            on_progress(len(answers))
    whole = report_span(target, [answers[index] for index in sorted(answers)])
    good = [answer for answer in whole if answer.ok]
    spans_s = (max(answer.last_ns for answer in good) - min(answer.scheduled_ns for answer in good)) / 1e9 if good else 0.0
    complete = [one for one in results if one is not None]
    clock_ms = apart_ns([one.clock for one in complete]) / 1e6
    return Batch(whole, spans_s or time.perf_counter() - began, sum(one.result[1] for one in complete), clock_ms)


def pace_of(turn: range, clients: int, pace: Pace) -> tuple[float, ...] | Least | None:
    """Return the pace of the client whose payloads are those of `turn`, one of so many clients."""
    if isinstance(pace, Least):
        return Least(-(-pace.requests // clients), pace.seconds)
    return None if pace is None else tuple(pace[index] for index in turn)


def shares(concurrency: int, clients: int) -> list[int]:
    """Return the number in flight for each client; there are no more clients than `concurrency`."""
    count = min(concurrency, clients)
    return [concurrency // count + (number < concurrency % count) for number in range(count)]


def urls_from(target: Endpoint, first: int) -> tuple[str, ...]:
    """Return the base URLs of the server and its replicas, starting with the one whose turn payload number `first` is."""
    urls = (target.base_url, *target.replicas)
    return urls[first % len(urls) :] + urls[: first % len(urls)]


def work(source: IO[bytes], sink: IO[bytes]) -> None:
    """Run one task; exit at once when `source` closes, however the process that holds it ended."""
    task: Task = pickle.loads(source.read(int.from_bytes(source.read(8), "big")))
    sink.write(READY)
    sink.flush()
    start = source.readline()
    if not start:
        return
    threading.Thread(target=end_with, args=(source.fileno(),), daemon=True).start()
    sink.write(pickle.dumps(task.do(int(start))))
    sink.flush()


def end_with(source: int) -> None:
    """Exit this process at once when the other end of `source` closes."""
    while os.read(source, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    work(sys.stdin.buffer, sys.stdout.buffer)
