"""Which files of a model are fetched, and what is told of a folder that is none, or not all of one."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import doctor
from pipeline.config.schema import Config, ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.model.files import FOREIGN, BrokenModelError, check_folder, flaw_among, loaded
from pipeline.planning import Library
from pipeline.stages.download_model import download_model
from pipeline.terminal import Silent
from tests.builders.machines import machine

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
BESIDE = {
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "modeling_own.py",
    "LICENSE",
    "README.md",
    "merges.txt",
}
LEFT_OUT = {
    *("metal/model.bin", "original/consolidated.00.pth", "consolidated.safetensors", "params.json", "onnx/model.onnx"),
    *(
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "tf_model.h5",
        "flax_model.msgpack",
        "picture.png",
        ".gitattributes",
    ),
    *("deep/model.safetensors", "training_args.bin", "optimizer.pt", "adapter_model.safetensors"),
}


def safetensors(values: int = 4) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4 * values)


def folder(root: Path, **files: bytes) -> Path:
    """Return a folder with a config.json and these files, in whose names a double underscore stands for a dot."""
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text('{"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}', encoding="utf-8")
    for name, content in files.items():
        (root / name.replace("__", ".")).write_bytes(content)
    return root


def test_beside_safetensors_nothing_else_of_weights_is_fetched() -> None:
    assert loaded({*BESIDE, *LEFT_OUT, "model.safetensors"}) == sorted({*BESIDE, "model.safetensors"})


def test_of_safetensors_those_in_the_index_are_fetched() -> None:
    names = {*BESIDE, *SHARDS, "model.safetensors", "model.safetensors.index.json", "model.fp32.safetensors"}
    assert loaded(names, INDEX) == sorted({*BESIDE, *SHARDS, "model.safetensors.index.json"})
    assert loaded(names) == loaded(names, INDEX)


def test_where_there_are_no_safetensors_pickled_weights_are_fetched_with_their_index() -> None:
    names = {*BESIDE, "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "optimizer.pt"}
    assert loaded(names) == sorted({*BESIDE, "pytorch_model.bin", "pytorch_model.bin.index.json"})


def test_mistrals_own_files_are_fetched_where_there_are_no_others() -> None:
    names = {"params.json", "tekken.json", "consolidated.safetensors", "README.md", "SYSTEM_PROMPT.txt"}
    assert loaded(names) == sorted(names)


@given(st.sets(st.sampled_from(sorted({*BESIDE, *LEFT_OUT, *SHARDS, "model.safetensors"}))))
def test_what_is_fetched_is_there_and_of_one_kind_of_weights(names: set[str]) -> None:
    chosen = loaded(names)
    assert {*chosen} <= names
    kinds = {name.rpartition(".")[2] for name in chosen} & {"safetensors", "bin", "pt", "pth", "gguf", "h5", "onnx"}
    assert len(kinds) <= 1
    assert loaded(chosen) == chosen


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in FOREIGN])
def test_weights_that_vllm_does_not_load_are_named_with_where_to_look(pattern: str) -> None:
    flaw = flaw_among("a/b", ["config.json", f"deep/{pattern.replace('*', 'model')}"])
    assert flaw is not None
    assert flaw[0].startswith("a/b holds ")
    assert "safetensors" in flaw[1]
    assert flaw_among("a/b", ["model.safetensors", pattern.replace("*", "model")]) is None


BROKEN = {
    "pointer": ({"model__safetensors": POINTER}, "model.safetensors is a Git LFS pointer", "git lfs pull"),
    "pointer of a tokenizer": ({"model__safetensors": safetensors(), "tokenizer__json": POINTER}, "tokenizer.json is a Git", "git lfs"),
    "pointers": ({SHARDS[0]: POINTER, SHARDS[1]: POINTER}, f"{SHARDS[0]} and 1 more are Git LFS pointers", "git lfs pull"),
    "missing": (
        {SHARDS[0]: safetensors(), "model__safetensors__index__json": INDEX},
        f"lacks 1 of 2 files of weights: {SHARDS[1]}",
        "copy",
    ),
    "missing, no index": ({SHARDS[1]: safetensors()}, f"lacks 1 of 2 files of weights: {SHARDS[0]}", "copy"),
    "empty": ({"model__safetensors": b""}, "model.safetensors is cut off: 0 of 8 bytes", "again"),
    "cut header": ({"model__safetensors": safetensors()[:30]}, "model.safetensors is cut off: 30 of ", "again"),
    "cut": ({"model__safetensors": safetensors()[:-1]}, "model.safetensors is cut off: ", "again"),
    "cut pickle": ({"pytorch_model__bin": b"PK\x03\x04 and no end"}, "pytorch_model.bin is cut off", "again"),
    "gguf": ({"model-q4__gguf": b"GGUF"}, "holds GGUF files alone", "base_model"),
    "onnx": ({"model__onnx": b"x"}, "holds ONNX files alone", "base_model"),
    "adapter": (
        {"adapter_config__json": b'{"base_model_name_or_path": "big/base"}', "adapter_model__safetensors": safetensors()},
        "is an adapter (LoRA), not a model",
        "serve big/base",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_named_with_its_fix_by_download_plan_and_doctor_alike(tmp_path: Path, kind: str) -> None:
    files, says, fix = BROKEN[kind]
    path = folder(tmp_path / "model", **files)
    settings = ModelConfig(name="m", source="path", path=str(path))
    workspace = Workspace(tmp_path, Silent())
    with pytest.raises(BrokenModelError) as fetched:
        download_model(settings, machine(), workspace)
    with pytest.raises(BrokenModelError) as planned:
        Library(machine(), workspace).weights(settings, "auto")
    finding = doctor.model(Config(model=settings), path)
    assert finding.level == "FAIL"
    assert (fetched.value.message, fetched.value.hint) == (planned.value.message, planned.value.hint) == (finding.seen, finding.fix)
    assert says in finding.seen
    assert fix in finding.fix


def test_whole_folders_are_fine(tmp_path: Path) -> None:
    check_folder(folder(tmp_path / "one", model__safetensors=safetensors()))
    shards = {SHARDS[0]: safetensors(), SHARDS[1]: safetensors(), "model__safetensors__index__json": INDEX}
    check_folder(folder(tmp_path / "two", **shards))
    check_folder(folder(tmp_path / "none"))
    pickled = folder(tmp_path / "pickled") / "pytorch_model.bin"
    with zipfile.ZipFile(pickled, "w") as archive:
        archive.writestr("data.pkl", b"x")
    check_folder(tmp_path / "pickled")


def test_a_header_that_cannot_be_read_is_left_to_what_reads_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", model__safetensors=b"\xff" * 20)
    check_folder(path)
    with pytest.raises(ModelError, match="no readable safetensors header"):
        Library(machine(), Workspace(tmp_path, Silent())).weights(ModelConfig(name="m", source="path", path=str(path)), "auto")


def test_random_weights_need_no_files_of_them(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    config = Config.model_validate({"model": {"name": "m", "source": "path", "path": str(path)}, "serve": {"load_format": "dummy"}})
    assert doctor.model(config, path).level == "OK"
    assert doctor.model(Config(model=config.model), path).level == "FAIL"
