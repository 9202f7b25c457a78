"""Projects for commands."""

from pathlib import Path

import pytest

from tests.builders.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project for commands that must leave nothing behind."""
    return Project(tmp_path_factory.mktemp("cli") / "project")
