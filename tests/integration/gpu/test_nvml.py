"""check-gpu with the real pynvml on a stand-in for the driver's library: what it sees, and each trouble with its fix."""

import os
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.commands.words import machine_lines
from pipeline.config.schema import InstallConfig
from pipeline.errors import InstallError
from pipeline.measure.units import MIB
from pipeline.stages.check_gpu import Machine
from pipeline.stages.install import choose_set
from pipeline.vllm.sets import ON_GPU
from tests.builders.project import Project
from tests.fakes.nvml import LIBRARY, RTX_4050, SYSTEM, FakeNvml, look

TWO = f"{SYSTEM}device uuid=GPU-a1b2 name=Small total=4096 cc=8.9\ndevice uuid=GPU-a1c3 name=Large total=8192 cc=8.6\n"
MIG = (
    f"{SYSTEM}device uuid=GPU-a100 name=A100 total=40960 used=99 cc=8.0 mig=1\n"
    "instance uuid=MIG-11 name=A100_MIG_1g.5gb total=4864 used=13 reserved=4\n"
    "instance uuid=MIG-22 name=A100_MIG_2g.10gb total=9856 used=26 reserved=4\n"
)


def facts(machine: Machine) -> str:
    return "\n".join(f"{caution.fact} -> {caution.fix}" for caution in machine.cautions)


def uuids(machine: Machine) -> list[str]:
    return [gpu.uuid for gpu in machine.gpus]


def test_a_device_is_shown_whole(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM + RTX_4050)
    (gpu,) = machine.gpus
    assert machine.driver is not None
    assert (machine.driver.version, machine.driver.cuda) == ("580.65.06", "13.0")
    assert (gpu.index, gpu.uuid, gpu.name, gpu.compute_capability) == (0, "GPU-a1b2", "RTX 4050", "8.9")
    assert (gpu.total_mib, gpu.free_mib, gpu.reserved_mib, gpu.taken_mib) == (6141, 5741, 300, 100)
    assert (gpu.display, gpu.mig, gpu.listed, gpu.processes) == (False, None, True, [])
    assert (machine.profile, machine.reason, machine.cautions) == ("large", "", [])


@pytest.mark.parametrize("code", [3, 13, 25])
def test_without_the_newer_memory_function_the_older_is_asked(nvml: FakeNvml, code: int) -> None:
    (gpu,) = nvml.check_gpu(f"{SYSTEM}{RTX_4050}error fn=nvmlDeviceGetMemoryInfo_v2 code={code}\n").gpus
    assert (gpu.total_mib, gpu.free_mib, gpu.reserved_mib, gpu.taken_mib) == (6141, 5741, None, 400)


def test_an_old_driver_that_lacks_the_newer_functions_is_read_all_the_same(old_nvml: FakeNvml) -> None:
    machine = old_nvml.check_gpu(f"driver 470.82.01\ncuda 11040\n{RTX_4050}process pid={os.getpid()} used=50\n")
    (gpu,) = machine.gpus
    assert machine.driver is not None
    assert machine.driver.cuda == "11.4"
    assert (gpu.reserved_mib, gpu.mig, gpu.listed) == (None, None, True)
    assert [(process.pid, process.used_mib) for process in gpu.processes] == [(os.getpid(), 50)]


def test_a_display_and_who_takes_memory_are_told(nvml: FakeNvml) -> None:
    lit = RTX_4050.replace("used=100", "used=812 display=1")
    machine = nvml.check_gpu(f"{SYSTEM}{lit}process pid={os.getpid()} used=350 kind=G\nprocess pid=4194304 used=120\n")
    assert "GPU 0: 812 of 6141 MiB are taken; it drives a display -> close what you do not need; let the display use" in facts(machine)
    told = "\n".join(machine_lines(machine)) + "\n"
    assert "5029 of 6141 MiB free (300 kept by the driver)" in told
    assert f"used by  pid {os.getpid()} (" in told
    assert "): 350 MiB\n" in told
    assert "pid 4194304 (?): 120 MiB\n" in told
    assert "caution    GPU 0: 812 of 6141 MiB are taken; it drives a display\n  → close what you do not need" in told


