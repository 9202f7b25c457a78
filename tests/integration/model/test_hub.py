"""Fetching a model from the hub, with everything that can go wrong on the way."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from pipeline.config.schema import ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.model import hub as fetching
from pipeline.model.hub import HubModel
from pipeline.stages.download_model import Model, download_model, model_present
from pipeline.terminal import Silent
from tests.builders.machines import machine
from tests.fakes import fake_hub
from tests.fakes.environment import free_port
from tests.fakes.fake_hub import FakeHub, HubFile, Refusal

ROOT = Path(__file__).resolve().parents[3]
REPO = "tests/tiny"
TOKEN = "hf_thisIsASecretOfTheTests"
CONFIG = json.dumps({"architectures": ["TinyForCausalLM"], "torch_dtype": "bfloat16", "max_position_embeddings": 64, "vocab_size": 8})
WEIGHTS = bytes(range(256)) * 64
FILES = {
    "config.json": HubFile(CONFIG.encode()),
    "tokenizer/merges.txt": HubFile(b"a b\n"),
    "model.safetensors": HubFile(WEIGHTS, lfs=True),
}
LITTLE = 0.01  # GiB, which every machine has


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub with one small model, and huggingface_hub pointed at it."""
    with FakeHub() as fake:
        fake.commit(FILES)
        point_at(fake.endpoint, tmp_path, monkeypatch)
        yield fake
        close_session()


def point_at(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what huggingface_hub reads from the environment at import, and take its waits away."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(folder / "no-tokens"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def fetch(folder: Path, repo: str = REPO, revision: str = "main", min_free_gib: float = LITTLE) -> HubModel:
    return fetching.fetch(repo, revision, folder / "model", min_free_gib, lambda _text: None)


def trouble(folder: Path, **arguments: Any) -> ModelError:
    """Return the error of a fetch that must fail, which says what is wrong in one line and what to do."""
    with pytest.raises(ModelError) as caught:
        fetch(folder, **arguments)
    error = caught.value
    assert error.message == error.message.strip()
    assert "\n" not in error.message + error.hint
    assert error.hint
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Return the fetched files, without huggingface_hub's own notes."""
    model = folder / "model"
    return {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file() and ".cache" not in path.parts}


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


def test_broken_connection_goes_on_where_it_broke(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after["model.safetensors"] = [5000]
    fetch(tmp_path)
    assert [request.range for request in hub.gets("model.safetensors")] == [None, "bytes=5000-"]
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def broken_off(hub: FakeHub, folder: Path) -> ModelError:
    """Return the error of a fetch whose connection breaks in the weights each time that it is made again."""
    hub.break_after["model.safetensors"] = [5000] * 6
    return trouble(folder)


def test_connection_that_breaks_again_and_again(hub: FakeHub, tmp_path: Path) -> None:
    error = broken_off(hub, tmp_path)
    assert error.message.startswith("the hub cannot be reached: peer closed connection")
    assert "run it again" in error.hint
    assert "model.safetensors" not in contents(tmp_path)


def test_run_after_a_broken_one_fetches_what_is_missing_only(hub: FakeHub, tmp_path: Path) -> None:
    broken_off(hub, tmp_path)
    arrived = set(contents(tmp_path))
    assert arrived == {"config.json", "tokenizer/merges.txt"}
    hub.requests.clear()
    assert fetch(tmp_path).commit == hub.branches["main"]
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS
    assert [hub.gets(path) for path in arrived] == [[], []]


def test_hint_after_a_broken_download_promises_only_what_the_next_run_does(hub: FakeHub, tmp_path: Path) -> None:
    """huggingface_hub 2.4 keeps whole files only; where a later one goes on inside a file, the hint may say so."""
    error = broken_off(hub, tmp_path)
    hub.requests.clear()
    fetch(tmp_path)
    goes_on_inside_the_file = hub.gets("model.safetensors")[0].range is not None
    assert ("resumes" in error.hint) == goes_on_inside_the_file


def test_answer_that_ends_early_without_an_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS, lfs=True, sent=WEIGHTS[:5000])})
    error = trouble(tmp_path)
    assert error.message.startswith(f"the download of {REPO} broke off: Consistency check failed")
    assert "run it again" in error.hint


