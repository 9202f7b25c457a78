"""Attempts at stages: one runs in the caller's thread, several run side by side."""

import ctypes
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from queue import SimpleQueue
from typing import Any

from pipeline.engine.record import Artifact, now
from pipeline.engine.stage import Stage

ENDING_S = 2.0  # how long an interrupt waits for threads: what blocks them for longer than this dies with the process


@dataclass
class StageRun:
    """A stage about to run, why, and its fingerprint; after `run`, when it started, how long it took, and its data or error."""

    stage: Stage
    reason: str
    because: dict[str, Any]
    call: Callable[[], Artifact]
    started: datetime = field(default_factory=now)
    took_s: float = 0.0
    data: Artifact | None = None
    error: BaseException | None = None

    def run(self) -> None:
        """Call the stage; whatever it raises is kept for whoever started it."""
        self.started, clock = now(), time.perf_counter()
        try:
            self.data = self.call()
        except BaseException as error:
            self.error = error
        self.took_s = time.perf_counter() - clock


def each_ended(attempts: Sequence[StageRun]) -> Generator[StageRun]:
    """Run all attempts at once, a single one in this thread, and yield each when it has ended.

    Nothing is recorded in the threads. Whoever stops early, as an interrupt does, ends those that still run.
    """
    if len(attempts) == 1:
        attempts[0].run()
        yield attempts[0]
        return
    ended: SimpleQueue[StageRun] = SimpleQueue()

    def work(attempt: StageRun) -> None:
        attempt.run()
        ended.put(attempt)

    threads = [threading.Thread(target=work, args=(attempt,), daemon=True) for attempt in attempts]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            yield ended.get()
    except BaseException:
        for thread in threads:
            end(thread)
        for thread in threads:
            thread.join(ENDING_S)
        raise


def end(thread: threading.Thread) -> None:
    """Raise SystemExit in the thread where it runs Python; one that waits outside of Python gets it afterwards."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
