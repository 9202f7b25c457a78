"""A house of toy stages."""

from pathlib import Path

import pytest

from tests.builders.toys import ToyHouse


@pytest.fixture
def house(tmp_path: Path) -> ToyHouse:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a", encoding="utf-8")
    return ToyHouse(tmp_path)
