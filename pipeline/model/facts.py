"""Facts about a model folder, and the manifest of its files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.config_json import text_fields
from pipeline.model.licence import read_licence
from pipeline.values import Frozen

CHUNK_BYTES = 1 << 20


class ManifestEntry(Frozen):
    """One file of the model: path below the folder, size in bytes, sha256."""

    path: str
    bytes: int
    sha256: str


class Facts(Frozen):
    """What config.json states; None for what it does not state."""

    architecture: str | None
    dtype: str | None
    quantization: str | None
    context_length: int | None
    vocabulary: int | None
    layers: int | None
    license: str | None
    non_commercial: bool = False  # its licence forbids commercial use


def read_facts(folder: Path, license_name: str | None = None) -> Facts:
    """Return the folder's facts; raise ModelError if it holds no readable config.json."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no config.json", "name a folder with a Hugging Face model in it") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error})", "download the model again") from error
    text, _ = text_fields(config)
    quantization = text.get("quantization_config") or {}
    architectures = config.get("architectures") or [None]
    licence = read_licence(folder, license_name or config.get("license"))
    return Facts(
        architecture=architectures[0],
        dtype=text.get("torch_dtype") or text.get("dtype"),
        quantization=quantization.get("quant_method"),
        context_length=text.get("max_position_embeddings"),
        vocabulary=text.get("vocab_size"),
        layers=text.get("num_hidden_layers"),
        license=licence.name,
        non_commercial=licence.non_commercial,
    )


def manifest(folder: Path) -> list[ManifestEntry]:
    """Return every file below `folder` with size and sha256, sorted by path; hidden folders are caches and are left out."""
    entries = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not name.parts[0].startswith("."):
            entries.append(ManifestEntry(path=str(name), bytes=path.stat().st_size, sha256=sha256_of(path)))
    return entries


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in hex."""
    result = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            result.update(block)
    return result.hexdigest()
