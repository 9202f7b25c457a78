"""The limits of a device by its compute capability, each with its source."""

from dataclasses import dataclass

from pipeline.vllm.sets import as_numbers


@dataclass(frozen=True)
class Limit:
    """A feature, the least compute capability that it needs, what to do below that, and the source."""

    what: str
    least: tuple[int, int]
    instead: str
    source: str


# Below it vLLM 0.33 takes float16 by itself where dtype is auto (vllm/config/model.py, _resolve_auto_dtype).
BFLOAT16 = Limit(
    "bfloat16", (8, 0), "leave serve.dtype at auto, which takes float16 there", "vllm/platforms/cuda.py, check_if_supports_dtype (0.32.0)"
)

BATCH_INVARIANCE = Limit(
    "VLLM_BATCH_INVARIANT=1",
    (8, 0),
    "expect answers that differ under load",
    "docs.vllm.ai, Batch Invariance, hardware requirements (0.32.0)",
)

LIMITS = (
    BFLOAT16,
    BATCH_INVARIANCE,
    # Its Marlin kernels too since pull request 29901; before that they needed 8.0.
    Limit(
        "AWQ",
        (7, 5),
        "take a GPTQ model, or one that is not quantised",
        "vllm/model_executor/layers/quantization/auto_awq.py, get_min_capability (0.32.0)",
    ),
    # Triton 3.6 compiles a product of matrices for 7.0 and 7.5 without their tensor cores (compiled for them here, not run).
    Limit(
        "FlashAttention",
        (8, 0),
        "expect slower answers to long prompts: vLLM takes Triton's attention",
        "vllm/v1/attention/backends/flash_attn.py, supports_compute_capability (0.19.1 and 0.33.0)",
    ),
    Limit(
        "Marlin kernels for MXFP4", (8, 0), "take a model in AWQ or GPTQ", "docs.vllm.ai, Quantization, supported hardware (note on Turing)"
    ),
)


def unmet(compute_capability: str) -> list[Limit]:
    """Return the limits that a device of this capability ("8.9") does not meet."""
    return [limit for limit in LIMITS if as_numbers(compute_capability) < limit.least]
