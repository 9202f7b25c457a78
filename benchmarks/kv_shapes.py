"""Compare the plan's KV cache with vLLM's own classes for a small shape of each family. No server is started, no weight is made.

`venv-vllm/bin/python -m benchmarks.kv_shapes` in the environment of the server, with the pipeline's own folder as working
directory. The kinds of the layers are those of Transformers' configuration class, the sizes and the groups are vLLM's: the KV
heads and head sizes of its ModelConfig, the state of its model class, and get_kv_cache_groups, with the blocks of 16 tokens that
it has on GPUs.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline.model.shape import kv_bytes_per_token, shape_of
from pipeline.vllm.cache import BLOCK_TOKENS, STATES_PER_REQUEST, Allocation, request_bytes

LENGTHS = (1024, 4096, 16384)
BATCHED_TOKENS = 2048
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 16384,
    "torch_dtype": "bfloat16",
}
GDN = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
MAMBA = {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
MLA = {"kv_lora_rank": 256, "q_lora_rank": None, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 6},
    "Qwen3 MoE": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": 4, **EXPERTS},
    "Mistral with a window": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_hidden_layers": 4,
        "sliding_window": 1024,
    },
    "Gemma 2": {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 7, "sliding_window": 512},
    "Gemma 3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window": 512},
    "gpt-oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": 8,
        "sliding_window": 128,
        "num_local_experts": 4,
    },
    "Qwen3-Next": {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": 12,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        **GDN,
        **EXPERTS,
    },
    "Nemotron-H": {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": 14,
        "hybrid_override_pattern": "M-M-M*-M-M*-M-",
        "mamba_num_heads": 16,
        "mamba_head_dim": 64,
        "n_groups": 4,
        "ssm_state_size": 64,
        "conv_kernel": 4,
    },
    "Granite 4": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_hidden_layers": 10,
        "layer_types": [*(["mamba"] * 4), "attention", *(["mamba"] * 4), "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 1024,
        **MAMBA,
    },
    "Falcon-H1": {
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "num_hidden_layers": 6,
        **MAMBA,
        "mamba_d_ssm": 1024,
    },
    "Jamba": {
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "num_hidden_layers": 16,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "num_experts": 4,
        "mamba_expand": 2,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
    },
    "LFM2": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "num_hidden_layers": 8,
        "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
        "conv_L_cache": 3,
        "conv_dim": 512,
    },
    "DeepSeek-V2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_hidden_layers": 5,
        "n_routed_experts": 8,
        "moe_intermediate_size": 256,
        "first_k_dense_replace": 1,
        **MLA,
    },
}


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of a family's small shape."""
    return {**SMALL, **FAMILIES[name]}


def vllm_config(folder: Path, length: int) -> Any:
    """Return vLLM's own configuration for the model in the folder."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = {"skip_tokenizer_init": True, "max_model_len": length, "max_num_batched_tokens": BATCHED_TOKENS, "load_format": "dummy"}
    found = EngineArgs(model=str(folder), enable_prefix_caching=True, **arguments).create_engine_config()
    found.cache_config.block_size = BLOCK_TOKENS
    found.cache_config.kv_cache_layout = "LBNHC"  # the order of FlashAttention's kernels
    found.scheduler_config.async_scheduling = True
    return found


def kinds(config: Any) -> list[str]:
    """Return the kind of each layer as Transformers sees it."""
    listed = getattr(config, "layers_block_type", None) or getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    return list(listed) if listed else ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers


def specs(config: Any) -> dict[str, Any]:
    """Return vLLM's specification of each layer's cache, states aligned as its platform does."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.v1 import kv_cache_interface as vllm_kv

    model, text = config.model_config, config.model_config.hf_text_config
    sizes = {"num_kv_heads": model.get_num_kv_heads(config.parallel_config), "head_size": model.get_head_size(), "dtype": model.dtype}
    layer_kinds = kinds(text)
    full = vllm_kv.MLAAttentionSpec if model.use_mla else vllm_kv.FullAttentionSpec
    tokens, state = BLOCK_TOKENS, None
    if set(layer_kinds) & {"linear_attention", "mamba", "conv", "hybrid"}:
        model_class, _ = ModelRegistry.resolve_model_cls(model.architecture, model_config=model)
        shapes, dtypes = model_class.get_mamba_state_shape_from_config(config), model_class.get_mamba_state_dtype_from_config(config)
        state = vllm_kv.MambaSpec(shapes=shapes, dtypes=dtypes, block_size=-1)
        page = full(block_size=1, **sizes).page_size_bytes
        tokens = BLOCK_TOKENS * -(-state.page_size_bytes // (BLOCK_TOKENS * page))
        state = vllm_kv.MambaSpec(shapes=shapes, dtypes=dtypes, block_size=tokens, page_size_padded=tokens * page, mamba_cache_mode="align")
        config.cache_config.mamba_cache_mode = "align"
    attention = full(block_size=tokens, **sizes)
    found: dict[str, Any] = {}
    for layer, kind in enumerate(layer_kinds):
        if kind in ("full_attention", "attention", "hybrid"):
            found[f"{layer}.attention"] = attention
        if kind == "sliding_attention":
            found[f"{layer}.attention"] = vllm_kv.SlidingWindowSpec(
                block_size=tokens, dcp_sharded=False, sliding_window=text.sliding_window, **sizes
            )
        if kind in ("linear_attention", "mamba", "conv", "hybrid"):
            found[f"{layer}.state"] = state
    return found


def of_vllm(folder: Path, length: int) -> int:
    """Return the bytes of KV cache that vLLM holds ready for one request of that length."""
    from vllm.v1.core import kv_cache_utils

    config = vllm_config(folder, length)
    groups = kv_cache_utils.get_kv_cache_groups(config, specs(config))
    return int(kv_cache_utils._max_memory_usage_bytes_from_groups(config, groups))


def main(names: list[str]) -> None:
    """Print a row for each family and length; exit with 1 where the two differ."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    print("| family | bytes per token | request of | plan | vLLM | |\n| --- | --- | --- | --- | --- | --- |")
    wrong = 0
    for name in names or list(FAMILIES):
        config = config_of(name)
        shape = shape_of(json.dumps(config))
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            for length in LENGTHS:
                ours = request_bytes(shape, length, Allocation(2, 2 * BATCHED_TOKENS, STATES_PER_REQUEST))
                theirs = of_vllm(folder, length)
                wrong += ours != theirs
                same = "equal" if ours == theirs else "DIFFERENT"
                print(f"| {name} | {kv_bytes_per_token(shape, 2)} | {length} | {ours} | {theirs} | {same} |", flush=True)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
