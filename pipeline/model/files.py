"""Which files of a model vLLM loads, and what makes a folder or a repository no model that it can load.

Source: vllm/model_executor/model_loader/default_loader.py, 0.32: safetensors by their index, else all of them; else `*.bin`, else
`*.pt`; and Mistral's own `consolidated*` files, which lie beside the others in some repositories and hold the same weights.
"""

import json
import re
import struct
import zipfile
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pipeline.errors import ModelError

CONFIG, ADAPTER, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
LONGEST_HEADER = 100 * 10**6  # of a safetensors file, by its format
SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.\w+)")
# Beside the weights: settings, tokenizers, chat templates, code that comes with the model, its card and licence.
BESIDE = (
    *("*.json", "*.jinja", "*.py", "*.txt", "*.model", "*.model.v*", "*.tiktoken", "*.vocab", "*.bpe", "*.spm"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md"),
)
TEMPLATES = "additional_chat_templates/*.jinja"
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "adapter_*", "rng_state*")
MISTRALS = ("consolidated*", "params.json")
PICKLED_INDEX = "pytorch_model.bin.index.json"
OTHERS_INDEX = ("tf_model.h5.index.json", "flax_model.msgpack.index.json")
SAFETENSORS = "name the repository or folder with safetensors weights that they were made from (its card calls it base_model)"
# What a repository may hold in place of weights that vLLM loads.
FOREIGN = (
    ("*.gguf", "GGUF files"),
    ("*.onnx", "ONNX files"),
    ("*.h5", "TensorFlow weights"),
    ("*.msgpack", "Flax weights"),
    ("*.pth", "checkpoints of the model's own code (.pth)"),
    ("*.nemo", "NeMo archives"),
)
Flaw = tuple[str, str]  # what is wrong, and what to do


class BrokenModelError(ModelError):
    """A folder or a repository is no model that vLLM can load."""


def loaded(names: Collection[str], index: bytes | None = None) -> list[str]:
    """Return those of a model's files that vLLM loads, in order; `index` is the content of the safetensors index."""
    weights = weights_among(names, index)
    left_out = [*OTHERS_INDEX]
    if not any(fnmatch(name, MISTRALS[0]) for name in weights):
        left_out += MISTRALS
    if not any(name.endswith(".bin") for name in weights):
        left_out.append(PICKLED_INDEX)
    beside = [
        name
        for name in names
        if ("/" not in name and any(fnmatch(name, pattern) for pattern in BESIDE)) or fnmatch(name, TEMPLATES)
        if not any(fnmatch(name, pattern) for pattern in left_out)
    ]
    return sorted({*weights, *beside})


def weights_among(names: Collection[str], index: bytes | None = None) -> list[str]:
    """Return the files of weights that vLLM loads; none where there are only others."""
    if INDEX in names and index is not None:
        return files_in_index(index)
    top = [name for name in names if "/" not in name and not any(fnmatch(name, pattern) for pattern in NOT_WEIGHTS)]
    safetensors = [name for name in top if name.endswith(".safetensors")]
    whole = [name for name in safetensors if not fnmatch(name, MISTRALS[0])]
    shards = [name for name in whole if SHARD.fullmatch(name)]
    if INDEX in names and shards:
        return shards
    pickled = [name for name in top if name.endswith(".bin")] or [name for name in top if name.endswith(".pt")]
    return whole or safetensors or pickled


def files_in_index(index: bytes) -> list[str]:
    """Return the names of the files in a safetensors index; raise ModelError if it cannot be read."""
    try:
        return sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{INDEX} is no index of weights ({error})", "download the model again") from error


def flaw_among(where: str, names: Collection[str], base: str = "") -> Flaw | None:
    """Return why what holds these files is no model for vLLM; None where names alone do not tell it. `base`: what an adapter adapts."""
    if weights_among(names):
        return None
    if ADAPTER in names:
        base = base or "the model that it adapts"
        fix = f"serve {base}, and the adapter beside it: serve.extra_args ['--enable-lora', '--lora-modules', 'NAME=FOLDER']"
        return f"{where} is an adapter (LoRA), not a model", fix
    for pattern, what in FOREIGN:
        if any(fnmatch(PurePosixPath(name).name, f"{pattern}*") for name in names):
            return f"{where} holds {what} alone, which vLLM does not load", SAFETENSORS
    return None


def check_folder(folder: Path) -> None:
    """Raise BrokenModelError where the folder is no model for vLLM, or not all of one; its weights may be missing altogether."""
    flaw = flaw_in(folder)
    if flaw is not None:
        raise BrokenModelError(*flaw)


def flaw_in(folder: Path) -> Flaw | None:
    """Return what is wrong with the files in the folder, and what to do."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = [name for name in names if not name.startswith(".")]
    flaw = flaw_among(f"{folder}", names, base_of(folder))
    if flaw is not None:
        return flaw
    if pointers := [name for name in names if is_pointer(folder / name)]:
        what = f"{folder}: {some(pointers)} {'are Git LFS pointers' if len(pointers) > 1 else 'is a Git LFS pointer'} without the content"
        return what, "run `git lfs install` and `git lfs pull` there, or let download-model fetch it (model.source hub)"
    wanted = {*weights_among(names, (folder / INDEX).read_bytes() if INDEX in names else None)}
    wanted |= {name for known in wanted for name in shards_beside(known)}
    if missing := sorted(wanted - {*names}):
        return f"{folder} lacks {len(missing)} of {len(wanted)} files of weights: {some(missing)}", "download or copy the missing files"
    for name in sorted(wanted):
        size, needed = (folder / name).stat().st_size, needed_bytes(folder / name)
        if needed is not None and size < needed:
            return f"{folder}: {name} is cut off: {size} of {needed} bytes", "download or copy that file again"
    return None


def base_of(folder: Path) -> str:
    """Return the model that an adapter adapts, by its config; empty where that does not tell."""
    try:
        return str(json.loads((folder / ADAPTER).read_bytes()).get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def is_pointer(path: Path) -> bool:
    """Tell whether a clone without Git LFS left a pointer in place of the file."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def shards_beside(name: str) -> list[str]:
    """Return all shards of which `name` is one, by its name; none for any other file."""
    found = SHARD.fullmatch(name)
    if found is None:
        return []
    return [f"{found[1]}{number:05}-of-{found[3]}{found[4]}" for number in range(1, int(found[3]) + 1)]


def needed_bytes(path: Path) -> int | None:
    """Return the length that a file of weights tells by itself; None where it does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if path.suffix != ".safetensors":
            return size + 1 if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path) else None
        if len(start) < 8:
            return 8
        (length,) = struct.unpack("<Q", start)
        if size < 8 + length < LONGEST_HEADER:
            return 8 + int(length)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError):
            return None  # weights.py says what is wrong with it
    return 8 + int(length) + max(ends, default=0)


def some(names: Collection[str]) -> str:
    """Return the first of the names, and how many more there are."""
    first, *more = sorted(names)
    return f"{first} and {len(more)} more" if more else first
