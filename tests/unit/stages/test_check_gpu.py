"""The machine, its GPU trouble, and the profile that fits."""

import sys
from pathlib import Path

import pynvml
import pytest

from pipeline import packages
from pipeline.config.schema import CUDA_DEVICES, AutoProfile, GpuConfig
from pipeline.contexts import VisibleDevices
from pipeline.errors import MachineError
from pipeline.gpu import holders, nvml
from pipeline.gpu.nvml import NO_DEVICE, TROUBLES, Driver, Gpu, Reading, Trouble, cuda_version, trouble_of
from pipeline.gpu.visible import VISIBLE_DEVICES, text
from pipeline.stages import check_gpu
from pipeline.vllm import compilers
from pipeline.vllm.cautions import device_cautions
from pipeline.vllm.compilers import C_COMPILER
from pipeline.vllm.limits import LIMITS, Limit
from tests.builders.machines import gpu, host

CHOICES = (AutoProfile(min_total_mib=3600, profile="small"), AutoProfile(min_total_mib=5600, profile="large"))
NO_DRIVER = Reading(None, [], Trouble("no driver", "install it"))


def reading(*gpus: Gpu) -> Reading:
    return Reading(Driver(version="580.1", cuda="13.0"), list(gpus), None)


@pytest.mark.parametrize(
    ("total_mib", "profile"),
    [(24576, "large"), (6141, "large"), (5600, "large"), (5599.9, "small"), (3600, "small"), (3599, "cpu"), (0, "cpu")],
)
def test_profile_is_the_largest_whose_minimum_is_met(total_mib: float, profile: str) -> None:
    assert check_gpu.choose_profile(CHOICES, reading(gpu(total_mib)), "x86_64")[0] == profile
    assert check_gpu.choose_profile(CHOICES[::-1], reading(gpu(total_mib)), "x86_64")[0] == profile


def test_the_first_device_counts_because_vllm_takes_it() -> None:
    small, large = gpu(4000, "small one"), gpu(6000, "large one", 1)
    assert check_gpu.choose_profile(CHOICES, reading(small, large), "x86_64") == ("small", "small one with 4000 MiB")
    assert check_gpu.choose_profile(CHOICES, reading(large, small), "x86_64") == ("large", "large one with 6000 MiB")


def test_a_profile_whose_model_is_not_for_business_says_so() -> None:
    choices = (AutoProfile(min_total_mib=3600, profile="small", non_commercial=True), CHOICES[1])
    assert check_gpu.choose_profile(choices, reading(gpu(4000, "tiny")), "x86_64") == (
        "small",
        "tiny with 4000 MiB; its model's licence forbids commercial use",
    )
    assert check_gpu.choose_profile(choices, reading(gpu(6141, "big")), "x86_64") == ("large", "big with 6141 MiB")


def test_the_variable_has_one_name() -> None:
    assert CUDA_DEVICES == VISIBLE_DEVICES


def test_trouble_means_cpu_and_says_so() -> None:
    assert check_gpu.choose_profile(CHOICES, NO_DRIVER, "x86_64") == ("cpu", "no usable GPU: no driver")


def test_too_small_gpu_is_told() -> None:
    profile, reason = check_gpu.choose_profile(CHOICES, reading(gpu(2000, "tiny")), "x86_64")
    assert profile == "cpu"
    assert reason.startswith("tiny with 2000 MiB is smaller")


def test_no_choices_mean_cpu() -> None:
    assert check_gpu.choose_profile((), reading(gpu()), "x86_64")[0] == "cpu"


def look(monkeypatch: pytest.MonkeyPatch, seen: Reading, *, required: bool = False) -> check_gpu.Machine:
    monkeypatch.setattr(nvml, "read", lambda _chosen: seen)
    return check_gpu.check_gpu(GpuConfig(required=required, auto=CHOICES), VisibleDevices())


def test_required_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="no usable GPU: no driver") as caught:
        look(monkeypatch, NO_DRIVER, required=True)
    assert caught.value.hint == "install it; or set gpu.required: false"


def test_required_gpu_that_is_there_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = look(monkeypatch, reading(gpu()), required=True)
    assert (made.profile, made.reason, made.fix) == ("large", "", "")


def test_gpu_that_is_not_required_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    made = look(monkeypatch, NO_DRIVER)
    assert (made.profile, made.reason, made.fix, made.gpus) == ("cpu", "no driver", "install it", [])


def test_free_memory_is_no_part_of_the_machines_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = look(monkeypatch, reading(gpu()))
    after = look(monkeypatch, reading(gpu().model_copy(update={"free_mib": 1.0})))
    lit = gpu().model_copy(update={"display": True, "reserved_mib": 300.0, "listed": False})
    other = look(monkeypatch, reading(gpu(8000)))
    assert before.identity() == after.identity() == look(monkeypatch, reading(lit)).identity() != other.identity()


