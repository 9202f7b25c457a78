"""A soak beside the memory section."""

from pathlib import Path

import pytest

from pipeline.engine.record import SOAK_NOTE, Failure
from pipeline.stages.test_determinism import REMEDY_NOTE
from tests.builders.house import House
from tests.builders.records import all_good, proof, server, soak, write_samples


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "templates").symlink_to(Path(__file__).resolve().parents[4] / "templates")
    write_samples(tmp_path)
    found = House(tmp_path, {**all_good(), REMEDY_NOTE: proof()}, server())
    found.edges = (("check-gpu", "install"), ("install", "serve"), ("serve", "bench"), ("bench", "report"))
    return found


def test_a_soak_of_the_same_launch_is_a_table_of_test_3(house: House) -> None:
    house.results[SOAK_NOTE] = soak("L1")
    part = house.text().split("### Test 3")[1].split("## Model")[0]
    assert "Soak, interrupted: 1.5 of 2 h of load, 900 requests, 2 failed (`artifacts/soak.json`)[^load][^stable]:" in part
    assert "| host memory (RSS), drift under load (Theil–Sen) | 1.26 MiB/h (n = 900; 95 %: 0.9 to 1.6) |" in part
    assert "| soak |" not in house.text(), "it is no stage"
    assert house.report().exit_code == 0


def test_a_soak_of_another_launch_is_told_with_its_launch(house: House) -> None:
    house.results[SOAK_NOTE] = soak("L9")
    text = house.text()
    assert "- A soak of 1.5 of 2 h is on record (`artifacts/soak.json`), of another launch: L9." in text
    assert "Soak, interrupted" not in text


def test_a_soak_changes_no_verdict_whatever_it_says(house: House) -> None:
    house.results[SOAK_NOTE] = Failure(kind="server", message="it died")
    assert house.report().exit_code == 0
