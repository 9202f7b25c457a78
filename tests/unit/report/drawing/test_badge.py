"""The badge."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from pipeline.publish.document import images
from pipeline.report.drawing.badge import badge
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


@pytest.mark.parametrize(
    ("verdict", "colour"), [("PASS", "#1a7f37"), ("TRIAL", "#0969da"), ("NOT PASSED", "#cf222e"), ("NOT MEASURED", "#9a6700")]
)
def test_the_badge_says_the_verdict_in_words_and_colour(verdict: str, colour: str) -> None:
    svg = badge("PASS <9/9>", verdict)
    root = ET.fromstring(svg)
    assert colour in svg
    assert root.attrib["aria-label"] == "vllm-poc: PASS <9/9>"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["vllm-poc", "PASS <9/9>"]
    assert svg == badge("PASS <9/9>", verdict)
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_the_badge_stands_above_the_verdict(house: House) -> None:
    lines = house.text().splitlines()
    assert lines[2] == "![vllm-poc: PASS 2/2](report/verdict.svg)"
    assert lines[4] == "> [!TIP]"
    assert images(house.text())[0] == "report/verdict.svg"
