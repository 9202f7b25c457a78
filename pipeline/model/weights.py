"""The size of a model's weights on the device: from the safetensors headers, else by its shape. No tensor is read."""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, first_line
from pipeline.model.files import INDEX, weights_among
from pipeline.model.shape import DTYPE_BYTES, Shape
from pipeline.values import Lenient

# vLLM converts these to the dtype that it serves; everything else (packed int32, int8, fp8) stays as stored.
FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")
# Layers that predict several tokens at once, which vLLM loads only to speculate with.
PREDICTORS = re.compile(r"^(?:model\.)?mtp\.")
LAYER = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d+)\.")
DOWNLOAD = "download the model first"


class UnknownSizeError(ModelError):
    """A model of known shape whose weights have an unknown size."""

    def __init__(self, message: str, hint: str, shape: Shape) -> None:
        super().__init__(message, hint)
        self.shape = shape


class RawTensor(Lenient):
    """A tensor in a safetensors header."""

    dtype: str
    data_offsets: tuple[int, int]


def estimated_bytes(shape: Shape, dtype: str = "auto") -> int:
    """Return the size of the weights by shape alone; raise UnknownSizeError where that does not tell it."""
    width = DTYPE_BYTES.get(shape.served_dtype(dtype), 2)
    parts, packing = shape.parameters, shape.quantization
    if parts is None:
        raise UnknownSizeError(f"the size of the weights is unknown: {shape.uncounted}", DOWNLOAD, shape)
    if packing is None:
        return parts.total * width
    if packing.bits is None or not packing.exact:
        raise UnknownSizeError(f"{packing.method} tells its size only in the weights' headers", DOWNLOAD, shape)
    packed = parts.experts if packing.only_experts else parts.experts + parts.matrices
    return (parts.total - packed) * width + int(packed * (packing.bits + packing.overhead_bits) / 8)


def weight_bytes(folder: Path, shape: Shape, dtype: str = "auto") -> tuple[int, str]:
    """Return (bytes on the device, source): the tensors named in the safetensors headers, else an estimate by shape."""
    files = safetensors_files(folder)
    if not files:
        return estimated_bytes(shape, dtype), "shape in config.json"
    stored: Counter[str] = Counter()
    for file in files:
        stored.update(stored_bytes(file, shape))
    return served_bytes(stored, shape.served_dtype(dtype)), "safetensors headers"


def safetensors_files(folder: Path) -> list[Path]:
    """Return the safetensors that vLLM loads, in order."""
    index = folder / INDEX
    names = weights_among([path.name for path in folder.glob("*")], index.read_bytes() if index.is_file() else None)
    return [folder / name for name in sorted(names) if name.endswith(".safetensors")]


def stored_bytes(file: Path, shape: Shape) -> Counter[str]:
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
    return bytes_by_dtype(((name, tensor.dtype, tensor.data_offsets) for name, tensor in tensors.items()), shape)


def bytes_by_dtype(tensors: Iterable[tuple[str, str, tuple[int, int]]], shape: Shape) -> Counter[str]:
    """Return the bytes of (name, dtype, span) entries by dtype, of those that vLLM loads."""
    found: Counter[str] = Counter()
    for name, dtype, (start, end) in tensors:
        if is_loaded(name, shape):
            found[dtype] += end - start
    return found


def is_loaded(name: str, shape: Shape) -> bool:
    """Tell whether vLLM loads a tensor: not a tied output layer, nor layers that predict several tokens at once."""
    layer = LAYER.match(name)
    return not (shape.tied and HEAD.search(name)) and not PREDICTORS.match(name) and (layer is None or int(layer[1]) < shape.layers)


def served_bytes(stored: Mapping[str, int], dtype: str) -> int:
    """Return the size on the device of the stored bytes; float tensors are converted to the served dtype."""
    width = DTYPE_BYTES.get(dtype, 2)
    return sum(size * width // FLOAT_BYTES[kind] if kind in FLOAT_BYTES else size for kind, size in stored.items())
