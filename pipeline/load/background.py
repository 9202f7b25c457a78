"""Background load: random requests in flight beside the requests whose answers count."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.client.payloads import streamed
from pipeline.client.tokens import Asker, TokenAnswer
from pipeline.errors import MeasureError
from pipeline.load.generator import closed_loop

LOAD_STARTS_S = 5.0
GAUGE_S = 0.05  # between two readings of how many requests the engine runs
MOST_AT_ONCE = 8  # a session's pool holds 10 connections
LOAD_QUESTION = "Write a letter about subject number {number} to a friend abroad."
RANDOM: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}


def amid_others(
    asker: Asker, prompts: Sequence[str], at_once: int, running: Callable[[], int], on_progress: Callable[[int], None]
) -> Iterator[tuple[str, TokenAnswer, int]]:
    """Yield (prompt, answer, peak of `running` during it) with `at_once` requests in flight.

    When prompts run out, random requests take their place, so the number in flight stays the same.
    """
    waiting, numbers = list(reversed(prompts)), itertools.count(10**6)  # numbers that the load itself does not use
    pending: dict[Future[TokenAnswer], str] = {}
    fillers: list[Future[TokenAnswer]] = []
    peaks: dict[Future[TokenAnswer], int] = {}
    done = 0
    while waiting or pending:
        while waiting and len(pending) < at_once:
            prompt = waiting.pop()
            pending[in_background(asker, prompt)] = prompt
        fillers = [future for future in fillers if not future.done()]
        while len(pending) + len(fillers) < at_once:
            number = next(numbers)
            fillers.append(in_background(asker, LOAD_QUESTION.format(number=number), **{**RANDOM, "seed": number}))
        now = running()
        peaks |= {future: max(peaks.get(future, 0), now) for future in pending if not future.done()}
        wait(pending, GAUGE_S, FIRST_COMPLETED)
        for future in [future for future in pending if future.done()]:
            done += 1
            on_progress(done)
            yield pending.pop(future), future.result(), peaks.get(future, 0)
    wait(fillers)  # the next request must be alone


def await_running(running: Callable[[], int], others: int) -> None:
    """Wait until the engine runs the whole load, for 5 s at most; what it runs is counted beside each request anyway."""
    deadline = time.monotonic() + LOAD_STARTS_S
    while running() < others and time.monotonic() < deadline:
        time.sleep(GAUGE_S)


def in_background(asker: Asker, prompt: str, **more: Any) -> "Future[TokenAnswer]":
    """Return the future answer, from a daemon thread: an executor would delay Ctrl-C until the answer arrives."""
    future: Future[TokenAnswer] = Future()

    def work() -> None:
        try:
            future.set_result(asker.ask(prompt, **more))
        except MeasureError as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


@contextmanager
def under_load(asker: Asker, others: int) -> Iterator[None]:
    """Keep `others` random requests in flight inside the block."""
    ending = threading.Event()
    payloads = (
        streamed(
            asker.model,
            [{"role": "user", "content": LOAD_QUESTION.format(number=number)}],
            asker.settings.max_tokens,
            **{**RANDOM, "seed": number},
        )
        for number in itertools.count()
    )
    active = threading.Event()
    active.set()
    load = replace(asker.target, alive=lambda: active.is_set() and asker.target.alive())
    arguments = (load, payloads, others, asker.settings.timeout_s, lambda: not ending.is_set())
    thread = threading.Thread(target=closed_loop, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # do not wait for the load's answers
        active.clear()
        raise
    finally:
        ending.set()
    thread.join()
