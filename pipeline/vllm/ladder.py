"""What to try next when a start failed for lack of memory. Pure: settings, cause and log in, smaller settings out."""

import math
import re

from pydantic import BaseModel, ConfigDict

from pipeline.config.schema import ServeConfig
from pipeline.gpu.plan import SHORTEST_CONTEXT, share_of
from pipeline.message import Sentence

MEMORY_CAUSES = ("free-vram", "free-ram", "kv-below-context", "no-kv-room", "gpu-oom", "warm-up-oom", "killed")
# Refused by the plan before anything was started: with smaller settings it may fit, or no settings of the ladder would.
PLANNED, HOPELESS = "planned", "hopeless"
MOST_ATTEMPTS = 8
FEWEST_SEQUENCES = 4
LEAST_SHARE = 0.1
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
FREE_TEXT = re.compile(r"Free memory on device (?:\S+ )?\(([\d.]+)/([\d.]+) GiB\) on startup")
FREE_WORDS = re.compile(r"(\d+) of (\d+) MiB are free on GPU")  # as pipeline.gpu.plan.crowded says it
LENGTH_TEXT = re.compile(r"estimated maximum model length is (\d+)")


class Attempt(BaseModel):
    """A start that failed for lack of memory, and what was changed for the next one."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

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
    told = FREE_TEXT.search(log)
    if told is None or float(told[2]) <= 0:
        return None
    return math.floor(100 * float(told[1]) / float(told[2])) / 100


def less(settings: ServeConfig, name: str, value: float) -> tuple[ServeConfig, str]:
    """Return the settings with that value, and the change in words."""
    return settings.model_copy(update={name: value}), f"{name} {getattr(settings, name)} → {value}"
