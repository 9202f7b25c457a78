"""The next attempt after a start that failed for lack of memory: settings, cause and log in, smaller settings out."""

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
# Refused by the plan before the start: PLANNED where smaller settings may fit, HOPELESS where none of the ladder's do.
PLANNED, HOPELESS = "planned", "hopeless"
MOST_ATTEMPTS = 8
FEWEST_SEQUENCES = 4
LEAST_SHARE = 0.1
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
FREE_TEXT = re.compile(r"Free memory on device (?:\S+ )?\(([\d.]+)/([\d.]+) GiB\) on startup")
FREE_WORDS = re.compile(r"(\d+) of (\d+) MiB are free on GPU")  # the message of pipeline.vllm.preflight.crowded
LENGTH_TEXT = re.compile(r"estimated maximum model length is (\d+)")


class Attempt(Frozen):
    """A start that failed for lack of memory, and what was changed for the next one."""

    cause: Sentence
    changed: str
    took_s: float
    log: str


def smaller(settings: ServeConfig, cause: str, log: str) -> tuple[ServeConfig, str] | None:
    """Return (settings that need less memory, what changed) after a start that failed for `cause`; None when nothing is left.

    In the guide's order: a smaller share of the GPU where others hold memory, a shorter context, fewer sequences.
    """
    if cause == HOPELESS:
        return None
    if cause == "free-vram":
        share = share_that_fits(log)
        if share is not None and LEAST_SHARE <= share < (settings.gpu_memory_utilization or 1):
            return with_value(settings, "gpu_memory_utilization", share)
        if share is not None:  # no other setting changes what is free
            return None
    if cause == "warm-up-oom" and settings.max_num_seqs // 2 >= FEWEST_SEQUENCES:
        return with_value(settings, "max_num_seqs", settings.max_num_seqs // 2)
    cache = settings.env.get(CPU_CACHE, "")
    if cause in ("free-ram", "killed") and cache.isdecimal() and int(cache) > 1:
        less_cache = str(int(cache) // 2)
        env = {**settings.env, CPU_CACHE: less_cache}
        return settings.model_copy(update={"env": env}), f"{CPU_CACHE} {cache} → {less_cache}"
    estimate = LENGTH_TEXT.search(log)
    length = int(estimate[1]) // 16 * 16 if cause == "kv-below-context" and estimate else settings.max_model_len // 2
    if SHORTEST_CONTEXT <= length < settings.max_model_len:
        return with_value(settings, "max_model_len", length)
    if settings.max_num_seqs // 2 >= FEWEST_SEQUENCES:
        return with_value(settings, "max_num_seqs", settings.max_num_seqs // 2)
    return None


def share_that_fits(log: str) -> float | None:
    """Return the free share of the device's memory by vLLM's message or ours, rounded down; None where the log has neither."""
    our_message = FREE_WORDS.search(log)
    if our_message is not None:
        return share_of(float(our_message[1]), float(our_message[2]))
    vllm_message = FREE_TEXT.search(log)
    if vllm_message is None or float(vllm_message[2]) <= 0:
        return None
    return math.floor(100 * float(vllm_message[1]) / float(vllm_message[2])) / 100


def with_value(settings: ServeConfig, name: str, value: float) -> tuple[ServeConfig, str]:
    """Return the settings with that value, and a description of the change."""
    return settings.model_copy(update={name: value}), f"{name} {getattr(settings, name)} → {value}"


def falls_back(settings: ServeConfig) -> bool:
    """Tell whether a start that lacks memory is retried with smaller settings; `auto` retries, except in CI."""
    return settings.on_oom == "fallback" or (settings.on_oom == "auto" and not os.environ.get("CI"))


def next_attempt(
    settings: ServeConfig, error: OutOfMemoryError, attempts: Sequence[Attempt], took_s: float, log: str
) -> tuple[ServeConfig, Attempt]:
    """Return (smaller settings, the failed attempt with its `log`); raise the error where retries are off or exhausted."""
    text = error.log.read_text(encoding="utf-8", errors="replace") if error.log else error.message
    step = smaller(settings, error.cause, text) if falls_back(settings) else None
    if step is None or len(attempts) >= MOST_ATTEMPTS:
        changes = "; ".join(attempt.changed for attempt in attempts)
        raise OutOfMemoryError(f"{error.message} (tried in vain: {changes})", error.hint, error.log, error.cause) if changes else error
    settings, change = step
    return settings, Attempt(cause=error.message, changed=change, took_s=took_s, log=log)
