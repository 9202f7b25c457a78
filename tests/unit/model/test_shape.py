"""Shapes from config.json, and weights from safetensors headers, as vLLM will have them on the device."""

import json
import struct
from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.model.files import INDEX
from pipeline.model.published import CONFIGS, QWEN_3B, published_shape, repository
from pipeline.model.shape import Shape, kv_bytes_per_token, read_shape
from pipeline.model.weights import (
    estimated_bytes,
    safetensors_files,
    served_bytes,
    stored_bytes,
    weight_bytes,
)


def shape(tmp_path: Path, config: dict[str, object]) -> Shape:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_shape(tmp_path)


# GiB of weights and KiB of KV cache per token of the published checkpoints.
PUBLISHED = {
    "Qwen/Qwen2.5-1.5B-Instruct": (2.88, 28),
    "Qwen/Qwen2.5-3B-Instruct": (5.75, 36),
    "Qwen/Qwen2.5-3B-Instruct-AWQ": (1.92, 36),
    "Qwen/Qwen2.5-3B-Instruct-GPTQ-Int4": (1.92, 36),
    "Qwen/Qwen2.5-7B-Instruct": (14.19, 56),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": (5.19, 56),
    "meta-llama/Llama-3.2-3B-Instruct": (5.98, 112),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.25, 22.5),
}


@pytest.mark.parametrize("repo", CONFIGS)
def test_published_models_have_their_published_size(repo: str) -> None:
    found = published_shape(repo)
    assert found is not None
    gib, kv_kib = PUBLISHED[repo]
    assert estimated_bytes(found) / 2**30 == pytest.approx(gib, rel=0.003)
    assert kv_bytes_per_token(found, 2) == kv_kib * 1024


def test_models_are_known_with_and_without_their_owner() -> None:
    assert repository("Qwen2.5-3B-Instruct") == repository("Qwen/Qwen2.5-3B-Instruct") == "Qwen/Qwen2.5-3B-Instruct"
    assert repository("Instruct") is None
    assert published_shape("somebody/else") is None


def write_safetensors(path: Path, spans: dict[str, tuple[str, int, int]]) -> None:
    header: dict[str, object] = {
        name: {"dtype": dtype, "shape": [1], "data_offsets": [start, end]} for name, (dtype, start, end) in spans.items()
    }
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_weights_are_what_the_headers_name(tmp_path: Path) -> None:
    found = shape(tmp_path, QWEN_3B)
    assert weight_bytes(tmp_path, found) == (estimated_bytes(found), "shape in config.json")
    write_safetensors(tmp_path / "a.safetensors", {"x": ("BF16", 0, 100), "y": ("BF16", 100, 164)})
    write_safetensors(tmp_path / "b.safetensors", {"z": ("BF16", 0, 36)})
    assert weight_bytes(tmp_path, found) == (200, "safetensors headers")


def test_packed_weights_count_as_stored_and_floats_as_served(tmp_path: Path) -> None:
    """AWQ and GPTQ: eight weights of 4 bits in an int32, float16 scales, packed zero points."""
    found = shape(tmp_path, {**QWEN_3B, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}})
    spans = {"l.qweight": ("I32", 0, 512), "l.qzeros": ("I32", 512, 528), "l.scales": ("F16", 528, 592), "norm.weight": ("F32", 592, 692)}
    write_safetensors(tmp_path / "model.safetensors", spans)
    assert weight_bytes(tmp_path, found)[0] == 512 + 16 + 64 + 50
    assert weight_bytes(tmp_path, found, "float32")[0] == 512 + 16 + 128 + 100


def test_a_checkpoint_in_float32_is_served_in_half_of_it(tmp_path: Path) -> None:
    found = shape(tmp_path, {**QWEN_3B, "torch_dtype": "float32"})
    assert (found.served_dtype("auto"), found.served_dtype("float32")) == ("bfloat16", "float32")
    assert served_bytes({"F32": 400, "I8": 7}, "bfloat16") == 207


def test_an_output_layer_that_is_tied_is_not_loaded(tmp_path: Path) -> None:
    spans = {"model.embed_tokens.weight": ("BF16", 0, 100), "lm_head.weight": ("BF16", 100, 200)}
    write_safetensors(tmp_path / "model.safetensors", spans)
    assert weight_bytes(tmp_path, shape(tmp_path, QWEN_3B))[0] == 100
    assert weight_bytes(tmp_path, shape(tmp_path, {**QWEN_3B, "tie_word_embeddings": False}))[0] == 200


def test_weights_that_the_index_does_not_name_are_not_loaded(tmp_path: Path) -> None:
    for name in ("consolidated", "model-1", "model-2"):
        write_safetensors(tmp_path / f"{name}.safetensors", {name: ("BF16", 0, 100)})
    index = {"weight_map": {"model-1": "model-1.safetensors", "model-2": "model-2.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert [file.name for file in safetensors_files(tmp_path)] == ["model-1.safetensors", "model-2.safetensors"]
    assert weight_bytes(tmp_path, shape(tmp_path, QWEN_3B))[0] == 200


def test_weights_that_lie_there_twice_count_once(tmp_path: Path) -> None:
    for name in ("consolidated", "model", "adapter_model"):
        write_safetensors(tmp_path / f"{name}.safetensors", {name: ("BF16", 0, 100)})
    assert weight_bytes(tmp_path, shape(tmp_path, QWEN_3B))[0] == 100


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_index_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json is no index of weights"):
        safetensors_files(tmp_path)


BROKEN = [b"", b"abc", struct.pack("<Q", 5) + b"{oops", struct.pack("<Q", 8) + b'{"a": 1}', struct.pack("<Q", 2**63) + b"{}"]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_header_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.safetensors has no readable safetensors header") as caught:
        stored_bytes(tmp_path / "m.safetensors", shape(tmp_path, QWEN_3B))
    assert "\n" not in caught.value.message


def test_a_config_that_is_no_decoders_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tells no memory plan: num_hidden_layers: Field required"):
        shape(tmp_path, {})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="No such file"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"kv_lora_rank": 512}, "qk_rope_head_dim: Field required"),
        ({"layer_types": ["full_attention", "lightning"]}, "layers of lightning keep no KV cache of a form that is planned here"),
        ({"index_topk": 2048}, "a KV cache with index_topk has a form that is not planned here"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window: Field required"),
    ],
)
def test_a_cache_that_is_not_planned_is_told(tmp_path: Path, more: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        shape(tmp_path, {**QWEN_3B, **more})


@pytest.mark.parametrize(
    ("quantization", "bits", "group_size"),
    [
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4, 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8, -1),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, 8, None),
    ],
)
def test_each_way_to_name_the_bits_is_read(tmp_path: Path, quantization: dict[str, object], bits: int, group_size: int | None) -> None:
    found = shape(tmp_path, {**QWEN_3B, "quantization_config": quantization})
    packing = found.quantization
    assert packing is not None
    assert (packing.bits, packing.group, packing.method) == (bits, group_size, quantization["quant_method"])
    assert estimated_bytes(found) < estimated_bytes(shape(tmp_path, QWEN_3B))


def test_a_quantisation_that_does_not_tell_its_bits_is_told(tmp_path: Path) -> None:
    found = shape(tmp_path, {**QWEN_3B, "quantization_config": {"quant_method": "exotic"}})
    with pytest.raises(ModelError, match="exotic tells its size only in the weights' headers"):
        weight_bytes(tmp_path, found)
