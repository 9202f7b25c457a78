"""What becomes of a real server, and of the next command, after each fault."""

import shutil

import pytest

from tests.e2e.conftest import Project
from tests.e2e.faults import SCENARIOS

CODES = {"pipeline-at-each-stage": (0, 1), "engine-idle": (0,), "pipeline-starting": (0,), "clock": (0,), "memory": (0,), "watch": (130,)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_is_told_and_leaves_nothing_in_the_way_of_the_next_start(project: Project, name: str) -> None:
    if name == "clock" and shutil.which("gcc") is None:
        pytest.skip("moving the clock of one process needs gcc")
    seen = SCENARIOS[name](project)
    with (project.root / "faults.md").open("a", encoding="utf-8") as table:
        table.write(seen.row() + "\n")
    assert seen.said, seen
    assert seen.code in CODES.get(name, (2,)), seen
    assert seen.left == 0, seen
    assert seen.fine, seen
