"""Running stages: a single one in the caller's thread, several side by side."""

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

ENDING_S = 2.0  # how long an interrupt waits for threads; one that is blocked for longer dies with the process


@dataclass
class StageRun:
    """A stage to run, the reason and its fingerprint; `run` adds when it started, how long it took, and its data or error."""

    stage: Stage
    reason: str
    because: dict[str, Any]
    call: Callable[[], Artifact]
    started: datetime = field(default_factory=now)
    took_s: float = 0.0
    data: Artifact | None = None
    error: BaseException | None = None

    def run(self) -> None:
        """Call the stage and keep its data, or the error that it raises."""
        self.started, clock = now(), time.perf_counter()
        try:
            self.data = self.call()
        except BaseException as error:
            self.error = error
        self.took_s = time.perf_counter() - clock


def each_ended(attempts: Sequence[StageRun]) -> Generator[StageRun]:
    """Run all attempts at once, a single one in this thread, and yield each when it has ended.

    The threads record nothing. If the caller stops early, as on an interrupt, the threads that still run are ended.
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
    """Raise SystemExit in the thread; it takes effect when the thread next runs Python code."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
