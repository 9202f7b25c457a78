"""A project folder in which all went well."""

from pathlib import Path

import pytest

from tests.builders.house import House
from tests.builders.records import all_good, server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(ROOT / "templates")
    return House(tmp_path, all_good(), server())
