"""The breakdown of the server's memory in vLLM's log. Pure: text in, MiB out."""

import re

from pipeline.values import Frozen

GIB_IN_MIB = 1024
GIB_NUMBER = r"(-?[\d.]+)"
# From the sources of vLLM 0.19, 0.24, 0.32 and 0.33; the last matching line counts.
GIB_TEXTS = {
    "weights_mib": rf"Model loading took {GIB_NUMBER} GiB",
    "kv_cache_mib": rf"(?:Available KV cache memory: |reserved ){GIB_NUMBER} GiB",
    "graphs_mib": rf"Graph capturing finished in \d+ secs, took {GIB_NUMBER} GiB",
    "consumed_mib": rf"Actual usage is {GIB_NUMBER} GiB for (?:consumed memory|weight)",
    "activations_mib": rf"{GIB_NUMBER} GiB for peak activation",
}
KV_TOKENS = r"KV cache size: ([\d,]+) tokens"


class Breakdown(Frozen):
    """The parts of the server's memory by its own log; None where the log lacks one."""

    weights_mib: float | None = None
    kv_cache_mib: float | None = None
    graphs_mib: float | None = None
    consumed_mib: float | None = None
    activations_mib: float | None = None
    kv_tokens: int | None = None


def breakdown(log: str) -> Breakdown:
    """Return the breakdown in `log`."""
    parts: dict[str, float | int] = {}
    for name, pattern in GIB_TEXTS.items():
        matches = re.findall(pattern, log)
        if matches:
            parts[name] = round(float(matches[-1]) * GIB_IN_MIB, 1)
    tokens = re.findall(KV_TOKENS, log)
    if tokens:
        parts["kv_tokens"] = int(tokens[-1].replace(",", ""))
    return Breakdown.model_validate(parts)
