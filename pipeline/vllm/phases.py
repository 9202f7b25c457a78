"""The start-up phases that vLLM's log shows. Pure: lines and times in, phases out."""

import re
from dataclasses import dataclass, field

FIRST_PHASE = "interpreter"
WEIGHTS, LOADED, CACHE = "weights", "compile", "KV cache"
# Each phase with the line that begins it, from the sources of vLLM 0.19, 0.32 and 0.33, for both model runners. On GPUs vLLM
# captures CUDA graphs twice: once to measure their memory, before it knows the size of the KV cache, and once to keep them.
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
    """The time at which each phase began, in seconds since the start; a phase ends when the next one begins."""

    began: list[tuple[str, float]] = field(default_factory=lambda: [(FIRST_PHASE, 0.0)])

    def see(self, line: str, at_s: float) -> str | None:
        """Process a log line read at `at_s`; return the phase that it begins, if any."""
        for name, pattern in BEGINNINGS:
            match = pattern.search(line)
            if match is None or not self.may_begin(name):
                continue
            if name == LOADED:
                self.add_weights_phase(at_s, float(match["seconds"]))
                if (
                    self.began[-1][0] == LOADED
                ):  # each worker logs it after reading and after the layout on the device; the last line counts
                    self.began[-1] = (LOADED, at_s)
            if not self.has(name):
                self.began.append((name, at_s))
                return name
        return None

    def has(self, name: str) -> bool:
        """Tell whether the phase has begun."""
        return any(name == phase for phase, _ in self.began)

    def may_begin(self, name: str) -> bool:
        """Tell whether the phase may begin now: a capture before the KV cache has its size measures the graphs, a later one keeps them."""
        return self.has(CACHE) == (name == "graphs") if name in ("graph memory", "graphs") else True

    def add_weights_phase(self, at_s: float, seconds: float) -> None:
        """Add the weights phase, `seconds` before the line that ends it, if no line showed its beginning."""
        if not self.has(WEIGHTS) and not self.has(LOADED):
            self.began.append((WEIGHTS, max(self.began[-1][1], at_s - seconds)))

    def durations(self, total_s: float) -> dict[str, float]:
        """Return seconds per phase; they add up to `total_s`."""
        ends = [at for _, at in self.began[1:]] + [total_s]
        return {name: end - at for (name, at), end in zip(self.began, ends, strict=True)}