def test_content_that_is_not_what_the_hub_states_is_removed_and_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS, lfs=True, sent=WEIGHTS[::-1])})
    error = trouble(tmp_path)
    assert error.message == f"{REPO}: model.safetensors does not have the sha256 that the hub states; removed it"
    assert error.hint == "run it again to fetch that file anew"
    assert "model.safetensors" not in contents(tmp_path)
    hub.commits[hub.branches["main"]] = FILES
    fetch(tmp_path)
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def test_file_that_was_damaged_since_is_found(hub: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(WEIGHTS[::-1])
    assert "does not have the sha256" in trouble(tmp_path).message
    fetch(tmp_path)
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def test_disk_that_cannot_hold_the_model_is_told_before_the_download(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**30))
    error = trouble(tmp_path, min_free_gib=1.5)
    assert error.message == f"{REPO} needs 0.0 GiB and 1.5 GiB to spare, 1.0 GiB are free"
    assert error.hint == "free some disk space, or choose a smaller model"
    assert [request.endpoint for request in hub.requests if request.endpoint] == ["info"]


def test_files_that_are_there_need_no_space(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    fetch(tmp_path, min_free_gib=0)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "to spare" in trouble(tmp_path, min_free_gib=0).message


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a small file system of its own; skip where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("size=64k", *options)), "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_that_fills_up_meanwhile(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS * 8, lfs=True)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    with mounted(tmp_path / "small"):
        error = trouble(tmp_path / "small")
        assert error.message == "the disk is full"
        assert "free some space, then run it again" in error.hint
        assert "model.safetensors" not in contents(tmp_path / "small")


def test_folder_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "ro"):
        error = trouble(tmp_path / "fixed", min_free_gib=0)
        assert os.strerror(errno.EROFS) in error.message


