"""The table of cards says what check-gpu and install do."""

import re
from pathlib import Path

import pytest

from pipeline.config.layers import load_layers
from pipeline.errors import InstallError
from pipeline.gpu.nvml import Driver, Reading
from pipeline.stages.check_gpu import choose_profile
from pipeline.stages.install import choose_set
from tests.builders.machines import gpu, host, machine

ROOT = Path(__file__).resolve().parents[3]
TABLE = re.search(r"<!-- cards -->\n(.*?)<!-- /cards -->", (ROOT / "docs" / "reference" / "gpus.md").read_text(encoding="utf-8"), re.DOTALL)
ROWS = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in TABLE[1].splitlines()[2:]] if TABLE else []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[3]}")
def test_a_row_says_what_auto_takes(row: list[str]) -> None:
    name, mib, capability, driver, architecture, set_name, profile, _ = row
    update = {"compute_capability": capability, "unified": "memory shared" in name}
    device = gpu(float(mib), name).model_copy(update=update)
    reading = Reading(Driver(version=driver, cuda="12.4"), [device], None)
    taken, _reason = choose_profile(load_layers(ROOT / "config.yaml", {}).config(None).gpu.auto, reading, architecture)
    assert taken == profile
    found = machine(driver, taken).model_copy(update={"gpus": [device], "host": host(machine=architecture)})
    if set_name == "none":
        with pytest.raises(InstallError):
            choose_set("auto", found)
    else:
        assert choose_set("auto", found)[0].name == set_name


def test_the_table_is_read() -> None:
    assert len(ROWS) > 10
