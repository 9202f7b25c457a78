"""Background load: random requests in flight beside the requests whose answers count."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from pipeline.client.payloads import streamed
from pipeline.client.tokens import Asker, TokenAnswer
from pipeline.errors import MeasureError
from pipeline.load.generator import closed_loop
from pipeline.measure.overlap import Reading, loaded_share, readings_within

LOAD_STARTS_S = 5.0
LOOK_S = 0.05  # between two looks at what is in flight
READ_EVERY_S = 0.02  # between two readings of how many requests the engine runs
APART_S = 0.05  # the longest time between two readings that prove what was between them
FEWEST_READINGS = 3  # within a request's life
LOADED_SHARE = 0.8  # of a request's life, amid the load
MOST_OTHERS = 0.75  # so many of the others make the load: one that ends is followed by one that waits for its prompt
MOST_AT_ONCE = 8  # a session keeps 10 connections
LOAD_QUESTION = "Write a letter about subject number {number} to a friend abroad."
GOLDEN = 0.6180339887  # its multiples modulo 1 lie evenly
RANDOM: dict[str, Any] = {"temperature": 1.0, "ignore_eos": True}


@dataclass(frozen=True)
class Amid:
    """An answer to a prompt, and for which share of its life the load ran beside it; None with too few readings of the gauge."""

    prompt: str
    answer: TokenAnswer
    loaded: float | None


def amid_load(
    asker: Asker, prompts: Sequence[str], others: int, running: Callable[[], int], on_progress: Callable[[int], None]
) -> tuple[list[Amid], int]:
    """Return the answers, each asked amid `others` requests of which at least half are random, and the most that were `running`."""
    at_once = max(1, min(others // 2, MOST_AT_ONCE))
    least = 1 + math.ceil(MOST_OTHERS * others)
    with gauge_read(running) as readings, under_load(asker, others + 1 - at_once):
        await_running(readings, others + 1 - at_once)
        answers = list(amid_others(asker, prompts, at_once, on_progress))

    def loaded(answer: TokenAnswer) -> float | None:
        if readings_within(readings, answer.began_s, answer.ended_s) < FEWEST_READINGS:
            return None
        return loaded_share(readings, answer.began_s, answer.ended_s, least, APART_S)

    return [Amid(prompt, answer, loaded(answer)) for prompt, answer in answers], max((count for _, count in readings), default=0)


def amid_others(
    asker: Asker, prompts: Sequence[str], at_once: int, on_progress: Callable[[int], None]
) -> Iterator[tuple[str, TokenAnswer]]:
    """Yield each prompt with its answer, `at_once` requests in flight; when no prompt is left, random ones fill up."""
    waiting, numbers = list(reversed(prompts)), itertools.count(10**6)  # none that the load itself has
    counting: dict[Future[TokenAnswer], str] = {}
    filling: list[Future[TokenAnswer]] = []
    done = 0
    while waiting or counting:
        while waiting and len(counting) < at_once:
            prompt = waiting.pop()
            counting[in_background(asker.ask_anew, prompt)] = prompt
        filling = [future for future in filling if not future.done()]
        while len(counting) + len(filling) < at_once:
            number = next(numbers)
            room = load_tokens(number, asker.settings.max_tokens) - asker.settings.max_tokens
            filling.append(in_background(asker.ask, LOAD_QUESTION.format(number=number), **{**RANDOM, "seed": number, "room": room}))
        wait(counting, LOOK_S, FIRST_COMPLETED)
        for future in [future for future in counting if future.done()]:
            done += 1
            on_progress(done)
            yield counting.pop(future), future.result()
    wait(filling)  # whatever comes next is asked alone


@contextmanager
def gauge_read(running: Callable[[], int]) -> Iterator[list[Reading]]:
    """Read the gauge again and again while inside; the list grows meanwhile. A reading that fails is a gap.

    A server that is slow to tell is left alone for twice as long: on a processor its answer costs what the model could compute.
    """
    readings: list[Reading] = []
    ending = threading.Event()

    def read() -> None:
        took_s = 0.0
        while not ending.wait(max(READ_EVERY_S, 2 * took_s)):
            began = time.monotonic()
            with suppress(MeasureError):
                now = running()
                readings.append((time.monotonic(), now))
            took_s = time.monotonic() - began

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ending.set()


def await_running(readings: Sequence[Reading], others: int) -> None:
    """Wait until the engine runs the whole load, for 5 s at most; what it runs is counted beside each request anyway."""
    deadline = time.monotonic() + LOAD_STARTS_S
    while (not readings or readings[-1][1] < others) and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def in_background(ask: Callable[..., TokenAnswer], prompt: str, **more: Any) -> "Future[TokenAnswer]":
    """Return the future answer, from a daemon thread: an executor would delay Ctrl-C until the answer arrives."""
    future: Future[TokenAnswer] = Future()

    def work() -> None:
        try:
            future.set_result(ask(prompt, **more))
        except MeasureError as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def load_tokens(number: int, mean: int) -> int:
    """Return the tokens of the load's request of that number, from half of `mean` to one and a half: of one length they all end at once."""
    return max(1, round(mean * (0.5 + number * GOLDEN % 1)))


@contextmanager
def under_load(asker: Asker, others: int) -> Iterator[None]:
    """Keep `others` random requests in flight inside the block."""
    ending = threading.Event()
    payloads = (
        streamed(
            asker.model,
            [{"role": "user", "content": LOAD_QUESTION.format(number=number)}],
            load_tokens(number, asker.settings.max_tokens),
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
    except BaseException:  # nobody waits for the answers to the load
        wanted.clear()
        raise
    finally:
        ending.set()
    thread.join()
