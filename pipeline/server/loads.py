"""The load on our launches: when answered requests were in flight, one line per loop of requests, in the launch's folder.

Times are seconds of CLOCK_MONOTONIC, the clock of the memory samples in the same folder.
"""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.measure.memory import Span

LOADS_FILE = "loads.jsonl"
_writing = threading.Lock()  # the background load of determinism's arms ends in its own thread


@dataclass(frozen=True)
class Loads:
    """A launch's load: its spans by sender, and (time, count) readings of the server's preemption counter.

    `fills` are when the KV cache was filled on purpose, and how many requests that preempted; None where the server does not tell.
    """

    spans: Mapping[str, list[Span]] = field(default_factory=dict)
    preemptions: list[tuple[float, int]] = field(default_factory=list)
    fills: list[tuple[float, int | None]] = field(default_factory=list)

    def __or__(self, other: "Loads") -> "Loads":
        """Return the spans and readings of both."""
        names = dict.fromkeys((*self.spans, *other.spans))
        spans = {who: [*self.spans.get(who, ()), *other.spans.get(who, ())] for who in names}
        return Loads(spans, [*self.preemptions, *other.preemptions], [*self.fills, *other.fills])


@dataclass(frozen=True)
class Notebook:
    """A log of the load that one sender puts on a launch; a failed write loses its line, never the measurement."""

    path: Path
    who: str

    def span(self, begin_s: float, end_s: float) -> None:
        """Record that requests were in flight from `begin_s` to `end_s`."""
        self._add({"begin": round(begin_s, 3), "end": round(end_s, 3)})

    def preemptions(self, at_s: float, count: int) -> None:
        """Record a reading of the server's preemption counter."""
        self._add({"at": round(at_s, 3), "preemptions": count})

    def fill(self, at_s: float, preempted: int | None) -> None:
        """Record that the KV cache was filled from `at_s` on, and the preemptions meanwhile."""
        self._add({"filled": round(at_s, 3), "preempted": preempted})

    def _add(self, facts: dict[str, Any]) -> None:
        with _writing, suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"who": self.who, **facts}) + "\n")


def read_loads(path: Path) -> Loads:
    """Return the load in the file, none where it is missing; lines damaged by a kill or a full disk are skipped."""
    spans: dict[str, list[Span]] = {}
    preemptions: list[tuple[float, int]] = []
    fills: list[tuple[float, int | None]] = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if "preemptions" in entry:
                    preemptions.append((float(entry["at"]), int(entry["preemptions"])))
                elif "filled" in entry:
                    count = entry["preempted"]
                    fills.append((float(entry["filled"]), None if count is None else int(count)))
                elif float(entry["begin"]) <= float(entry["end"]):
                    spans.setdefault(str(entry["who"]), []).append((float(entry["begin"]), float(entry["end"])))
    return Loads(spans, preemptions, fills)
