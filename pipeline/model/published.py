"""Known models, for use when neither their files nor the hub can be read: those of the guide, and the embedded one.

Source: each repository's own config.json on the Hugging Face hub; tests/unit/model/test_shape.py checks the sizes computed from
them against the published ones.
"""

import json
from typing import Any

from pipeline.model.shape import Shape, shape_of

SOURCE = "published config.json"
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the checkpoint converted from its GGUF has the same shape
QWEN_3B: dict[str, Any] = {
    "num_hidden_layers": 36,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32768,
}
QWEN_7B: dict[str, Any] = {
    **QWEN_3B,
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
AWQ = {"torch_dtype": "float16", "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
GPTQ = {"torch_dtype": "float16", "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-1.5B-Instruct": {
        **QWEN_3B,
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
    },
    "Qwen/Qwen2.5-3B-Instruct": QWEN_3B,
    "Qwen/Qwen2.5-3B-Instruct-AWQ": {**QWEN_3B, **AWQ},
    "Qwen/Qwen2.5-3B-Instruct-GPTQ-Int4": {**QWEN_3B, **GPTQ},
    "Qwen/Qwen2.5-7B-Instruct": QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct-AWQ": {**QWEN_7B, **AWQ},
    "meta-llama/Llama-3.2-3B-Instruct": {
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 131072,
    },
    EMBEDDED: {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 8192,
    },
}
# Under the Qwen Research licence, according to their model cards; the other models here allow commercial use.
NON_COMMERCIAL = ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct-AWQ", "Qwen/Qwen2.5-3B-Instruct-GPTQ-Int4")


def repository(name: str) -> str | None:
    """Return the known repository with that name, with or without its owner, or None."""
    return next((repo for repo in CONFIGS if name in (repo, repo.partition("/")[2])), None)


def published_shape(repo: str) -> Shape | None:
    """Return the shape of a known repository, or None."""
    config = CONFIGS.get(repo)
    return None if config is None else shape_of(json.dumps(config))
