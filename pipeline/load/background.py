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
    counting: dict[Future[TokenAnswer], str] = {}
    filling: list[Future[TokenAnswer]] = []
    seen: dict[Future[TokenAnswer], int] = {}
    done = 0
    while waiting or counting:
        while waiting and len(counting) < at_once:
            prompt = waiting.pop()
            counting[in_background(asker, prompt)] = prompt
        filling = [future for future in filling if not future.done()]
        while len(counting) + len(filling) < at_once:
            number = next(numbers)
            filling.append(in_background(asker, LOAD_QUESTION.format(number=number), **{**RANDOM, "seed": number}))
        now = running()
        seen |= {future: max(seen.get(future, 0), now) for future in counting if not future.done()}
        wait(counting, GAUGE_S, FIRST_COMPLETED)
        for future in [future for future in counting if future.done()]:
            done += 1
            on_progress(done)
            yield counting.pop(future), future.result(), seen.get(future, 0)
    wait(filling)  # the next request must be alone


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
    wanted = threading.Event()
    wanted.set()
    load = replace(asker.target, alive=lambda: wanted.is_set() and asker.target.alive())
    arguments = (load, payloads, others, asker.settings.timeout_s, lambda: not ending.is_set())
    thread = threading.Thread(target=closed_loop, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # do not wait for the load's answers
        wanted.clear()
        raise
    finally:
        ending.set()
    thread.join()
