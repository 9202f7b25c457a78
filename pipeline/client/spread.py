"""A closed loop spread over several processes, for load that one cannot stamp in time.

Run as a program it is one of them: a pickled job on standard input, "ready" and then the pickled answers on standard output.
"""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.client.answer import Answer
from pipeline.client.load import GONE, LOOK_S, Target, closed_loop
from pipeline.errors import MeasureError

ROOT = Path(__file__).resolve().parents[2]
READY = b"ready\n"


@dataclass(frozen=True)
class Job:
    """One process's part of the load."""

    base_urls: tuple[str, ...]
    payloads: list[dict[str, Any]]
    concurrency: int
    timeout_s: float
    api_key: str | None = field(repr=False)


def loop(
    target: Target,
    payloads: Sequence[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    processes: int,
    told: Callable[[int], None] = lambda _answered: None,
) -> tuple[list[Answer], float, float]:
    """Send `payloads` from so many processes, together `concurrency` in flight; return (answers in order, wall s, our CPU s)."""
    if processes > 1:
        return spread_loop(target, payloads, concurrency, timeout_s, processes, told)
    cpu = time.process_time()
    answers, wall_s = closed_loop(target, payloads, concurrency, timeout_s, told=told)
    return answers, wall_s, time.process_time() - cpu


def spread_loop(
    target: Target,
    payloads: Sequence[dict[str, Any]],
    concurrency: int,
    timeout_s: float,
    processes: int,
    told: Callable[[int], None],
) -> tuple[list[Answer], float, float]:
    """Do as `loop` does with several processes, which start to send when all are ready; their stamps are of one clock.

    The wall seconds are those from the first send to the last chunk. When the target dies, what a process has not yet
    handed over counts as failed.
    """
    shares = [range(start, len(payloads), processes) for start in range(processes)]
    counts = [concurrency // processes + (number < concurrency % processes) for number in range(processes)]
    jobs = [
        Job(turned(target, share.start), [payloads[index] for index in share], count, timeout_s, target.api_key)
        for share, count in zip(shares, counts, strict=True)
    ]
    command = [sys.executable, "-m", "pipeline.client.spread"]
    # In sessions of their own: Ctrl-C is for us, and we end them.
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    workers = [subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) for _ in jobs]
    answers: dict[int, Answer] = {}
    cpu_s = 0.0
    try:
        for worker, job in zip(workers, jobs, strict=True):
            with suppress(BrokenPipeError):  # it ended, and does not get ready
                say(worker, pickle.dumps(job))
        if not all(worker.stdout is not None and worker.stdout.readline() == READY for worker in workers):
            raise MeasureError("a process of the client did not start")
        began = time.perf_counter()
        with ThreadPoolExecutor(len(workers)) as pool:
            heard = [pool.submit(lambda worker=worker: worker.communicate(b"go")[0]) for worker in workers]  # type: ignore[misc]  # a default argument binds it
            try:
                while wait(heard, LOOK_S).not_done and target.alive():
                    pass
            finally:  # all are done, or the target is dead, or Ctrl-C: what still sends is ended before its answers are awaited
                for worker in workers:
                    worker.kill()
        for share, future in zip(shares, heard, strict=True):
            if future.result():
                made, took_s = pickle.loads(future.result())
                answers |= dict(zip(share, made, strict=True))
                cpu_s += took_s
            told(len(answers))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    now_ns = time.perf_counter_ns()
    whole = [answers.get(index, Answer(now_ns, error=GONE, scheduled_ns=now_ns)) for index in range(len(payloads))]
    good = [answer for answer in whole if answer.ok]
    spans_s = (max(answer.last_ns for answer in good) - min(answer.sent_ns for answer in good)) / 1e9 if good else 0.0
    return whole, spans_s or time.perf_counter() - began, cpu_s


def turned(target: Target, first: int) -> tuple[str, ...]:
    """Return the base URLs, those of replicas too, with the one first whose turn the payload of that index is."""
    urls = (target.base_url, *target.replicas)
    return urls[first % len(urls) :] + urls[: first % len(urls)]


def say(worker: "subprocess.Popen[bytes]", data: bytes) -> None:
    """Send the worker a job, its length first."""
    assert worker.stdin is not None
    rest = memoryview(len(data).to_bytes(8, "big") + data)
    while rest:  # an unbuffered pipe takes what it has room for
        rest = rest[worker.stdin.write(rest) :]


def work(source: IO[bytes], sink: IO[bytes]) -> None:
    """Do one job."""
    job: Job = pickle.loads(source.read(int.from_bytes(source.read(8), "big")))
    sink.write(READY)
    sink.flush()
    source.read()
    first, *replicas = job.base_urls
    began = time.process_time()
    answers, _ = closed_loop(Target(first, api_key=job.api_key, replicas=tuple(replicas)), job.payloads, job.concurrency, job.timeout_s)
    sink.write(pickle.dumps((answers, time.process_time() - began)))
    sink.flush()


if __name__ == "__main__":
    work(sys.stdin.buffer, sys.stdout.buffer)
