"""Models fetched from a hub: what is fetched, what stays, and what a hub that refuses is told as."""

import contextlib
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.errors import ModelError
from pipeline.model import hub as fetching
from pipeline.model.files import INDEX
from pipeline.model.hub import HubModel
from pipeline.model.remote import remote_weights
from tests.builders.hub import CONFIG, FILES, LITTLE, REPO, TOKEN, contents, fetch, point_at, trouble
from tests.fakes import fake_hub
from tests.fakes.environment import free_port
from tests.fakes.fake_hub import FakeHub, HubFile, Refusal


def test_model_is_fetched_at_the_commit_that_the_branch_means(hub: FakeHub, tmp_path: Path) -> None:
    said: list[str] = []
    got = fetching.fetch(REPO, "main", tmp_path / "model", LITTLE, said.append)
    assert got == HubModel(folder=tmp_path / "model", commit=hub.branches["main"], license="apache-2.0")
    assert contents(tmp_path) == {path: file.content for path, file in FILES.items()}
    assert said == [f"downloading {REPO} at {got.commit[:12]}: 0.00 GiB to go"]


def test_named_commit_stays_when_the_branch_moves(hub: FakeHub, tmp_path: Path) -> None:
    old = hub.branches["main"]
    hub.commit({"config.json": HubFile(b"{}")})
    assert fetch(tmp_path, revision=old).commit == old
    assert contents(tmp_path)["config.json"] == CONFIG.encode()


def test_licence_that_the_hub_does_not_state_is_none(hub: FakeHub, tmp_path: Path) -> None:
    hub.license = None
    assert fetch(tmp_path).license is None


def test_second_fetch_asks_for_no_file(hub: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path)
    hub.requests.clear()
    fetch(tmp_path)
    assert [request.endpoint for request in hub.requests if request.endpoint] == ["info"]


def test_moved_branch_fetches_what_changed_only(hub: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path)
    hub.requests.clear()
    commit = hub.commit({**FILES, "config.json": HubFile(b"{}")})
    assert fetch(tmp_path).commit == commit
    assert contents(tmp_path)["config.json"] == b"{}"
    assert hub.gets("model.safetensors") == []


def test_files_that_the_commit_does_not_hold_do_not_stay(hub: FakeHub, tmp_path: Path) -> None:
    """A server that finds old weights beside the new ones loads both, or the wrong ones."""
    fetch(tmp_path)
    now = {"config.json": FILES["config.json"], "model-00001-of-00001.safetensors": HubFile(b"new", lfs=True)}
    hub.commit(now)
    fetch(tmp_path)
    assert set(contents(tmp_path)) == set(now)


LEFT_OUT = ["model.gguf", "tf_model.h5", "flax_model.msgpack", "consolidated.00.pth", "original/params.json", "onnx/model.onnx_data"]


@pytest.mark.parametrize("path", [*LEFT_OUT, "original/deep/params.bin", "onnx/fp16/model.bin", "deep/model.gguf"])
def test_other_frameworks_files_are_left_out(hub: FakeHub, tmp_path: Path, path: str) -> None:
    hub.commit({**FILES, path: HubFile(b"for nothing", lfs=True)})
    fetch(tmp_path)
    assert set(contents(tmp_path)) == set(FILES)