def test_memory_taken_without_a_display_is_told(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM + RTX_4050.replace("used=100", "used=2000"))
    assert facts(machine) == "GPU 0: 2000 of 6141 MiB are taken -> close what you do not need"


@pytest.mark.parametrize(
    "lines",
    [
        "process pid=7 used=-\n",
        "error fn=nvmlDeviceGetComputeRunningProcesses_v3 code=3\nerror fn=nvmlDeviceGetGraphicsRunningProcesses_v3 code=3\n",
        "error fn=nvmlDeviceGetComputeRunningProcesses_v3 code=4\nerror fn=nvmlDeviceGetGraphicsRunningProcesses_v3 code=999\n",
    ],
    ids=["not told", "not supported", "no permission"],
)
def test_memory_per_process_that_is_not_told_is_a_caution(nvml: FakeNvml, lines: str) -> None:
    machine = nvml.check_gpu(SYSTEM + RTX_4050 + lines)
    assert "GPU 0: the driver does not tell which process uses how much memory -> start nothing else on it" in facts(machine)
    assert machine.profile == "large"


# Trouble at the start: each with its own words and fix.

AT_START = [
    ("error fn=nvmlInitWithFlags code=9\n", "installed but not loaded", "sudo modprobe nvidia"),
    ("error fn=nvmlInitWithFlags code=18\n", "have different versions", "restart the machine to finish the driver update"),
    ("error fn=nvmlInitWithFlags code=4\n", "no permission to use the NVIDIA devices", "`video` and `render`"),
    ("error fn=nvmlInitWithFlags code=13\n", "its library lacks a function", "update the NVIDIA driver"),
    ("error fn=nvmlInitWithFlags code=777\n", "NVML: A code that this version does not know", "nvidia-smi"),
    ("error fn=nvmlSystemGetDriverVersion code=10\n", "does not answer in time", "dmesg"),
    ("error fn=nvmlDeviceGetCount_v2 code=999\n", "reports an unknown error", "start it anew"),
    ("error fn=nvmlDeviceGetHandleByIndex_v2 code=15\n", "fallen off the bus", "restart the machine"),
    ("error fn=nvmlDeviceGetHandleByIndex_v2 code=13\n", "its library lacks a function", "update the NVIDIA driver"),
    ("error fn=nvmlDeviceGetMemoryInfo_v2 code=15\n", "fallen off the bus", "restart the machine"),
    ("error fn=nvmlDeviceGetMemoryInfo_v2 code=16\n", "must be reset", "nvidia-smi --gpu-reset"),
    ("error fn=nvmlDeviceGetUUID code=4\n", "no permission to use the NVIDIA devices", "`video` and `render`"),
]


@pytest.mark.parametrize(("lines", "reason", "fix"), AT_START, ids=[lines.split("fn=")[1].strip() for lines, _, _ in AT_START])
def test_trouble_has_its_own_words_and_fix(nvml: FakeNvml, lines: str, reason: str, fix: str) -> None:
    machine = nvml.check_gpu(SYSTEM + RTX_4050 + lines)
    assert (machine.gpus, machine.profile) == ([], "cpu")
    assert reason in machine.reason
    assert fix in machine.fix


def test_a_driver_that_hangs_is_told(nvml: FakeNvml) -> None:
    nvml.play(f"{SYSTEM}{RTX_4050}hang fn=nvmlInitWithFlags\n")
    machine = look(nvml.environment(), read_s=0.2)
    assert (machine.gpus, machine.profile) == ([], "cpu")
    assert machine.reason == "the NVIDIA driver does not answer in time"
    assert "restart the machine when `nvidia-smi` hangs too" in machine.fix


