"""vLLM's own arguments, as `serve.extra_args` passes them on."""

import itertools
import json

from pipeline.config.schema import ServeConfig
from pipeline.model.shape import DTYPE_BYTES

KV_DTYPE, COMPILATION = "--kv-cache-dtype", "--compilation-config"

# Arguments of vLLM that change what these formulas know. --quantization, for one, may pack the weights while loading.
UNPLANNED = (
    *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "--cpu-offload-gb"),
    *("--quantization", "-q", "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--hf-overrides", "--enable-lora"),
    *("--speculative-config", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"),
    *("--model", "--dtype", "--enforce-eager", "--config", "--offload-group-size"),
)


def arguments(words: tuple[str, ...]) -> dict[str, str]:
    """Return vLLM's arguments with their values, written as `--name=value`, `--name value` or with underscores."""
    found: dict[str, str] = {}
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            found[name.replace("_", "-")] = value if equals else ("" if after.startswith("-") else after)
    return found


def listed_sizes(settings: ServeConfig) -> int | None:
    """Return how many batch sizes the compilation config lists for graphs; None where it leaves that to vLLM."""
    try:
        return len(json.loads(arguments(settings.extra_args).get(COMPILATION, ""))["cudagraph_capture_sizes"])
    except (ValueError, KeyError, TypeError):
        return None


def kv_bytes(settings: ServeConfig, dtype: str) -> int | None:
    """Return the bytes of a number in the KV cache; None for a kind that is not known here."""
    asked = arguments(settings.extra_args).get(KV_DTYPE, "auto")
    return 1 if asked.startswith("fp8") else DTYPE_BYTES.get(dtype if asked == "auto" else asked)


def unplanned(settings: ServeConfig) -> str | None:
    """Return the argument that changes the memory in a way that is not planned here; None where there is none."""
    given = arguments(settings.extra_args)
    if kv_bytes(settings, "bfloat16") is None:
        return f"{KV_DTYPE} {given[KV_DTYPE]}"
    return next((name for name in UNPLANNED if name in given), None)