CODES = {
    "NVMLError_LibraryNotFound": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    "NVMLError_DriverNotLoaded": pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    "NVMLError_LibRmVersionMismatch": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    "NVMLError_NoPermission": pynvml.NVML_ERROR_NO_PERMISSION,
    "NVMLError_GpuIsLost": pynvml.NVML_ERROR_GPU_IS_LOST,
    "NVMLError_ResetRequired": pynvml.NVML_ERROR_RESET_REQUIRED,
    "NVMLError_FunctionNotFound": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    "NVMLError_Timeout": pynvml.NVML_ERROR_TIMEOUT,
    "NVMLError_Unknown": pynvml.NVML_ERROR_UNKNOWN,
}


@pytest.mark.parametrize("name", sorted(TROUBLES))
def test_error_of_pynvml_gets_its_trouble(name: str) -> None:
    assert trouble_of(pynvml.NVMLError(CODES[name])) is TROUBLES[name]
    assert trouble_of(getattr(pynvml, name)()) is TROUBLES[name]


def test_other_errors_are_told_in_nvmls_words() -> None:
    trouble = trouble_of(pynvml.NVMLError(pynvml.NVML_ERROR_IRQ_ISSUE))
    assert trouble.reason == "NVML: Interrupt Request Issue"
    assert "nvidia-smi" in trouble.fix


@pytest.mark.parametrize("name", sorted(TROUBLES))
def test_error_at_the_start_is_a_reading_not_an_exception(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(CODES[name])

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert nvml.read() == Reading(None, [], TROUBLES[name])
    assert nvml.device_used_mib() is None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library that starts and tells its driver; return what was called."""
    called: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: called.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: called.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: b"580.65.06")
    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: 13000)
    return called


def test_driver_without_device_is_a_trouble(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    assert nvml.read() == Reading(Driver(version="580.65.06", cuda="13.0"), [], NO_DEVICE)
    assert started == ["init", "shutdown"]


def test_device_lost_while_it_is_read_is_a_trouble(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    def lost(_index: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    assert nvml.read().trouble is TROUBLES["NVMLError_GpuIsLost"]
    assert started == ["init", "shutdown"]


@pytest.mark.parametrize(("number", "version"), [(12040, "12.4"), (13000, "13.0"), (11080, "11.8"), (12120, "12.12")])
def test_cuda_version(number: int, version: str) -> None:
    assert cuda_version(number) == version


def test_text_of_old_bindings_is_bytes() -> None:
    assert text(b"RTX") == text("RTX") == "RTX"


class OldDriver:
    """pynvml on a driver that has none but the older function, or not even that."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVMLLibraryMismatchError = type("NVMLLibraryMismatchError", (Exception,), {})

    def __init__(self, older: list[int] | None) -> None:
        self.older = older

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[int]:
        raise self.NVMLLibraryMismatchError("use a versioned function")

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: object) -> list[int]:
        if self.older is None:
            raise self.NVMLError("function not found")
        return self.older


@pytest.mark.parametrize(("older", "seen"), [([7, 8], [7, 8]), ([], []), (None, None)])
def test_an_old_driver_is_asked_by_the_function_that_it_has(older: list[int] | None, seen: list[int] | None) -> None:
    assert holders.running(OldDriver(older), None, "Compute") == seen


HERE = host()


@pytest.mark.parametrize(
    ("capability", "short"),
    [
        ("7.0", ["bfloat16", "VLLM_BATCH_INVARIANT=1", "AWQ", "FlashAttention", "Marlin kernels for MXFP4"]),
        ("7.5", ["bfloat16", "VLLM_BATCH_INVARIANT=1", "FlashAttention", "Marlin kernels for MXFP4"]),
        ("8.0", []),
        ("8.9", []),
        ("10.0", []),
    ],
)
def test_what_a_device_is_too_old_for_is_told(capability: str, short: list[str]) -> None:
    told = device_cautions(reading(gpu().model_copy(update={"compute_capability": capability})), HERE)
    told = [caution for caution in told if "so vLLM" not in caution.fact]
    assert [caution.fact for caution in told] == [
        f"RTX 4050 has compute capability {capability}, and {limit.what} needs {limit.least[0]}.{limit.least[1]}"
        for limit in LIMITS
        if limit.what in short
    ]
    assert [limit.what for limit in LIMITS if limit.what in short] == short
    assert [caution.fix for caution in told] == [limit.instead for limit in LIMITS if limit.what in short]


