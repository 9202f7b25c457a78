"""Everything for real where there is a GPU: what is seen, planned, measured, and left. The tests build on one another.

E2E_GPU_SETS may hold settings as for --set, separated by spaces, for a machine on which the profile's model or vLLM cannot be
had: `install.python=/a/venv/bin/python model.source=wheel model.name=SmolLM2-135M-Instruct`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from pipeline.gpu import nvml
from pipeline.gpu.visible import VISIBLE_DEVICES
from pipeline.vllm.plan import PEAK_ERROR_MIB
from tests.e2e.conftest import Project, fresh_project

RESIDUAL_MIB = 64.0
SETS = [word for each in os.environ.get("E2E_GPU_SETS", "").split() for word in ("--set", each)]


@pytest.fixture(scope="module")
def gpu() -> nvml.Gpu:
    """Return the first device; skip where there is none, with the reason."""
    seen = nvml.read()
    if seen.trouble is not None:
        pytest.skip(f"no usable GPU: {seen.trouble.reason}")
    return seen.gpus[0]


@pytest.fixture(scope="module")
def project(gpu: nvml.Gpu) -> Iterator[Project]:
    made = fresh_project("e2e-gpu")
    yield made
    made.run("stop")
    left = made.processes()
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"


def test_check_gpu_sees_what_nvidia_smi_sees(project: Project, gpu: nvml.Gpu) -> None:
    code, output = project.run("check-gpu", *SETS)
    assert code == 0, output
    seen = project.record("check-gpu")["data"]
    told = shutil.which("nvidia-smi")
    if told is None:
        pytest.skip("no nvidia-smi to compare with")
    command = [told, f"--id={gpu.uuid}", "--query-gpu=uuid,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
    uuid, total, driver, capability = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    first = seen["gpus"][0]
    assert (first["uuid"], first["compute_capability"], seen["driver"]["version"]) == (uuid, capability, driver)
    assert first["total_mib"] == pytest.approx(float(total), abs=1)


def test_the_servers_variable_chooses_the_device_by_index_and_uuid(project: Project, gpu: nvml.Gpu) -> None:
    for name in (gpu.uuid, str(gpu.index)):
        code, output = project.run("check-gpu", *SETS, "--set", f"serve.env.{VISIBLE_DEVICES}='{name}'")
        assert code == 0, output
        assert [each["uuid"] for each in project.record("check-gpu")["data"]["gpus"]] == [gpu.uuid]
    code, output = project.run("check-gpu", *SETS, "--set", f"serve.env.{VISIBLE_DEVICES}=GPU-none")
    assert f"{VISIBLE_DEVICES}=GPU-none: GPU-none is no device here" in output


def test_plan_is_for_this_device(project: Project, gpu: nvml.Gpu) -> None:
    code, output = project.run("plan", *SETS)
    assert code in (0, 1), output
    assert f"planned for {gpu.name} with {gpu.total_mib:.0f} MiB" in output


def test_all_measures_the_gpu(project: Project, gpu: nvml.Gpu) -> None:
    code, output = project.run("all", *SETS)
    assert code in (0, 1), output
    server, memory = project.record("serve")["data"], project.record("measure-vram")["data"]
    assert server["real"]
    assert server["device"] == gpu.name
    figures = memory["figures"]
    assert memory["method"].startswith("NVML, ")
    assert 0 < figures["vram_steady_mib"]["value"] <= figures["vram_peak_mib"]["value"] <= gpu.total_mib
    assert memory["gpu_errors"] == {}
    assert memory["baseline_gpu_mib"] is not None
    assert figures["gpu_temperature_c"]["value"] is not None
    if server["plan"] is not None:
        planned = server["plan"]["budget_mib"] + server["plan"]["context_mib"] + server["plan"]["graphs_mib"]
        assert abs(planned - figures["vram_peak_mib"]["value"]) < 4 * PEAK_ERROR_MIB, "the estimate is off by far more than it says"
    assert all(value is not None for key, value in memory["breakdown"].items() if key in ("weights_mib", "kv_cache_mib"))


def test_nothing_is_left_on_the_gpu(project: Project) -> None:
    assert project.processes() == []
    closing = project.record("stop")["data"]
    before, after = closing["gpu_used_before_mib"], closing["gpu_used_after_mib"]
    assert closing["killed"] == []
    assert sum(after) - sum(before) <= RESIDUAL_MIB