def test_token_of_the_environment_is_sent(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.required_token = TOKEN
    assert "set HF_TOKEN" in trouble(tmp_path).hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(tmp_path)
    assert {request.token for request in hub.requests if request.endpoint == "resolve"} == {f"Bearer {TOKEN}"}


# The stage round it.


def download(root: Path, **settings: Any) -> Model:
    return download_model(
        ModelConfig(name="tiny", source="hub", repo=REPO, min_free_gib=LITTLE, **settings), machine(), Workspace(root, Silent())
    )


def test_stage_records_commit_licence_facts_and_every_file(hub: FakeHub, tmp_path: Path) -> None:
    made = download(tmp_path)
    assert (made.origin, made.revision, made.folder) == (REPO, hub.branches["main"], "models/tests--tiny")
    assert made.facts.model_dump(exclude_none=True) == {
        "architecture": "TinyForCausalLM",
        "dtype": "bfloat16",
        "context_length": 64,
        "vocabulary": 8,
        "license": "apache-2.0",
        "non_commercial": False,
    }
    stated = {(path, len(file.content), hashlib.sha256(file.content).hexdigest()) for path, file in FILES.items()}
    assert {(entry.path, entry.bytes, entry.sha256) for entry in made.files} == stated


def test_model_is_present_until_a_file_is_gone_or_cut(hub: FakeHub, tmp_path: Path) -> None:
    made = download(tmp_path)
    workspace = Workspace(tmp_path)
    weights = tmp_path / made.folder / "model.safetensors"
    assert model_present(made, workspace)
    weights.write_bytes(WEIGHTS[:-1])
    assert not model_present(made, workspace)
    weights.unlink()
    assert not model_present(made, workspace)


def test_stage_tells_a_model_without_config(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({"README.md": HubFile(b"gone")})
    with pytest.raises(ModelError, match=r"models/tests--tiny holds no config\.json"):
        download(tmp_path)


# And the command, with what a person sets in the environment.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose model is the hub's."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / "tasks.py", root)
    (root / "pipeline").symlink_to(ROOT / "pipeline")
    model = {"name": "tiny", "source": "hub", "repo": REPO, "min_free_gib": LITTLE}
    (root / "config.yaml").write_text(json.dumps({"profile": "tiny", "profiles": {"tiny": {"model": model}}}), encoding="utf-8")
    return root


def command(root: Path, endpoint: str, **variables: str) -> "subprocess.Popen[str]":
    """Start `download-model` with nothing in its environment but these."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(root / "home"), "HF_ENDPOINT": endpoint, **variables}
    words = [sys.executable, "-m", "invoke", "download-model"]
    return subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return (exit code, all that it printed)."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out + err


def record(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "artifacts" / "download-model.json").read_text(encoding="utf-8"))
    return loaded


def everything_written(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file() and "pipeline" not in path.parts)


def test_command_sends_the_token_and_keeps_it_to_itself(root: Path) -> None:
    with FakeHub(required_token=TOKEN) as hub:
        commit = hub.commit(FILES)
        code, said = finished(command(root, hub.endpoint, HF_TOKEN=TOKEN))
        assert code == 0, said
        assert f"Bearer {TOKEN}" in {request.token for request in hub.gets("model.safetensors")}
    assert record(root)["data"]["revision"] == commit
    assert TOKEN not in said
    assert TOKEN.encode() not in everything_written(root)


def test_command_with_a_refused_token_keeps_it_to_itself(root: Path) -> None:
    with FakeHub(refusals={"info": fake_hub.WRONG_TOKEN}) as hub:
        hub.commit(FILES)
        code, said = finished(command(root, hub.endpoint, HF_TOKEN=TOKEN))
        assert any(request.token == f"Bearer {TOKEN}" for request in hub.requests)
    assert code == 2
    assert "Traceback" not in said
    assert TOKEN not in said
    assert TOKEN.encode() not in everything_written(root)


def test_command_obeys_offline_mode(root: Path) -> None:
    with FakeHub() as hub:
        hub.commit(FILES)
        code, said = finished(command(root, hub.endpoint, HF_HUB_OFFLINE="1"))
        assert hub.requests == []
    assert code == 2
    assert "Traceback" not in said
    failure = record(root)["failure"]
    assert "offline mode is enabled" in failure["message"]
    assert "✗ download-model failed" in said
    assert f"{failure['message']} ({failure['hint']})" in said


def stalled(root: Path, meanwhile: Callable[[FakeHub, "subprocess.Popen[str]"], None]) -> tuple[int, str]:
    """Return (exit code, output) of a download that stands still in the weights while `meanwhile` is called."""
    with FakeHub(stalled={"model.safetensors"}) as hub:
        hub.commit(FILES)
        process = command(root, hub.endpoint)
        try:
            assert hub.stalling.wait(30)
            meanwhile(hub, process)
            return finished(process)
        finally:
            process.kill()
            process.communicate()


def test_interrupt_ends_a_download_at_once_and_the_next_run_completes_it(root: Path) -> None:
    def interrupt(_hub: FakeHub, process: "subprocess.Popen[str]") -> None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        ended.append(process.poll())
        process.kill()

    ended: list[int | None] = []
    code, said = stalled(root, interrupt)
    assert ended == [130], "it went on downloading"
    assert code == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (root / "artifacts" / "download-model.json").exists()
    with FakeHub() as hub:
        hub.commit(FILES)
        assert finished(command(root, hub.endpoint))[0] == 0


def test_killed_download_leaves_nothing_behind_once_the_next_run_is_through(root: Path) -> None:
    code, _ = stalled(root, lambda _hub, process: process.kill())
    assert code == -signal.SIGKILL
    with FakeHub() as hub:
        hub.commit(FILES)
        assert finished(command(root, hub.endpoint))[0] == 0
    assert list((root / "models").rglob("*.incomplete")) == []
