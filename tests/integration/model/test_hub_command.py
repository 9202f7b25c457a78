"""download-model against the hub: its record, its token, and interrupts."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.stages.download_model import model_present
from tests.builders.hub import FILES, REPO, TOKEN, WEIGHTS, download, fetch, trouble
from tests.fakes import fake_hub
from tests.fakes.fake_hub import FakeHub, HubFile
from tests.fakes.forkserver import Process, start


def test_token_of_the_environment_is_sent(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.required_token = TOKEN
    assert "set HF_TOKEN" in trouble(tmp_path).hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(tmp_path)
    assert {request.token for request in hub.requests if request.endpoint == "resolve"} == {f"Bearer {TOKEN}"}


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


def command(root: Path, endpoint: str, **variables: str) -> Process:
    """Start `download-model` with nothing in its environment but these."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(root / "home"), "HF_ENDPOINT": endpoint, **variables}
    return start(["-m", "invoke", "download-model"], root, environment)


def finished(process: Process) -> tuple[int, str]:
    """Return (exit code, all that it printed)."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.wait(), out + err


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


def stalled(root: Path, meanwhile: Callable[[FakeHub, Process], None]) -> tuple[int, str]:
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
            process.communicate(timeout=60)


def test_interrupt_ends_a_download_at_once_and_the_next_run_completes_it(root: Path) -> None:
    def interrupt(_hub: FakeHub, process: Process) -> None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
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
