"""A decoder's shape from its config.json, and the size of its weights from the safetensors headers. No tensor is read."""

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ModelError, first_line
from pipeline.values import Lenient

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}
# vLLM converts these to the dtype that it serves; everything else (packed int32, int8, fp8) stays as stored.
FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
PLAIN_LAYERS = {"full_attention", "sliding_attention"}
SCALE_BITS = 16


class Shape(BaseModel):
    """The numbers that memory depends on, in elements. `bits` is the width of a quantised weight; `group_size` weights share a scale."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    dtype: str
    context: int | None = None
    quantization: str | None = None
    bits: int | None = None
    group_size: int | None = None

    def served_dtype(self, dtype: str) -> str:
        """Return the dtype that vLLM computes in: `dtype`, or for `auto` the model's own, but bfloat16 instead of float32."""
        if dtype != "auto":
            return dtype
        return "bfloat16" if self.dtype == "float32" else self.dtype


class RawWeights(Lenient):
    """The weights of a group in the compressed-tensors format."""

    num_bits: int | None = None
    group_size: int | None = None


class RawGroup(Lenient):
    """A group of layers with the same quantisation."""

    weights: RawWeights | None = None


class RawQuantization(Lenient):
    """The fields of quantization_config that AWQ, GPTQ and compressed-tensors have."""

    quant_method: str = "a quantisation without a name"
    bits: int | None = Field(None, validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int | None = Field(None, validation_alias=AliasChoices("group_size", "q_group_size"))
    config_groups: dict[str, RawGroup] = {}

    def weights(self) -> tuple[int | None, int | None]:
        """Return (bits, group size) of a quantised weight, each None if unknown."""
        groups = [group.weights for group in self.config_groups.values() if group.weights is not None]
        return (groups[0].num_bits, groups[0].group_size) if groups else (self.bits, self.group_size)


class RawConfig(Lenient):
    """The fields of config.json that a Llama-like decoder has, and those that identify another kind."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    max_position_embeddings: int | None = None
    quantization_config: RawQuantization | None = None
    kv_lora_rank: int | None = None
    layer_types: list[str] | None = None


class RawTensor(Lenient):
    """A tensor in a safetensors header."""

    dtype: str
    data_offsets: tuple[int, int]


def read_shape(folder: Path) -> Shape:
    """Return the shape by the folder's config.json; raise ModelError if it is not that of a plain decoder."""
    try:
        return shape_of((folder / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}", "name a folder with a Hugging Face model in it") from error


def shape_of(config: bytes | str) -> Shape:
    """Return the shape by the text of a config.json; raise ModelError if it is not that of a plain decoder."""
    try:
        raw = RawConfig.model_validate_json(config)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"config.json tells no memory plan: {where}: {error.errors()[0]['msg']}") from error
    if raw.kv_lora_rank:
        raise ModelError("config.json tells no memory plan: its attention is MLA (kv_lora_rank), whose KV cache is not planned here")
    other = sorted(set(raw.layer_types or ()) - PLAIN_LAYERS)
    if other:
        raise ModelError(f"config.json tells no memory plan: layers of {other[0]} keep no KV cache of the plain form")
    quantization = raw.quantization_config
    bits, group_size = quantization.weights() if quantization else (None, None)
    return Shape(
        layers=raw.num_hidden_layers,
        hidden=raw.hidden_size,
        intermediate=raw.intermediate_size,
        heads=raw.num_attention_heads,
        kv_heads=raw.num_key_value_heads or raw.num_attention_heads,
        head_dim=raw.head_dim or raw.hidden_size // raw.num_attention_heads,
        vocabulary=raw.vocab_size,
        tied=raw.tie_word_embeddings,
        dtype=raw.dtype or raw.torch_dtype or "bfloat16",
        context=raw.max_position_embeddings,
        quantization=quantization.quant_method if quantization else None,
        bits=bits,
        group_size=group_size,
    )


def linear_elements(shape: Shape) -> int:
    """Return the number of parameters of attention and gated MLP, which quantisation packs; norms and biases are left out."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def embedding_elements(shape: Shape) -> int:
    """Return the number of parameters of the embeddings, and of the output layer if it has its own weights."""
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def weight_elements(shape: Shape) -> int:
    """Return the number of parameters of a Llama-like decoder."""
    return linear_elements(shape) + embedding_elements(shape)


def estimated_bytes(shape: Shape, dtype: str = "auto") -> int:
    """Return the size of the weights by shape alone; raise ModelError for a quantisation of unknown bits.

    AWQ and GPTQ pack `bits` of each weight into int32, and add a float16 scale and a zero point of `bits` for each group.
    """
    width = DTYPE_BYTES.get(shape.served_dtype(dtype), 2)
    if shape.quantization is None:
        return weight_elements(shape) * width
    if shape.bits is None:
        raise ModelError(f"{shape.quantization} tells its size only in the weights' headers", "download the model first")
    shared = (SCALE_BITS + shape.bits) / shape.group_size if shape.group_size and shape.group_size > 0 else 0.0
    return embedding_elements(shape) * width + int(linear_elements(shape) * (shape.bits + shared) / 8)


def weight_bytes(folder: Path, shape: Shape, dtype: str = "auto") -> tuple[int, str]:
    """Return (bytes on the device, source): the tensors named in the safetensors headers, else an estimate by shape."""
    files = safetensors_files(folder)
    if not files:
        return estimated_bytes(shape, dtype), "shape in config.json"
    stored: Counter[str] = Counter()
    for file in files:
        stored.update(stored_bytes(file, shape.tied))
    return served_bytes(stored, shape.served_dtype(dtype)), "safetensors headers"


def safetensors_files(folder: Path) -> list[Path]:
    """Return the files that vLLM loads: those in the index if there is one, because some repositories hold the weights twice."""
    try:
        index = (folder / INDEX).read_bytes()
    except OSError:
        return sorted(folder.glob("*.safetensors"))
    return [folder / name for name in files_in_index(index)]


def files_in_index(index: bytes) -> list[str]:
    """Return the names of the files in a safetensors index; raise ModelError if it cannot be read."""
    try:
        return sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{INDEX} is no index of weights ({error})", "download the model again") from error


def stored_bytes(file: Path, tied: bool = False) -> Counter[str]:
    """Return the bytes of the tensors in one safetensors file by dtype; raise ModelError if its header cannot be read.

    The file begins with the header's length (8 bytes, little-endian), followed by the header in JSON (safetensors format).
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = {name: RawTensor.model_validate(entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        words = first_line(error)
        raise ModelError(f"{file.name} has no readable safetensors header ({words})", "download the model again") from error
    return bytes_by_dtype(((name, tensor.dtype, tensor.data_offsets) for name, tensor in tensors.items()), tied)


def bytes_by_dtype(tensors: Iterable[tuple[str, str, tuple[int, int]]], tied: bool) -> Counter[str]:
    """Return the bytes of (name, dtype, span) entries by dtype, without an output layer that is tied: vLLM does not load it."""
    found: Counter[str] = Counter()
    for name, dtype, (start, end) in tensors:
        if not (tied and name == HEAD):
            found[dtype] += end - start
    return found


def served_bytes(stored: Mapping[str, int], dtype: str) -> int:
    """Return the size on the device of the stored bytes; float tensors are converted to the served dtype."""
    width = DTYPE_BYTES.get(dtype, 2)
    return sum(size * width // FLOAT_BYTES[kind] if kind in FLOAT_BYTES else size for kind, size in stored.items())


def kv_bytes_per_token(shape: Shape, kv_dtype_bytes: int) -> int:
    """Return the bytes of KV cache per token: 2 × layers × kv_heads × head_dim × bytes per value."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_dtype_bytes
