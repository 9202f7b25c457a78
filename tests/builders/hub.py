"""A tiny model on a fake hub."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from pipeline.config.schema import ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ModelError
from pipeline.model import hub as fetching
from pipeline.model.hub import HubModel
from pipeline.stages.download_model import Model, download_model
from pipeline.terminal import Silent
from tests.builders.machines import machine
from tests.fakes.fake_hub import HubFile

ROOT = Path(__file__).resolve().parents[2]
REPO = "tests/tiny"
TOKEN = "hf_thisIsASecretOfTheTests"
CONFIG = json.dumps({"architectures": ["TinyForCausalLM"], "torch_dtype": "bfloat16", "max_position_embeddings": 64, "vocab_size": 8})
WEIGHTS = bytes(range(256)) * 64
FILES = {
    "config.json": HubFile(CONFIG.encode()),
    "merges.txt": HubFile(b"a b\n"),
    "model.safetensors": HubFile(WEIGHTS, lfs=True),
}
LITTLE = 0.01  # GiB, which every machine has


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


def download(root: Path, **settings: Any) -> Model:
    return download_model(
        ModelConfig(name="tiny", source="hub", repo=REPO, min_free_gib=LITTLE, **settings), machine(), Workspace(root, Silent())
    )
