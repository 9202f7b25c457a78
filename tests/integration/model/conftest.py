"""Fixtures of these tests."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from tests.builders.hub import FILES, LITTLE, REPO, ROOT, point_at
from tests.fakes.fake_hub import FakeHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub with one small model, and huggingface_hub pointed at it."""
    with FakeHub() as fake:
        fake.commit(FILES)
        point_at(fake.endpoint, tmp_path, monkeypatch)
        yield fake
        close_session()


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