def test_no_library_is_told(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_text("no library", encoding="utf-8")  # also on a machine that has one
    machine = look({**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert "libnvidia-ml.so.1 not found: no NVIDIA driver is installed" in machine.reason
    assert "install the NVIDIA driver" in machine.fix


def test_a_driver_without_devices_is_told(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM)
    assert (machine.driver is None, "shows no device" in machine.reason, "lspci" in machine.fix) == (False, True, True)


def test_one_lost_device_of_two_leaves_the_other(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(f"{TWO}error fn=nvmlDeviceGetHandleByIndex_v2 code=15 device=0\n")
    assert (uuids(machine), machine.reason) == (["GPU-a1c3"], "")
    assert facts(machine) == (
        "GPU 0: the GPU has fallen off the bus -> restart the machine; if it comes back, look at power and seating (`dmesg | grep -i xid`)"
    )


# CUDA_VISIBLE_DEVICES.


@pytest.mark.parametrize(
    ("script", "visible", "expected"),
    [
        (TWO, None, ["GPU-a1b2", "GPU-a1c3"]),
        (TWO, "1", ["GPU-a1c3"]),
        (TWO, "1,0", ["GPU-a1c3", "GPU-a1b2"]),
        (TWO, "GPU-a1c", ["GPU-a1c3"]),
        (TWO, " GPU-a1c3 , 0", ["GPU-a1c3", "GPU-a1b2"]),
        (TWO, "0,-1,1", ["GPU-a1b2"]),
        (TWO, "1,1", ["GPU-a1c3"]),
        (MIG, None, ["MIG-11"]),
        (MIG, "0", ["MIG-11"]),
        (MIG, "MIG-22", ["MIG-22"]),
        (MIG, "MIG-2", ["MIG-22"]),
    ],
)
def test_cudas_variable_chooses(nvml: FakeNvml, script: str, visible: str | None, expected: list[str]) -> None:
    assert uuids(nvml.check_gpu(script, visible)) == expected


@pytest.mark.parametrize(
    ("visible", "reason"),
    [
        ("", "CUDA_VISIBLE_DEVICES='' hides every device"),
        ("-1", "CUDA_VISIBLE_DEVICES='-1' hides every device"),
        ("7", "CUDA_VISIBLE_DEVICES=7: 7 is no device here"),
        ("GPU-a1", "CUDA_VISIBLE_DEVICES=GPU-a1: GPU-a1 is no device here"),  # the beginning of both
        ("MIG-11", "CUDA_VISIBLE_DEVICES=MIG-11: MIG-11 is no device here"),
        (",0", "CUDA_VISIBLE_DEVICES=,0: nothing is no device here"),
    ],
)
def test_a_variable_that_leaves_no_device_is_told(nvml: FakeNvml, visible: str, reason: str) -> None:
    machine = nvml.check_gpu(TWO, visible)
    assert (machine.gpus, machine.profile) == ([], "cpu")
    assert machine.reason.startswith(reason)
    assert machine.fix == "`nvidia-smi -L` lists the devices; unset CUDA_VISIBLE_DEVICES to use all"


def test_an_entry_that_names_nothing_is_told_beside_the_devices_before_it(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(TWO, "1,5,0")
    assert uuids(machine) == ["GPU-a1c3"]
    assert "CUDA_VISIBLE_DEVICES=1,5,0: 5 is no device here, and what stands after it counts for nothing -> `nvidia-smi -L`" in facts(
        machine
    )


@pytest.mark.parametrize(
    ("script", "outside", "of_server", "expected"),
    [
        (TWO, None, "1", ["GPU-a1c3"]),
        (TWO, "0", "1", ["GPU-a1c3"]),  # serve.env is what the server gets
        (TWO, "0", "GPU-a1c3,GPU-a1b2", ["GPU-a1c3", "GPU-a1b2"]),
        (MIG, None, "MIG-22", ["MIG-22"]),
        (TWO, "1", "", ["GPU-a1c3"]),
    ],
)
def test_the_servers_own_variable_chooses_before_ours(
    nvml: FakeNvml, script: str, outside: str | None, of_server: str, expected: list[str]
) -> None:
    assert uuids(nvml.check_gpu(script, outside, of_server)) == expected


def two_on(tmp_path: Path, nvml: FakeNvml) -> tuple[Project, dict[str, str]]:
    """Return a project, and the environment in which two devices are there."""
    nvml.play(TWO)
    wanted = ("LD_LIBRARY_PATH", "NVML_SCRIPT")
    return Project(tmp_path / "project"), {name: nvml.environment()[name] for name in wanted}


def test_settings_choose_the_device_of_check_gpu_and_of_plan(tmp_path: Path, nvml: FakeNvml) -> None:
    project, here = two_on(tmp_path, nvml)
    assert "GPU 0 " in project.invoke("check-gpu", **here).stdout
    chosen = project.invoke("check-gpu", "--set", "serve.env.CUDA_VISIBLE_DEVICES=1", **here).stdout
    assert ("GPU 0 " in chosen, "GPU 1 " in chosen) == (False, True)
    planned = project.invoke("plan", "--set", "serve.env.CUDA_VISIBLE_DEVICES=GPU-a1c3", HF_HUB_OFFLINE="1", **here).stdout
    assert planned.startswith("planned for Large with 8192 MiB")


def test_a_profile_that_is_chosen_by_the_devices_cannot_choose_them(tmp_path: Path, nvml: FakeNvml) -> None:
    project, here = two_on(tmp_path, nvml)
    path = project.root / "config.yaml"
    shipped, profile = path.read_text(encoding="utf-8"), "rtx4050-6gb"
    values = yaml.safe_load(shipped)
    values["profiles"][profile].setdefault("serve", {})["env"] = {"CUDA_VISIBLE_DEVICES": 1}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    refused = project.invoke("check-gpu", **here)
    assert refused.returncode == 2
    assert f"profile {profile}: serve.env.CUDA_VISIBLE_DEVICES cannot stand in a profile that is chosen by the devices" in refused.stderr
    assert f"--profile {profile}" in refused.stderr
    assert "GPU 1 " in project.invoke("check-gpu", "--profile", profile, **here).stdout


def test_unlike_devices_are_told_with_the_way_to_the_largest(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(TWO)
    assert "2 unlike devices are visible: vLLM takes the first, Small, and profile and plan count on that -> set CUDA" in facts(machine)
    assert "CUDA_VISIBLE_DEVICES=GPU-a1c3 (environment or serve.env) for the largest, Large" in facts(machine)
    assert nvml.check_gpu(TWO, "GPU-a1c3").cautions == []
    assert nvml.check_gpu(TWO.replace("Small total=4096", "Large total=8192")).cautions == []


# MIG.


def test_an_instance_stands_for_its_board_and_is_told(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(MIG)
    (gpu,) = machine.gpus
    assert (gpu.name, gpu.total_mib, gpu.taken_mib, gpu.compute_capability, gpu.mig) == ("A100 MIG 1g.5gb", 4864, 13, "8.0", True)
    assert machine.profile == "small"
    told = "one instance of GPU 0, which is in MIG mode, of which CUDA sees one -> name its GPU, CUDA_VISIBLE_DEVICES=0, for the first one"
    assert told in facts(machine)


def test_mig_that_is_off_is_no_matter(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM + RTX_4050.replace("cc=8.9", "cc=8.9 mig=0"))
    assert (machine.gpus[0].mig, machine.cautions) == (False, [])


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetMemoryInfo_v2"]
)
def test_mig_without_permission_is_told(nvml: FakeNvml, function: str) -> None:
    machine = nvml.check_gpu(f"{MIG}error fn={function} code=4\n")
    assert machine.reason == "the GPU is in MIG mode, and its instances are shown to the administrator only"
    assert "ask for an instance of your own, or turn MIG off" in machine.fix


def test_mig_without_an_instance_is_told(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu("".join(line for line in MIG.splitlines(keepends=True) if not line.startswith("instance")))
    assert machine.reason == "the GPU is in MIG mode and has no instance to compute on"
    assert "nvidia-smi mig -cgi 0 -C" in machine.fix


# Cards that nobody here has: by what their drivers say.

V100 = "device uuid=GPU-v name=Tesla_V100-PCIE-32GB total=32768 cc=7.0\n"
NO_MEMORY = "error fn=nvmlDeviceGetMemoryInfo_v2 code=3\nerror fn=nvmlDeviceGetMemoryInfo code=3\n"
GB10 = f"{SYSTEM}device uuid=GPU-g name=NVIDIA_GB10 cc=12.1\n{NO_MEMORY}"


def test_a_v100_gets_the_set_that_has_kernels_for_it(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM + V100)
    assert choose_set("auto", machine)[0] == OLDEST
    assert f"needs compute capability 7.5, and Tesla V100-PCIE-32GB has 7.0: so vLLM {OLDEST.vllm} -> nothing newer runs on it" in facts(
        machine
    )
    assert "FlashAttention needs 8.0 -> expect slower answers to long prompts: vLLM takes Triton's attention" in facts(machine)


def test_a_pascal_card_is_told_that_nothing_runs(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(SYSTEM + V100.replace("Tesla_V100-PCIE-32GB", "GTX_1080").replace("7.0", "6.1"))
    assert (machine.profile, choose_set("auto", machine)[0].name) == ("cpu", "vllm-cpu")
    assert len(machine.cautions) == 1, "what a vLLM that does not run would lack is no matter"
    assert machine.profile_reason == "GTX 1080: no vLLM set has kernels for compute capability 6.1: on x86_64 they begin at 7.0"


def test_memory_that_the_processor_shares_is_the_machines(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(GB10)
    (gpu,) = machine.gpus
    assert gpu.unified
    assert gpu.total_mib == pytest.approx(psutil.virtual_memory().total / MIB)
    assert 0 < gpu.free_mib < gpu.total_mib
    assert machine.profile == ("large" if gpu.plannable_mib >= 5600 else "small" if gpu.plannable_mib >= 3600 else "cpu")
    assert "GPU 0: NVIDIA GB10 has no memory of its own, and a server gets at most 75% of the machine's" in facts(machine)


def test_a_device_whose_memory_fails_otherwise_is_not_the_machines(nvml: FakeNvml) -> None:
    machine = nvml.check_gpu(GB10.replace("code=3", "code=15"))
    assert (machine.gpus, machine.profile) == ([], "cpu")


# Driver and vLLM: what check-gpu says and what install takes follow one table.

NEWEST, OLDEST = ON_GPU[0], ON_GPU[-1]


@pytest.mark.parametrize(
    ("driver", "set_name", "says"),
    [
        ("450.80.02", None, "no vLLM is known to run on NVIDIA driver 450.80.02"),
        ("525.60.13", OLDEST.name, f"NVIDIA driver 525.60.13 runs CUDA 12, so vLLM {OLDEST.vllm} and not {NEWEST.vllm}"),
        ("550.54.14", OLDEST.name, f"NVIDIA driver 550.54.14 runs CUDA 12, so vLLM {OLDEST.vllm} and not {NEWEST.vllm}"),
        ("580.65.06", NEWEST.name, ""),
        ("999.1", NEWEST.name, ""),
        ("unreadable", None, "no vLLM is known to run on NVIDIA driver unreadable"),
    ],
)
def test_check_gpu_and_install_follow_the_table(nvml: FakeNvml, driver: str, set_name: str | None, says: str) -> None:
    machine = nvml.check_gpu(SYSTEM.replace("580.65.06", driver) + RTX_4050)
    if set_name is None:
        with pytest.raises(InstallError) as refused:
            choose_set(InstallConfig().set, machine)
        assert facts(machine) == f"{refused.value.message} -> {refused.value.hint}"
        assert refused.value.hint == f"update the driver to {NEWEST.min_driver} or newer ({OLDEST.min_driver} at least)"
        assert refused.value.message == says
    else:
        assert choose_set(InstallConfig().set, machine)[0].name == set_name
        assert facts(machine).partition(" -> ")[0] == says
        if says:
            assert machine.cautions[0].fix == f"update the driver to {NEWEST.min_driver} or newer, if you want the newer vLLM"
