"""What is open to whom, which settings would give a secret away, and what is hidden from view."""

import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config.attach import AttachConfig
from pipeline.config.schema import ServeConfig, is_loopback
from pipeline.engine.record import Failure, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.redact import HIDDEN, KEY_PREFIX, redacted
from pipeline.server.keys import key_file, make_or_read_key, read_key

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_closed(host: str) -> None:
    assert is_loopback(host)
    assert not ServeConfig(host=host).is_open


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_anything_else_is_open(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"extra_args": ["--api-key", "x"]}, "every user of the machine can read --api-key"),
        ({"extra_args": ["--hf-token=x"]}, "every user of the machine can read --hf-token"),
        ({"env": {"HF_TOKEN": "x"}}, "HF_TOKEN looks like a secret"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ({"env": {"INNOCENT": TOKEN}}, "INNOCENT looks like a secret"),
        ({"host": "0.0.0.0", "env": {"VLLM_SERVER_DEV_MODE": "1"}}, "VLLM_SERVER_DEV_MODE opens the server's insides; not on host 0.0.0.0"),
    ],
)
def test_settings_that_would_give_something_away_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ServeConfig.model_validate(settings)


def test_settings_that_give_nothing_away_are_taken() -> None:
    assert ServeConfig(env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"}).env
    assert ServeConfig(host="0.0.0.0", env={"VLLM_SERVER_DEV_MODE": "0"}).is_open


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}.", f"token {HIDDEN}."),
        (f"key={KEY_PREFIX}{'x-_Y' * 8}", f"key={HIDDEN}"),
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {HIDDEN}"),
        ("sk-" + "q" * 24, HIDDEN),
        ("hf_hub_download in vllm-poc-artifacts, Bearer short", "hf_hub_download in vllm-poc-artifacts, Bearer short"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_failure_keeps_no_token(tmp_path: Path) -> None:
    failure = Failure(kind="model", message=f"no access with {TOKEN}", hint=TOKEN, log_tail=[f"GET x Authorization: Bearer {TOKEN}"])
    Store(tmp_path).write("download-model", {"given": TOKEN}, now(), 1.0, failure)
    text = (tmp_path / "download-model.json").read_text(encoding="utf-8")
    assert TOKEN not in text
    assert text.count(HIDDEN) == 4


def test_the_key_is_made_once_for_its_user_alone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    key = make_or_read_key(workspace)
    assert stat.S_IMODE(key_file(workspace).stat().st_mode) == 0o600
    assert len(key) > 40
    assert make_or_read_key(workspace) == key
    assert redacted(f"it is {key}") == f"it is {HIDDEN}"


@pytest.mark.parametrize(("text", "mode", "says"), [("k\n", 0o640, "can be read by other users"), ("\n", 0o600, "is empty")])
def test_a_key_file_that_cannot_serve_is_refused(tmp_path: Path, text: str, mode: int, says: str) -> None:
    path = tmp_path / ".api-key"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(ServerError, match=says):
        make_or_read_key(Workspace(tmp_path))


def test_a_key_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".api-key").write_bytes(b"\xff\n")
    with pytest.raises(ServerError, match=r"\.api-key cannot be read"):
        read_key(tmp_path / ".api-key")


def test_a_lost_key_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is gone, and with it the key of the running server"):
        read_key(tmp_path / ".api-key")


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://gpu-box:8000/", "http://gpu-box:8000"),
        ("http://gpu-box:8000/v1", "http://gpu-box:8000"),
        ("https://host/llm/v1/", "https://host/llm"),
        (None, None),
    ],
)
def test_a_base_url_is_taken_with_and_without_v1(url: str | None, meant: str | None) -> None:
    assert AttachConfig(url=url).url == meant


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gpu-box:8000", "expected http://host:port"),
        ("ftp://gpu-box", "expected http://host:port"),
        ("http://", "expected http://host:port"),
        ("http://me:secret@gpu-box", "an API key belongs into the environment variable VLLM_API_KEY"),
        ("http://gpu-box?key=x", "expected no user, query or fragment"),
    ],
)
def test_what_is_no_base_url_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AttachConfig(url=url)
