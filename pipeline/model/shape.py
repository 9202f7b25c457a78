"""The shape of a decoder from its config.json, and the bytes of its weights from the safetensors headers. No tensor is read."""

import json
import struct
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ModelError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}


class Shape(BaseModel):
    """What memory follows from; sizes in elements."""

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


class RawConfig(BaseModel):
    """The fields of config.json that a Llama-like decoder has."""

    model_config = ConfigDict(extra="ignore", defer_build=True)

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None


def read_shape(folder: Path) -> Shape:
    """Return the shape that the folder's config.json tells; ModelError when it is not that of a plain decoder."""
    try:
        raw = RawConfig.model_validate_json((folder / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}", "name a folder with a Hugging Face model in it") from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"config.json tells no memory plan: {where}: {error.errors()[0]['msg']}") from error
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
    )


def weight_elements(shape: Shape) -> int:
    """Return the parameters of a Llama-like decoder: embeddings, attention and gated MLP; norms and biases are left out."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.intermediate
    return shape.layers * layer + shape.vocabulary * shape.hidden * (1 if shape.tied else 2)


def weight_bytes(folder: Path, shape: Shape) -> tuple[int, str]:
    """Return (bytes, where they come from): the tensors that the safetensors headers name, else the shape's elements."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return weight_elements(shape) * DTYPE_BYTES.get(shape.dtype, 2), "shape in config.json"
    return sum(tensor_bytes(file) for file in files), "safetensors headers"


def tensor_bytes(file: Path) -> int:
    """Return the bytes of the tensors in one safetensors file; ModelError when its header cannot be read.

    The file begins with the header's length (8 bytes, little-endian) and the header, JSON (safetensors' format).
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file.name} has no readable safetensors header ({error})", "download the model again") from error
    return sum(end - start for start, end in spans)


def kv_bytes_per_token(shape: Shape, kv_dtype_bytes: int) -> int:
    """Return the KV cache of one token: 2 × layers × kv_heads × head_dim × bytes."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_dtype_bytes
