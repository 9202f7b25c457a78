"""The start-up phases that vLLM's log shows. Pure: lines and times in, phases out."""

import re
from dataclasses import dataclass, field

FIRST_PHASE = "interpreter"
# The phase that begins where a line like this appears; texts read in vLLM 0.32's source.
BEGINNINGS = (
    ("configuration", re.compile(r"non-default args:")),
    ("engine", re.compile(r"Initializing a V1 LLM engine")),
    ("weights", re.compile(r"Starting to load model")),
    ("compile", re.compile(r"Loading weights took|Model loading took")),
    ("KV cache", re.compile(r"KV cache size:")),
    ("graphs", re.compile(r"Capturing CUDA graphs")),
    ("HTTP", re.compile(r"init engine \(profile, create kv cache, warmup model\) took")),
)


@dataclass
class Phases:
    """Times at which each phase began, in seconds since the start; a phase ends where the next one begins."""

    began: list[tuple[str, float]] = field(default_factory=lambda: [(FIRST_PHASE, 0.0)])

    def see(self, line: str, at_s: float) -> str | None:
        """Take in a log line read at `at_s`; return the phase that it begins, if any."""
        for name, pattern in BEGINNINGS:
            if pattern.search(line) and all(name != known for known, _ in self.began):
                self.began.append((name, at_s))
                return name
        return None

    def durations(self, total_s: float) -> dict[str, float]:
        """Return seconds per phase; they add up to `total_s`."""
        ends = [at for _, at in self.began[1:]] + [total_s]
        return {name: end - at for (name, at), end in zip(self.began, ends, strict=True)}
