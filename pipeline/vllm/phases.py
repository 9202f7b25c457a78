"""The start-up phases that vLLM's log shows. Pure: lines and times in, phases out."""

import re
from dataclasses import dataclass, field

FIRST_PHASE = "interpreter"
WEIGHTS, LOADED, CACHE = "weights", "compile", "KV cache"
# The phase that begins where a line like this appears; texts read in the sources of vLLM 0.32 and 0.33, of both its model
# runners. On GPUs vLLM captures CUDA graphs twice: once to learn how much memory they take, before it knows the KV cache's
# size, and once to keep them.
BEGINNINGS = (
    ("configuration", re.compile(r"non-default args:")),
    ("engine", re.compile(r"Initializing a V1 LLM engine")),
    (WEIGHTS, re.compile(r"Starting to load model|Loading model from scratch")),
    (LOADED, re.compile(r"(?:Loading weights|Model loading) took (?:\S+ GiB memory and )?(?P<seconds>[\d.]+) seconds")),
    ("graph memory", re.compile(r"Capturing CUDA graphs|Profiling CUDA graph memory")),
    (CACHE, re.compile(r"KV cache size:")),
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
            found = pattern.search(line)
            if found is None or not self.is_time_for(name):
                continue
            if name == LOADED:
                self.weights_were_loaded(at_s, float(found["seconds"]))
                if self.began[-1][0] == LOADED:  # read first, then laid out for the device; the last worker's line counts
                    self.began[-1] = (LOADED, at_s)
            if not self.has(name):
                self.began.append((name, at_s))
                return name
        return None

    def has(self, name: str) -> bool:
        """Tell whether the phase has begun."""
        return any(name == known for known, _ in self.began)

    def is_time_for(self, name: str) -> bool:
        """Tell whether a capture of graphs is the one for the sake of its memory, or the one to keep."""
        return self.has(CACHE) == (name == "graphs") if name in ("graph memory", "graphs") else True

    def weights_were_loaded(self, at_s: float, seconds: float) -> None:
        """Let the weights begin where the line that ends them says, if no line told their beginning."""
        if not self.has(WEIGHTS) and not self.has(LOADED):
            self.began.append((WEIGHTS, max(self.began[-1][1], at_s - seconds)))

    def durations(self, total_s: float) -> dict[str, float]:
        """Return seconds per phase; they add up to `total_s`."""
        ends = [at for _, at in self.began[1:]] + [total_s]
        return {name: end - at for (name, at), end in zip(self.began, ends, strict=True)}