def test_on_turing_the_fix_for_bfloat16_is_float16() -> None:
    told = device_cautions(reading(gpu().model_copy(update={"compute_capability": "7.5"})), HERE)
    assert ("leave serve.dtype at auto, which takes float16 there", True) in [
        (caution.fix, "bfloat16 needs 8.0" in caution.fact) for caution in told
    ]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.what)
def test_each_limit_names_its_source(limit: Limit) -> None:
    assert "0.32.0" in limit.source or "0.33.0" in limit.source or "docs.vllm.ai" in limit.source


def test_under_wsl_memory_per_process_is_not_told() -> None:
    pinned, told = device_cautions(reading(gpu()), host().model_copy(update={"wsl": True}))
    assert pinned.fact.startswith("under WSL2 CUDA's pinned memory is off: vLLM 0.33.0 runs without it")
    assert "VLLM_WSL2_ENABLE_PIN_MEMORY=1" in pinned.fix
    assert "nothing" not in told.fix
    assert told.fact == "GPU 0: under WSL2 the driver does not tell which process uses how much memory"
    assert "above its baseline" in told.fix
    assert device_cautions(reading(gpu()), HERE) == []


@pytest.mark.parametrize(("pythons", "cautioned"), [([], False), (["/a/python3.12", "/b/python3.12"], False), (["/a/python3.12"], True)])
def test_missing_python_headers_are_told_where_no_python_that_install_may_take_has_them(
    monkeypatch: pytest.MonkeyPatch, pythons: list[str], cautioned: bool
) -> None:
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(packages, "pythons", lambda _: pythons)
    monkeypatch.setattr(compilers, "has_headers", lambda python, _: python.startswith("/b/"))
    told = list(check_gpu.of_compiler(reading(gpu()), "x86_64"))
    assert [caution.fix for caution in told] == ([C_COMPILER.install] if cautioned else [])
    assert all("Python.h" in caution.fact and "/a/python3.12 has none" in caution.fact for caution in told)


def on(capability: str, driver: str = "580.1", **update: object) -> Reading:
    return Reading(Driver(version=driver, cuda="13.0"), [gpu().model_copy(update={"compute_capability": capability, **update})], None)


def test_volta_gets_the_older_set_a_model_that_is_not_awq_and_the_reason() -> None:
    choices = (AutoProfile(min_total_mib=3600, profile="plain"), AutoProfile(min_total_mib=5600, profile="awq", min_capability="7.5"))
    assert check_gpu.choose_profile(choices, on("7.0"), "x86_64")[0] == "plain"
    assert check_gpu.choose_profile(choices, on("7.5"), "x86_64")[0] == check_gpu.choose_profile(choices, on("10.0"), "x86_64")[0] == "awq"
    told = device_cautions(on("7.0"), HERE)[0]
    assert told.fact == "vLLM 0.33.0 needs compute capability 7.5, and RTX 4050 has 7.0: so vLLM 0.19.1"
    assert "no run on such a card" in told.fix


def test_pascal_is_told_that_nothing_runs_and_gets_the_processor() -> None:
    profile, reason = check_gpu.choose_profile(CHOICES, on("6.1"), "x86_64")
    assert profile == "cpu"
    assert reason == "RTX 4050: no vLLM set has kernels for compute capability 6.1: on x86_64 they begin at 7.0"
    assert device_cautions(on("6.1"), HERE)[0].fix == "nothing to install changes that: use --profile cpu, or a newer GPU"


def test_an_old_driver_on_an_arm_host_is_told_before_the_installation() -> None:
    told = device_cautions(on("8.7", "540.4.0"), host(machine="aarch64"))[0]
    assert told.fact == "no vLLM is known to run on NVIDIA driver 540.4.0 on aarch64"
    assert told.fix == "update the driver to 580 or newer"


def test_memory_shared_with_the_processor_is_named_and_planned_with_in_part() -> None:
    seen = on("12.1", unified=True, total_mib=8000.0)
    assert seen.gpus[0].plannable_mib == 6000
    assert check_gpu.choose_profile(CHOICES, seen, "aarch64")[0] == "large"
    assert check_gpu.choose_profile(CHOICES, on("12.1", unified=True, total_mib=7000.0), "aarch64")[0] == "small"
    (told,) = device_cautions(seen, host(machine="aarch64"))
    assert told.fact == "GPU 0: RTX 4050 has no memory of its own, and a server gets at most 75% of the machine's 8000 MiB"


def test_a_jetson_without_nvml_is_no_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvml, "JETSON", tmp_path / "release")
    error = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert "no NVIDIA driver is installed" in trouble_of(error).reason
    (tmp_path / "release").touch()
    assert "Jetson" in trouble_of(error).reason
    assert "JetPack 7" in trouble_of(error).fix
