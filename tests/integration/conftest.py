"""Project folders with the fake server in vLLM's place; nothing that was started in one outlives its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.environment import FakeProject


@pytest.fixture
def project(tmp_path: Path) -> Iterator[FakeProject]:
    made = FakeProject(tmp_path)
    yield made
    made.close()
