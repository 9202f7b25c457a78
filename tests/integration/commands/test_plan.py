"""Plan before you pay: what the hub tells without a download, and the command."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from pipeline.errors import HubSilentError, ModelError
from pipeline.model.files import INDEX
from pipeline.model.published import QWEN_3B
from pipeline.model.remote import HEADERS, remote_weights
from tests.builders.hub import point_at
from tests.builders.project import Project
from tests.fakes import fake_hub
from tests.fakes.environment import free_port
from tests.fakes.fake_hub import FakeHub, HubFile

TINY = {**QWEN_3B, "num_hidden_layers": 2, "vocab_size": 100}
CONFIG = HubFile(json.dumps(TINY).encode())


def safetensors(padding: int = 0, **tensors: tuple[str, int]) -> HubFile:
    """Return a file with tensors of (dtype, bytes), and a header of at least `padding` bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "padding": " " * padding}}
    end = 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return HubFile(struct.pack("<Q", len(text)) + text + bytes(end), lfs=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        point_at(fake.endpoint, tmp_path, monkeypatch)
        yield fake
        close_session()


def weights(repo: str = "tests/tiny", dtype: str = "auto") -> tuple[int, str]:
    _, size, source = remote_weights(repo, "main", dtype, 5)
    return size, source


# The hub.


def test_a_model_is_known_by_its_header_alone(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({"config.json": CONFIG, "model.safetensors": safetensors(embed=("BF16", 500_000), norm=("F32", 400), q=("I32", 1000))})
    assert weights() == (500_000 + 200 + 1000, HEADERS)
    assert weights(dtype="float32")[0] == 1_000_000 + 400 + 1000
    ranges = {request.range for request in hub.gets("model.safetensors")}
    assert ranges == {"bytes=0-100000"}, "100 kB of half a megabyte"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing is kept"


def test_a_long_header_is_read_to_its_end(hub: FakeHub) -> None:
    hub.commit({"config.json": CONFIG, "model.safetensors": safetensors(padding=150_000, embed=("BF16", 1000))})
    assert weights()[0] == 1000
    assert len(hub.gets("model.safetensors")) == 2


def test_the_shards_of_an_index_are_added_up_and_others_left_out(hub: FakeHub) -> None:
    index = HubFile(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}).encode()
    )
    shards = {"model-1.safetensors": safetensors(a=("F16", 10), c=("F16", 20)), "model-2.safetensors": safetensors(b=("F16", 30))}
    hub.commit({"config.json": CONFIG, INDEX: index, "consolidated.safetensors": safetensors(a=("F16", 60)), **shards})
    assert weights()[0] == 60
    assert hub.gets("consolidated.safetensors") == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model.safetensors": safetensors(a=("F16", 10))}, "tests/tiny has no config.json"),
        ({"config.json": CONFIG}, "tests/tiny has no safetensors weights that can be read"),
        ({"config.json": CONFIG, "model.safetensors": HubFile(b"12345678 no header", lfs=True)}, "no safetensors weights that can be read"),
        ({"config.json": CONFIG, INDEX: HubFile(b"[]")}, "is no index of weights"),
        ({"config.json": HubFile(b"{}")}, "config.json tells no memory plan"),
    ],
)
def test_a_repository_that_tells_no_size_is_told(hub: FakeHub, files: dict[str, HubFile], says: str) -> None:
    hub.commit(files)
    with pytest.raises(ModelError, match=says) as caught:
        weights()
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_gated_and_an_unknown_repository_are_told(hub: FakeHub) -> None:
    hub.commit({"config.json": CONFIG})
    with pytest.raises(ModelError, match="the hub knows no model tests/other"):
        weights("tests/other")
    hub.refusals["resolve"] = fake_hub.GATED
    with pytest.raises(ModelError, match="tests/tiny is gated"):
        weights()


def test_a_hub_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(f"http://127.0.0.1:{free_port()}", tmp_path, monkeypatch)
    with pytest.raises(HubSilentError, match="the hub cannot be reached"):
        weights()
    close_session()


# The command.


def test_plan_says_what_fits_without_a_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    said = project.says("plan", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert said[0].startswith("planned for NVIDIA GeForce RTX 4050 Laptop GPU with 6141 MiB (the guide's card, because ")
    assert said[1].startswith("the hub cannot be reached: ")
    assert any(line.startswith("Qwen2.5-3B-Instruct *") and "does not fit: takes " in line for line in said)
    assert "fit within the target: Qwen2.5-1.5B-Instruct, Qwen2.5-3B-Instruct-AWQ, SmolLM2-135M-Instruct" in said
    assert not (project.root / "artifacts").exists()
    assert not (project.root / "models").exists()


def test_plan_asks_the_hub_for_headers_and_its_exit_code_is_the_profiles(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    large = safetensors(a=("BF16", 10))
    with FakeHub() as hub:
        hub.commit({"config.json": CONFIG, "model.safetensors": large})
        words = ("plan", "--profile", "qwen2.5-1.5b", "--set", "model.name=tiny", "--set", f"model.repo={hub.repo}")
        said = project.says(*words, "--total-mib", "24564", HF_ENDPOINT=hub.endpoint)
        assert said[0] == "planned for a GPU with 24564 MiB (--total-mib)"
        assert any(line.startswith("tiny ") and " hub " in line and line.endswith(" fits") for line in said)
        done = project.invoke(*words, "--total-mib", "400", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 1
    assert "as it stands, with utilisation 0.65: does not fit, unless the estimate is off" in done.stdout


def test_plan_refuses_a_size_that_is_none(tmp_path: Path) -> None:
    said = Project(tmp_path / "project").refuses("plan", "--total-mib", "24GB")
    assert said == ["error: --total-mib 24GB: expected the device's memory in MiB", "  → for example --total-mib 24564"]
