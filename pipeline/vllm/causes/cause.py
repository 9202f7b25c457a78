"""A cause of a server's death as data: the pattern that shows it, what it means, and what a person can do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A cause of death: its name, the pattern that finds it in a log, its description and its fix; groups of `text` fill {0}, {1}."""

    name: str
    text: str
    says: str
    fix: str


NO_SAMPLER = "--set serve.env.VLLM_USE_FLASHINFER_SAMPLER=0 makes FlashInfer compile no sampler"
# A line to quote, of at most 200 characters.
QUOTE = r"[^\n]{1,200}"
# A worker's or engine's exit code in vLLM's own words: {'EngineCore': -9}, (exit code: -9).
ENDED = r"(?:Failed (?:core|frontend) proc\(s\): \{{[^}}\n]*: {0}\b|Worker proc \S+ died unexpectedly \(exit code: {0}\))"
