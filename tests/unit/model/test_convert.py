"""The arithmetic of the conversion, against independent statements of it."""

import struct
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pipeline.model.convert import convert_tensors, quantize_int8, to_bfloat16, undo_rope_permutation

WEIGHTS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@given(WEIGHTS)
def test_int8_is_off_by_half_a_step_at_most(weight: NDArray[np.float32]) -> None:
    values, scales = quantize_int8(weight)
    error = np.abs(values.astype(np.float64) * scales.astype(np.float64) - weight.astype(np.float64))
    assert (error <= scales.astype(np.float64) / 2 * (1 + 1e-5)).all()


@given(WEIGHTS)
def test_int8_is_symmetric_per_row_and_uses_the_whole_range(weight: NDArray[np.float32]) -> None:
    values, scales = quantize_int8(weight)
    assert values.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == (weight.shape[0], 1)
    assert values.min() >= -127
    used = np.abs(weight).max(axis=1) > 1e-30
    assert (np.abs(values.astype(int)).max(axis=1)[used] == 127).all()


def test_int8_of_known_rows() -> None:
    values, scales = quantize_int8(np.array([[127, -63.5, 1.4, 0], [-2.54, 1.28, 0, 0.02]], dtype=np.float32))
    assert values.tolist() == [[127, -64, 1, 0], [-127, 64, 0, 1]]
    assert scales[:, 0].tolist() == pytest.approx([1.0, 0.02])


def test_int8_of_a_row_of_zeros_is_zero_without_dividing_by_zero() -> None:
    with np.errstate(all="raise"):
        values, scales = quantize_int8(np.zeros((2, 3), dtype=np.float32))
    assert not values.any()
    assert (scales > 0).all()


@given(WEIGHTS)
def test_int8_of_a_row_does_not_depend_on_the_others(weight: NDArray[np.float32]) -> None:
    values, scales = quantize_int8(weight)
    first_values, first_scales = quantize_int8(weight[:1])
    assert (values[:1] == first_values).all()
    assert (scales[:1] == first_scales).all()


def float_of(bits: int) -> float:
    """Return the float32 of these 32 bits."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def bits_of(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def nearest_even_bfloat16(value: float) -> int:
    """Return the bits of the bfloat16 nearest to the float32 `value`, ties to the even one, by exact comparison."""
    down = bits_of(value) >> 16
    up = down + 1
    exact = abs(Fraction(value))
    low = abs(Fraction(float_of(down << 16)))
    overflow = (up & 0x7FFF) == 0x7F80
    high = Fraction(2) ** 128 if overflow else abs(Fraction(float_of(up << 16)))
    if exact - low != high - exact:
        return down if exact - low < high - exact else up
    return down if down % 2 == 0 else up


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_the_nearest_with_ties_to_even(value: float) -> None:
    assert int(to_bfloat16(np.array([value], dtype=np.float32))[0]) == nearest_even_bfloat16(value)


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F80_0000, 0x3F80),
        (0x3F80_7FFF, 0x3F80),
        (0x3F80_8000, 0x3F80),  # tie, even below
        (0x3F80_8001, 0x3F81),
        (0x3F81_8000, 0x3F82),  # tie, even above
        (0xBF81_8000, 0xBF82),
        (0x0000_0000, 0x0000),
        (0x8000_0000, 0x8000),
        (0x7F7F_FFFF, 0x7F80),  # the largest float32 rounds to infinity
        (0x7F80_0000, 0x7F80),
    ],
)
def test_bfloat16_of_known_bits(bits: int, rounded: int) -> None:
    assert int(to_bfloat16(np.array([bits], dtype=np.uint32).view(np.float32))[0]) == rounded


@given(st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80))
def test_bfloat16_values_stay_as_they_are(bits: int) -> None:
    assert int(to_bfloat16(np.array([bits << 16], dtype=np.uint32).view(np.float32))[0]) == bits


def test_bfloat16_keeps_shape_and_takes_any_layout() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3).T
    rounded = to_bfloat16(weight)
    assert rounded.shape == (3, 2)
    assert ((rounded.astype(np.uint32) << 16).view(np.float32) == weight).all()


def gguf_permute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Permute rows as llama.cpp's convert_hf_to_gguf.py does (LlamaModel.permute)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
def test_rope_permutation_is_undone(heads: int, half: int, columns: int) -> None:
    rows = heads * half * 2
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    assert (undo_rope_permutation(gguf_permute(weight, heads), heads) == weight).all()


def test_rope_rows_of_one_head_by_hand() -> None:
    stored = np.array([[0], [3], [1], [4], [2], [5]], dtype=np.float32)  # pairs (i, i + half) side by side
    assert undo_rope_permutation(stored, 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def stored(*names: str) -> Any:
    """Return a reader of tensors of these names, 4 × 4 of float32 each."""
    data = np.arange(16, dtype=np.float32).reshape(4, 4) + 1
    tensors = [SimpleNamespace(name=name, data=data, tensor_type=gguf.GGMLQuantizationType.F32) for name in names]
    return SimpleNamespace(tensors=tensors)


META = {"llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}
EMBEDDING, OUTPUT, LAYER = "token_embd.weight", "output.weight", "blk.0.ffn_up.weight"


def test_int8_stores_the_output_layer_apart_and_leaves_the_embeddings_alone() -> None:
    entries = {name: (dtype, data) for name, dtype, data in convert_tensors(stored(EMBEDDING, LAYER), META, "int8")}
    up = "model.layers.0.mlp.up_proj"
    assert set(entries) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "lm_head.weight_scale",
        f"{up}.weight",
        f"{up}.weight_scale",
    }
    assert entries["model.embed_tokens.weight"][0] == "bfloat16"
    assert entries["lm_head.weight"][0] == "int8"
    values, scales = quantize_int8(np.arange(16, dtype=np.float32).reshape(4, 4) + 1)
    assert (entries["lm_head.weight"][1] == values).all()
    assert (entries["lm_head.weight_scale"][1] == scales).all()


def test_an_output_layer_of_its_own_is_stored_once() -> None:
    names = [name for name, _, _ in convert_tensors(stored(EMBEDDING, OUTPUT), META, "int8")]
    assert names == ["model.embed_tokens.weight", "lm_head.weight", "lm_head.weight_scale"]


def test_unquantised_weights_stay_tied_as_they_are() -> None:
    assert [name for name, _, _ in convert_tensors(stored(EMBEDDING), META, "none")] == ["model.embed_tokens.weight"]
