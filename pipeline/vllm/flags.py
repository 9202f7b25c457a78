"""The spelling of a server's flags in older versions of vLLM."""

import json

from pipeline.vllm.releases import numbers_of

DRAINS = (0, 18)  # the first version with --shutdown-timeout (vLLM pull request 34730)
STRUCTURED = (0, 11)  # the first version with --structured-outputs-config; before, its parts were flags of their own
REASONS = (0, 9)  # the first version where --reasoning-parser needs no --enable-reasoning
CONFIG, TIMEOUT = "--structured-outputs-config", "--shutdown-timeout"


def spelled(words: list[str], version: str) -> list[str]:
    """Return the words of a command as vLLM of that version takes them."""
    known = numbers_of(version)
    if known < DRAINS and TIMEOUT in words:
        at = words.index(TIMEOUT)
        words = [*words[:at], *words[at + 2 :]]
    if known < STRUCTURED:
        words = [each for word in joined_config(words) for each in (guided(word) if word.startswith(f"{CONFIG}=") else [word])]
    if known < REASONS and "--reasoning-parser" in words:
        words = [*words, "--enable-reasoning"]
    return words


def joined_config(words: list[str]) -> list[str]:
    """Return the words with the structured outputs' config as one word, `--structured-outputs-config=…`."""
    if CONFIG not in words[:-1]:
        return words
    at = words.index(CONFIG)
    return [*words[:at], f"{CONFIG}={words[at + 1]}", *words[at + 2 :]]


def guided(word: str) -> list[str]:
    """Return the flags of guided decoding for a structured outputs' config; what an older vLLM cannot express stays as it is."""
    try:
        config = dict(json.loads(word.partition("=")[2]))
    except (ValueError, TypeError):  # vLLM says what is wrong with it
        return [word]
    flags = ["--guided-decoding-backend", str(config.pop("backend"))] if "backend" in config else []
    for name in ("disable_any_whitespace", "disable_fallback", "disable_additional_properties"):
        flags += [f"--guided-decoding-{name.replace('_', '-')}"] if config.pop(name, False) else []
    return [word] if config else flags
