"""The memory plan: weights and KV cache from the model, the rest estimated, and when it cannot fit."""

import json
import struct
from pathlib import Path

import pytest

from pipeline.config import load_layers
from pipeline.errors import ModelError
from pipeline.gpu.plan import MIB, WORKSPACE_MIB, Plan, captured_sizes, plan
from pipeline.model.shape import Shape, kv_bytes_per_token, read_shape, tensor_bytes, weight_bytes, weight_elements

QWEN_3B = {
    "num_hidden_layers": 36,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
QWEN_7B = {**QWEN_3B, "num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
LLAMA_3B = {**QWEN_3B, "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24}


def shape(tmp_path: Path, config: dict[str, object]) -> Shape:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return read_shape(tmp_path)


@pytest.mark.parametrize(
    ("config", "gib", "kv_kib"),
    [
        (QWEN_3B, 5.75, 36),
        ({**QWEN_7B, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}, 14.19, 56),
        ({**LLAMA_3B, "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128}, 5.98, 112),
    ],
)
def test_published_models_have_their_published_size(tmp_path: Path, config: dict[str, object], gib: float, kv_kib: int) -> None:
    found = shape(tmp_path, config)
    assert 2 * weight_elements(found) / 2**30 == pytest.approx(gib, rel=0.003)
    assert kv_bytes_per_token(found, 2) == kv_kib * 1024


def write_safetensors(path: Path, spans: dict[str, tuple[int, int]]) -> None:
    header: dict[str, object] = {name: {"dtype": "BF16", "shape": [1], "data_offsets": span} for name, span in spans.items()}
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_weights_are_what_the_headers_name(tmp_path: Path) -> None:
    found = shape(tmp_path, QWEN_3B)
    assert weight_bytes(tmp_path, found) == (2 * weight_elements(found), "shape in config.json")
    write_safetensors(tmp_path / "a.safetensors", {"x": (0, 100), "y": (100, 164)})
    write_safetensors(tmp_path / "b.safetensors", {"z": (0, 36)})
    assert weight_bytes(tmp_path, found) == (200, "safetensors headers")


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 5) + b"{oops", struct.pack("<Q", 8) + b'{"a": 1}'])
def test_a_broken_header_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.safetensors has no readable safetensors header"):
        tensor_bytes(tmp_path / "m.safetensors")


def test_a_config_that_is_no_decoders_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tells no memory plan: num_hidden_layers: Field required"):
        shape(tmp_path, {})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="No such file"):
        read_shape(tmp_path)


def planned(tmp_path: Path, total_mib: float, utilization: float | None, max_num_seqs: int = 16) -> Plan:
    found = shape(tmp_path, QWEN_3B)
    return plan(found, 2 * weight_elements(found), "shape in config.json", total_mib, utilization, 4096, max_num_seqs)


def test_the_guides_model_does_not_fit_its_card_and_fits_a_large_one(tmp_path: Path) -> None:
    small, large = planned(tmp_path, 6141, 0.92), planned(tmp_path, 24576, 0.9)
    assert (small.fits, small.cannot_fit) == (False, True)
    assert (large.fits, large.cannot_fit) == (True, False)


def test_the_parts_make_up_the_budget(tmp_path: Path) -> None:
    made = planned(tmp_path, 24576, 0.5)
    parts = made.weights_mib + made.activations_mib + WORKSPACE_MIB + made.kv_cache_mib
    assert parts == pytest.approx(made.budget_mib, abs=0.5)
    assert made.budget_mib == pytest.approx(12288, abs=1)
    assert made.kv_tokens == pytest.approx(made.kv_cache_mib * MIB / made.kv_bytes_per_token, abs=2)


def test_context_and_graphs_come_on_top_of_the_budget(tmp_path: Path) -> None:
    made = planned(tmp_path, 24576, 0.5)
    assert made.peak_mib == pytest.approx(made.budget_mib + 500 + 7 * 7.2, abs=0.1)


def test_more_sequences_leave_less_cache_and_need_more_graphs(tmp_path: Path) -> None:
    many, few = planned(tmp_path, 24576, 0.5, 256), planned(tmp_path, 24576, 0.5, 16)
    assert many.kv_tokens < few.kv_tokens
    assert many.peak_mib > few.peak_mib


@pytest.mark.parametrize(("max_num_seqs", "sizes"), [(1, 2), (2, 3), (4, 4), (8, 5), (256, 51), (1000, 51)])
def test_captured_sizes_are_vllms(max_num_seqs: int, sizes: int) -> None:
    assert captured_sizes(max_num_seqs) == sizes


# Weights: VLLM.md's table of published checkpoints, in MiB.
SIX_GB_PROFILES = {
    "rtx4050-6gb": (QWEN_3B, 1.9 * 1024),
    "qwen2.5-1.5b": (
        {**QWEN_3B, "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12},
        2.88 * 1024,
    ),
}
SHIPPED = load_layers(Path(__file__).resolve().parents[2] / "config.yaml", {})


@pytest.mark.parametrize("profile", SIX_GB_PROFILES)
def test_profiles_for_six_gigabytes_fit_and_meet_the_guides_target(tmp_path: Path, profile: str) -> None:
    config, weights_mib = SIX_GB_PROFILES[profile]
    settings = SHIPPED.config(profile)
    serve = settings.serve
    made = plan(
        shape(tmp_path, config),
        int(weights_mib * MIB),
        "published",
        6141,
        serve.gpu_memory_utilization,
        serve.max_model_len,
        serve.max_num_seqs,
        serve.max_num_batched_tokens,
    )
    assert made.fits
    assert made.peak_mib < settings.gates.root["vram_usage"].target


def test_auto_takes_only_profiles_that_are_checked_here() -> None:
    assert {choice.profile for choice in SHIPPED.config(None).gpu.auto} <= set(SIX_GB_PROFILES)
