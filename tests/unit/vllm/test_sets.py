"""Which vLLM for which driver."""

from pathlib import Path

import pytest

from pipeline.vllm.sets import CPU_SET, SETS, VllmSet, set_for_driver, set_named

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements"


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("580.65.06", "vllm-cuda13"),
        ("580", "vllm-cuda13"),
        ("591.2", "vllm-cuda13"),
        ("1000.1", "vllm-cuda13"),
        ("579.99", "vllm-cuda12"),
        ("535.183.01", "vllm-cuda12"),
        ("525.60.13", "vllm-cuda12"),
    ],
)
def test_driver_decides_the_set(driver: str, name: str) -> None:
    chosen = set_for_driver(driver)
    assert chosen is not None
    assert chosen.name == name


@pytest.mark.parametrize("driver", ["524.99", "470.82.01", "99", "0"])
def test_too_old_driver_has_no_set(driver: str) -> None:
    assert set_for_driver(driver) is None


@pytest.mark.parametrize("driver", ["", "unknown", "v580", "-580", "N/A", ".580"])
def test_unreadable_driver_version_has_no_set(driver: str) -> None:
    assert set_for_driver(driver) is None


def test_no_driver_ever_gives_the_cpu_set() -> None:
    assert CPU_SET not in {set_for_driver(str(major)) for major in range(1000)}
    assert (CPU_SET.name, CPU_SET.min_driver) == ("vllm-cpu", 0)


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry.name)
def test_sets_are_found_by_name(entry: VllmSet) -> None:
    assert set_named(entry.name) is entry


@pytest.mark.parametrize("name", ["", "auto", "vllm", "VLLM-CPU"])
def test_unknown_name_is_no_set(name: str) -> None:
    assert set_named(name) is None


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry.name)
def test_requirements_pin_the_versions_that_the_table_states(entry: VllmSet) -> None:
    lines = (REQUIREMENTS / f"{entry.name}.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split()[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
    assert f"{entry.distribution}=={entry.vllm}" in pins
    assert f"torch=={entry.torch}" in pins
