"""Project folders with the fake server in vLLM's place; nothing that was started in one outlives its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.server import state
from tests.fakes.environment import FakeProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake dies at once or not at all: a second is patience enough."""
    patient = state.dies_within
    monkeypatch.setattr(state, "dies_within", lambda pid, created, seconds: patient(pid, created, min(seconds, 1.0)))
