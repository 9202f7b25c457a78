"""What to try next when a start failed for lack of memory: settings, cause and log in, smaller settings out."""

import math
import os
import re
from collections.abc import Sequence

from pipeline.config.schema import ServeConfig
from pipeline.errors import OutOfMemoryError
from pipeline.message import Sentence
from pipeline.values import Frozen
from pipeline.vllm.fit import share_of
from pipeline.vllm.plan import SHORTEST_CONTEXT

MEMORY_CAUSES = ("free-vram", "free-ram", "kv-below-context", "no-kv-room", "gpu-oom", "warm-up-oom", "killed")
# Refused by the plan before anything was started: with smaller settings it may fit, or no settings of the ladder would.
PLANNED, HOPELESS = "planned", "hopeless"
MOST_ATTEMPTS = 8
FEWEST_SEQUENCES = 4
LEAST_SHARE = 0.1
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
FREE_TEXT = re.compile(r"Free memory on device (?:\S+ )?\(([\d.]+)/([\d.]+) GiB\) on startup")
FREE_WORDS = re.compile(r"(\d+) of (\d+) MiB are free on GPU")  # as pipeline.vllm.preflight.crowded says it
LENGTH_TEXT = re.compile(r"estimated maximum model length is (\d+)")


class Attempt(Frozen):
    """A start that failed for lack of memory, and what was changed for the next one."""

    cause: Sentence
    changed: str
    took_s: float
    log: str


def smaller(settings: ServeConfig, cause: str, log: str) -> tuple[ServeConfig, str] | None:
    """Return (settings that want less memory, what changed) after a start that failed for `cause`; None when nothing is left.

    In the guide's order: a smaller share of the GPU where others hold memory, a shorter context, fewer sequences.
    """
    if cause == HOPELESS:
        return None
    if cause == "free-vram":
        share = share_that_fits(log)
        if share is not None and LEAST_SHARE <= share < (settings.gpu_memory_utilization or 1):
            return less(settings, "gpu_memory_utilization", share)
        if FREE_WORDS.search(log):  # said before the start, and as true with smaller settings
            return None
    if cause == "warm-up-oom" and settings.max_num_seqs // 2 >= FEWEST_SEQUENCES:
        return less(settings, "max_num_seqs", settings.max_num_seqs // 2)
    cache = settings.env.get(CPU_CACHE, "")
    if cause in ("free-ram", "killed") and cache.isdecimal() and int(cache) > 1:
        less_cache = str(int(cache) // 2)
        env = {**settings.env, CPU_CACHE: less_cache}
        return settings.model_copy(update={"env": env}), f"{CPU_CACHE} {cache} → {less_cache}"
    named = LENGTH_TEXT.search(log)
    length = int(named[1]) // 16 * 16 if cause == "kv-below-context" and named else settings.max_model_len // 2
    if SHORTEST_CONTEXT <= length < settings.max_model_len:
        return less(settings, "max_model_len", length)
    if settings.max_num_seqs // 2 >= FEWEST_SEQUENCES:
        return less(settings, "max_num_seqs", settings.max_num_seqs // 2)
    return None


def share_that_fits(log: str) -> float | None:
    """Return the share of the device's memory that was free by vLLM's own words or ours, rounded down; None where none is named."""
    ours = FREE_WORDS.search(log)
    if ours is not None:
        return share_of(float(ours[1]), float(ours[2]))
    free = FREE_TEXT.search(log)
    if free is None or float(free[2]) <= 0:
        return None
    return math.floor(100 * float(free[1]) / float(free[2])) / 100


def less(settings: ServeConfig, name: str, value: float) -> tuple[ServeConfig, str]:
    """Return the settings with that value, and the change in words."""
    return settings.model_copy(update={name: value}), f"{name} {getattr(settings, name)} → {value}"


def falls_back(settings: ServeConfig) -> bool:
    """Tell whether a start that lacks memory is tried again with less: `auto` does, except in CI."""
    return settings.on_oom == "fallback" or (settings.on_oom == "auto" and not os.environ.get("CI"))


def next_attempt(
    settings: ServeConfig, error: OutOfMemoryError, before: Sequence[Attempt], took_s: float, log: str
) -> tuple[ServeConfig, Attempt]:
    """Return smaller settings and the failed attempt, whose log is at `log`; the error itself where none are wanted or none are left."""
    text = error.log.read_text(encoding="utf-8", errors="replace") if error.log else error.message
    rung = smaller(settings, error.cause, text) if falls_back(settings) else None
    if rung is None or len(before) >= MOST_ATTEMPTS:
        tried = "; ".join(attempt.changed for attempt in before)
        raise OutOfMemoryError(f"{error.message} (tried in vain: {tried})", error.hint, error.log, error.cause) if tried else error
    settings, changed = rung
    return settings, Attempt(cause=error.message, changed=changed, took_s=took_s, log=log)
