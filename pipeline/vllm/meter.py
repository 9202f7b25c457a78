"""Readings of the server's /metrics while a load runs: use of the KV cache, and preemptions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.errors import MeasureError
from pipeline.vllm.metrics import KV_USAGE, PREEMPTIONS

READ_EVERY_S = 1.0


class Meter:
    """The readings during a load: their number, the peak use of the KV cache, and the preemption counter."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.readings = 0
        self.kv_peak_percent: float | None = None
        self.preemptions_before = self.preemptions = self._read_preemptions()

    @property
    def preempted(self) -> int | None:
        """Return the preemptions during the load so far; None where the server does not count them."""
        return None if self.preemptions is None or self.preemptions_before is None else self.preemptions - self.preemptions_before

    def read(self) -> None:
        """Read the metrics once; a reading that the server does not answer is skipped."""
        try:
            reading = self._control.metrics()
        except MeasureError:
            return
        if PREEMPTIONS in reading:
            self.preemptions = int(reading[PREEMPTIONS])
        if KV_USAGE in reading:
            self.readings += 1
            self.kv_peak_percent = max(self.kv_peak_percent or 0.0, 100 * reading[KV_USAGE])

    def _read_preemptions(self) -> int | None:
        try:
            count = self._control.metrics().get(PREEMPTIONS)
        except MeasureError:
            return None
        return None if count is None else int(count)


@contextmanager
def metered(target: Endpoint, interval_s: float = READ_EVERY_S) -> Iterator[Meter]:
    """Read the server's metrics every `interval_s` in a thread while the block runs, and once more at its end."""
    meter = Meter(Control.of(target))
    finished = threading.Event()

    def read_repeatedly() -> None:
        while not finished.wait(interval_s):
            meter.read()

    thread = threading.Thread(target=read_repeatedly, name="meter", daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        finished.set()
        thread.join()
        meter.read()
