"""How a checkpoint packs its weights and its KV cache, by the quantization_config of its config.json."""

import re
from typing import Any, Literal

from pipeline.model.config_json import RawQuantization
from pipeline.values import Frozen

SCALE_BITS = 16
# Modules that each method leaves as they are and that are not counted among the matrices: embeddings, output layer, routers.
NEVER_PACKED = re.compile(r"lm_head|embed|router|\.gate\b|\bgate$|norm|vision|visual|audio|multi_modal|conv1d|mtp")


class Quantization(Frozen):
    """The method, the bits of a packed weight with its share of scales and zero points, and what both of them cover.

    `bits` is None for a method that does not tell, `exact` False where some layers are left out, so that only the headers tell
    the size. `group` weights of a row share a scale, `block` (rows, columns) those of an FP8 block.
    """

    method: str
    bits: int | None = None
    overhead_bits: float = 0.0
    group: int | None = None
    block: tuple[int, int] | None = None
    only_experts: bool = False
    exact: bool = True
    kv_dtype: Literal["auto", "fp8"] | None = None  # None for a cache of another form


def quantization_of(raw: RawQuantization) -> Quantization:
    """Return how the weights are packed.

    AWQ and GPTQ add a 16-bit scale and a zero point of `bits` to each group, MXFP4 8 bits to 32 weights, NVFP4 8 bits to 16,
    bitsandbytes 32 bits to 64 (vLLM unpacks the scales of its scales), FP8 blocks 32 bits to a block.
    """
    method = raw.quant_method.lower().replace("_", "-") if raw.quant_method.startswith("compressed") else raw.quant_method
    algorithm = (raw.quant_algo or "").upper()
    groups = [group.weights for group in raw.config_groups.values() if group.weights is not None]
    left_out = [name for name in raw.left_out if not NEVER_PACKED.search(name)]
    common: dict[str, Any] = {"method": method, "kv_dtype": kv_dtype(raw), "exact": not left_out}
    if method == "mxfp4":
        return Quantization(**{**common, "exact": True}, bits=4, overhead_bits=8 / 32, only_experts=True)
    if method == "bitsandbytes":
        bits = 4 if raw.load_in_4bit else 8 if raw.load_in_8bit else None
        return Quantization(**common, bits=bits, overhead_bits=32 / 64 if bits == 4 else 0.0)
    if method == "fp8" or "FP8" in algorithm:
        block = pair(raw.weight_block_size)
        return Quantization(**common, bits=8, overhead_bits=32 / (block[0] * block[1]) if block else 0.0, block=block)
    if "NVFP4" in algorithm:
        return Quantization(**common, bits=4, overhead_bits=8 / 16, group=raw.group_size or 16)
    if groups:
        first = groups[0]
        alike = len({(group.num_bits, group.group_size) for group in groups}) == 1
        scale = 8 if first.strategy == "tensor_group" else SCALE_BITS
        overhead = scale / first.group_size if first.group_size and first.group_size > 0 else 0.0
        sizes: dict[str, Any] = {"bits": first.num_bits if alike else None, "overhead_bits": overhead, "block": pair(first.block_structure)}
        return Quantization(**common, **sizes, group=first.group_size)
    shared = (SCALE_BITS + raw.bits) / raw.group_size if raw.bits and raw.group_size and raw.group_size > 0 else 0.0
    return Quantization(**common, bits=raw.bits, overhead_bits=shared, group=raw.group_size)


def pair(sizes: list[int] | None) -> tuple[int, int] | None:
    """Return the two sizes of a block; None without them."""
    return (sizes[0], sizes[1]) if sizes and len(sizes) == 2 and all(sizes) else None


def kv_dtype(raw: RawQuantization) -> Literal["auto", "fp8"] | None:
    """Return the KV cache's dtype that the checkpoint asks for (vllm/utils/torch_utils.py, get_kv_cache_quant_algo_string, 0.32)."""
    scheme = raw.kv_cache_scheme or raw.kv_cache_quant_algo
    if not scheme:
        return "auto"
    if isinstance(scheme, dict):
        return "fp8" if (scheme.get("num_bits"), scheme.get("type")) == (8, "float") else None
    return "fp8" if scheme.lower().startswith("fp8") else "auto" if scheme.lower() in ("auto", "none") else None
