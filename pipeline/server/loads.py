"""From when to when requests that were answered were in flight at a launch of ours: one line a loop, in the launch's folder.

Times are seconds of CLOCK_MONOTONIC, the clock of the memory samples beside it.
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
_writing = threading.Lock()  # the load of determinism's arms ends in a thread of its own


@dataclass(frozen=True)
class Loads:
    """What is known of a launch's load: the spans by who sent the requests, and what the counter of preemptions said when."""

    spans: Mapping[str, list[Span]] = field(default_factory=dict)
    preemptions: list[tuple[float, int]] = field(default_factory=list)

    def __or__(self, other: "Loads") -> "Loads":
        """Return what is known of both."""
        names = dict.fromkeys((*self.spans, *other.spans))
        spans = {who: [*self.spans.get(who, ()), *other.spans.get(who, ())] for who in names}
        return Loads(spans, [*self.preemptions, *other.preemptions])


@dataclass(frozen=True)
class Notebook:
    """Writes down the load that one sender puts on a launch. A disk that refuses costs a line, never the measurement."""

    path: Path
    who: str

    def span(self, begin_s: float, end_s: float) -> None:
        """Note that requests were in flight from then to then."""
        self._add({"begin": round(begin_s, 3), "end": round(end_s, 3)})

    def preemptions(self, at_s: float, count: int) -> None:
        """Note what the server's counter says."""
        self._add({"at": round(at_s, 3), "preemptions": count})

    def _add(self, facts: dict[str, Any]) -> None:
        with _writing, suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"who": self.who, **facts}) + "\n")


def read_loads(path: Path) -> Loads:
    """Return what the file holds, nothing where there is none; a line that a kill or a full disk spoilt is left out."""
    spans: dict[str, list[Span]] = {}
    preemptions: list[tuple[float, int]] = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if "preemptions" in entry:
                    preemptions.append((float(entry["at"]), int(entry["preemptions"])))
                elif float(entry["begin"]) <= float(entry["end"]):
                    spans.setdefault(str(entry["who"]), []).append((float(entry["begin"]), float(entry["end"])))
    return Loads(spans, preemptions)