def test_file_that_is_fetched_is_checked_wherever_it_lies(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({**FILES, "deep/original/weights.bin": HubFile(b"right", lfs=True, sent=b"wrong")})
    with contextlib.suppress(ModelError):
        fetch(tmp_path)
    assert contents(tmp_path).get("deep/original/weights.bin") != b"wrong"


@pytest.mark.parametrize("refusal", [fake_hub.MISSING, fake_hub.MISSING_TO_STRANGERS])
def test_missing_model(hub: FakeHub, tmp_path: Path, refusal: Refusal) -> None:
    hub.refusals["info"] = refusal
    error = trouble(tmp_path, repo="tests/tyni")
    assert error.message == "the hub knows no model tests/tyni (or it is private)"
    assert "spelling of model.repo" in error.hint
    assert "HF_TOKEN" in error.hint


@pytest.mark.parametrize("repo", ["https://huggingface.co/tests/tiny", "tests/tiny/model", "tests/ti ny", "tests/tiny.git"])
def test_name_that_no_model_can_have(hub: FakeHub, tmp_path: Path, repo: str) -> None:
    error = trouble(tmp_path, repo=repo)
    assert repo in error.message
    assert "model.repo" in error.message + error.hint


@pytest.mark.parametrize("refusal", [fake_hub.GATED, fake_hub.GATED_TO_STRANGERS])
@pytest.mark.parametrize("endpoint", ["info", "resolve"])
def test_gated_model(hub: FakeHub, tmp_path: Path, endpoint: str, refusal: Refusal) -> None:
    hub.refusals[endpoint] = refusal
    error = trouble(tmp_path)
    assert error.message == f"{REPO} is gated"
    assert error.hint == f"accept its licence on the hub page of {REPO}, then set HF_TOKEN to a token of that account"


def test_wrong_revision(hub: FakeHub, tmp_path: Path) -> None:
    error = trouble(tmp_path, revision="v9")
    assert error.message == f"{REPO} has no revision v9"
    assert error.hint == "set model.revision to a branch, tag or commit of it"


def test_wrong_token(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refusals["info"] = fake_hub.WRONG_TOKEN
    error = trouble(tmp_path)
    assert "401" in error.message
    assert "HF_TOKEN" in error.hint
    assert TOKEN not in error.message + error.hint


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(f"http://127.0.0.1:{free_port()}", tmp_path, monkeypatch)
    error = trouble(tmp_path)
    assert error.message.startswith("the hub cannot be reached: ")
    assert "check the network (and HF_ENDPOINT, HF_HUB_OFFLINE)" in error.hint


def test_endpoint_without_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("127.0.0.1:80", tmp_path, monkeypatch)
    error = trouble(tmp_path)
    assert error.message.startswith("the hub cannot be reached: ")
    assert "HF_ENDPOINT" in error.hint


def test_offline_mode(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = trouble(tmp_path)
    assert "offline mode is enabled" in error.message
    assert "HF_HUB_OFFLINE" in error.hint
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["info", "GET resolve"])
def test_hub_out_of_order(hub: FakeHub, tmp_path: Path, endpoint: str) -> None:
    hub.refusals[endpoint] = fake_hub.BROKEN
    error = trouble(tmp_path)
    assert error.message.startswith(f"the hub refused {REPO}: ")
    assert "500" in error.message
    assert error.hint == "try again later"


@pytest.mark.parametrize("endpoint", ["HEAD resolve"])
def test_hub_out_of_order_half_way(hub: FakeHub, tmp_path: Path, endpoint: str) -> None:
    hub.refusals[endpoint] = fake_hub.BROKEN
    assert trouble(tmp_path).message.startswith("the hub cannot be reached: ")


def test_login_page_of_a_network_instead_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    hub.refusals["info"] = fake_hub.LOGIN_PAGE
    assert "check the network" in trouble(tmp_path).hint


@pytest.mark.parametrize("endpoint", ["HEAD resolve"])
def test_old_files_never_pass_for_those_of_a_commit_that_could_not_be_fetched(hub: FakeHub, tmp_path: Path, endpoint: str) -> None:
    fetch(tmp_path)
    hub.commit({**FILES, "config.json": HubFile(b"{}")})
    hub.refusals[endpoint] = fake_hub.BROKEN
    trouble(tmp_path)


SHAPE = json.dumps({"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}).encode()
FOREIGN = {
    "gguf": ({"README.md": HubFile(b""), "model-Q4_K_M.gguf": HubFile(b"GGUF", lfs=True)}, "holds GGUF files alone"),
    "onnx": ({"config.json": HubFile(SHAPE), "onnx/model.onnx": HubFile(b"x", lfs=True)}, "holds ONNX files alone"),
    "adapter": (
        {"adapter_config.json": HubFile(b"{}"), "adapter_model.safetensors": HubFile(b"x", lfs=True)},
        "is an adapter (LoRA), not a model",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_repository_without_a_model_is_named_before_anything_is_fetched(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    files, says = FOREIGN[kind]
    hub.commit(files)
    told = trouble(tmp_path)
    assert f"{REPO} {says}" in told.message
    assert not any(request.endpoint == "resolve" for request in hub.requests)
    with pytest.raises(ModelError) as asked:
        fetching.access(REPO, "main", 5)
    with pytest.raises(ModelError) as planned:
        remote_weights(REPO, "main", "auto", 5)
    assert {asked.value.message, planned.value.message} == {told.message}
    assert {asked.value.hint, planned.value.hint} == {told.hint}


def test_of_shards_those_in_the_index_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
    shards = {INDEX: HubFile(index), "model-00001-of-00001.safetensors": HubFile(b"shard", lfs=True)}
    others = {"consolidated.safetensors": HubFile(b"whole", lfs=True), "metal/model.bin": HubFile(b"m"), "pytorch_model.bin": HubFile(b"p")}
    hub.commit({**FILES, **shards, **others})
    fetch(tmp_path)
    assert set(contents(tmp_path)) == {"config.json", "merges.txt", *shards}


def test_an_index_that_names_what_the_repository_lacks_is_told(hub: FakeHub, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()
    hub.commit({**FILES, INDEX: HubFile(index), "model-00001-of-00002.safetensors": HubFile(b"shard", lfs=True)})
    assert "lacks model-00002-of-00002.safetensors, which its index names" in trouble(tmp_path).message
