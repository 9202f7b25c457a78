"""The graph of the stages."""

from pathlib import Path

import pytest

from pipeline.engine.record import Failure
from pipeline.report.drawing.diagram import CLASSES, diagram
from pipeline.report.words import ENGLISH
from pipeline.stages.test_determinism import REMEDY_NOTE
from tests.builders.house import House
from tests.builders.records import all_good, proof, server, write_samples


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(Path(__file__).resolve().parents[4] / "templates")
    write_samples(tmp_path)
    found = House(tmp_path, {**all_good(), REMEDY_NOTE: proof()}, server())
    found.edges = (("check-gpu", "install"), ("install", "serve"), ("serve", "bench"), ("bench", "report"))
    return found


def test_the_graph_shows_how_each_stage_ended_and_only_edges_between_them(house: House) -> None:
    house.results["install"] = Failure(kind="k", message="it broke")
    house.results["test-router"] = Failure(kind="blocked", message="needs serve, which failed")
    house.results["measure-vram"] = None
    text = house.text()
    block = text.split("```mermaid\n")[1].split("\n```")[0].splitlines()
    assert block[0] == "flowchart LR"
    assert '    check-gpu["check-gpu<br/>ok, 12.3 s"]:::ok' in block
    assert '    install["install<br/>failed, 12.3 s"]:::failed' in block
    assert '    test-router["test-router<br/>skipped, 12.3 s"]:::skipped' in block
    assert '    measure-vram["measure-vram<br/>never ran"]:::never' in block
    assert [line.strip() for line in block if "-->" in line] == ["check-gpu --> install", "install --> serve", "serve --> bench"]
    assert {line.split()[1] for line in block if "classDef" in line} == set(CLASSES)


def test_the_graph_of_nothing_is_a_graph() -> None:
    assert diagram([], [], ENGLISH) == ["flowchart LR"]
