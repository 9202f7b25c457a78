"""Conversion of the embedded GGUF file to a checkpoint that vLLM serves, without torch or transformers.

Tests and benchmarks run it as a script:
``python -m pipeline.model.convert model.gguf out/ int8``.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import safetensors
from numpy.typing import NDArray

Quantization = Literal["int8", "none"]
Entry = tuple[str, str, NDArray[Any]]

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OUTPUT = "output.weight"
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type of tokens that no text can contain


def convert_gguf(source: Path, target: Path, quantization: Quantization) -> None:
    """Write config, tokenizer and weights of the llama-architecture GGUF `source` into the folder `target`.

    `int8` stores each linear layer as per-output-channel symmetric int8 (compressed-tensors, dynamic per-token activations).
    That includes the output layer, which is then no longer tied to the embeddings. `none` keeps the dequantised weights as
    bfloat16. Raises ValueError for another architecture.
    """
    reader = gguf.GGUFReader(source)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta["general.architecture"] != "llama" or meta["tokenizer.ggml.pre"] != "smollm":
        raise ValueError(f"{source.name}: only SmolLM-tokenised llama models are converted")
    target.mkdir(parents=True, exist_ok=True)
    tied = quantization == "none" and all(tensor.name != OUTPUT for tensor in reader.tensors)
    write_json(target / "config.json", model_config(meta, tied, quantization))
    write_json(target / "generation_config.json", {key: meta[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "eos_token_id")})
    write_json(target / "tokenizer.json", tokenizer(meta))
    write_json(target / "tokenizer_config.json", tokenizer_config(meta))
    tensors = list(convert_tensors(reader, meta, quantization))  # kept alive: a spec holds only the buffer's address
    specs = {
        name: safetensors.TensorSpec(dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, dtype, array in tensors
    }
    safetensors.serialize_file(specs, target / "model.safetensors", {"format": "pt"})


def convert_tensors(reader: gguf.GGUFReader, meta: dict[str, Any], quantization: Quantization) -> Iterator[Entry]:
    """Yield (Hugging Face name, safetensors dtype, data) for each tensor of the file."""
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    separate_output = any(tensor.name == OUTPUT for tensor in reader.tensors)
    for tensor in reader.tensors:
        stem, _ = tensor.name.rsplit(".", 1)
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if stem in _GLOBAL_NAMES:
            name = _GLOBAL_NAMES[stem]
        else:
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{_LAYER_NAMES[part]}"
            if part in heads:
                weight = undo_rope_permutation(weight, heads[part])
        if quantization == "none" or weight.ndim == 1 or stem == "token_embd":
            yield f"{name}.weight", "bfloat16", to_bfloat16(weight)
        else:
            yield from int8_entries(name, weight)
        if quantization == "int8" and stem == "token_embd" and not separate_output:
            yield from int8_entries(_GLOBAL_NAMES["output"], weight)


def int8_entries(name: str, weight: NDArray[np.float32]) -> Iterator[Entry]:
    """Yield the two tensors of an int8 layer: values and scales."""
    values, scales = quantize_int8(weight)
    yield f"{name}.weight", "int8", values
    yield f"{name}.weight_scale", "float32", scales


def quantize_int8(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return (int8 values [out, in], float32 scales [out, 1]) with weight ≈ values × scales, symmetric."""
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127.0, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def undo_rope_permutation(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in Hugging Face's half-split rotary order; GGUF stores them interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of `weight` rounded to nearest-even bfloat16, which numpy lacks."""
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def model_config(meta: dict[str, Any], tied: bool, quantization: Quantization) -> dict[str, Any]:
    """Return the config.json of a Hugging Face llama model from the GGUF metadata."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "vocab_size": meta["llama.vocab_size"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "license": meta.get("general.license"),
    }
    if quantization == "int8":
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": [],
            "config_groups": {"group_0": {"targets": ["Linear", "ParallelLMHead"], "weights": weights, "input_activations": activations}},
        }
    return config


def tokenizer(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer.json of the byte-level BPE that the GGUF describes (single digits, no prefix space)."""
    tokens = meta["tokenizer.ggml.tokens"]
    special = [index for index, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == _CONTROL_TOKEN]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": tokens[index], **flags} for index in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer_config.json: special tokens by name and the chat template."""
    tokens = meta["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": meta["tokenizer.chat_template"],
        **{key: tokens[meta[f"tokenizer.ggml.{name}_token_id"]] for key, name in named.items()},
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` as UTF-8 JSON."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]), "none" if sys.argv[3] == "none" else "int8")
