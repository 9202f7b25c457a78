"""The machine, its GPU trouble, and the profile that fits."""

import sys

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
from tests.builders.machines import gpu

CHOICES = (AutoProfile(min_total_mib=3600, profile="small"), AutoProfile(min_total_mib=5600, profile="large"))
NO_DRIVER = Reading(None, [], Trouble("no driver", "install it"))


def reading(*gpus: Gpu) -> Reading:
    return Reading(Driver(version="580.1", cuda="13.0"), list(gpus), None)


@pytest.mark.parametrize(
    ("total_mib", "profile"),
    [(24576, "large"), (6141, "large"), (5600, "large"), (5599.9, "small"), (3600, "small"), (3599, "cpu"), (0, "cpu")],
)
def test_profile_is_the_largest_whose_minimum_is_met(total_mib: float, profile: str) -> None:
    assert check_gpu.choose_profile(CHOICES, reading(gpu(total_mib)))[0] == profile
    assert check_gpu.choose_profile(CHOICES[::-1], reading(gpu(total_mib)))[0] == profile


def test_the_first_device_counts_because_vllm_takes_it() -> None:
    small, large = gpu(4000, "small one"), gpu(6000, "large one", 1)
    assert check_gpu.choose_profile(CHOICES, reading(small, large)) == ("small", "small one with 4000 MiB")
    assert check_gpu.choose_profile(CHOICES, reading(large, small)) == ("large", "large one with 6000 MiB")


def test_a_profile_whose_model_is_not_for_business_says_so() -> None:
    choices = (AutoProfile(min_total_mib=3600, profile="small", non_commercial=True), CHOICES[1])
    assert check_gpu.choose_profile(choices, reading(gpu(4000, "tiny"))) == (
        "small",
        "tiny with 4000 MiB; its model's licence forbids commercial use",
    )
    assert check_gpu.choose_profile(choices, reading(gpu(6141, "big"))) == ("large", "big with 6141 MiB")


def test_the_variable_has_one_name() -> None:
    assert CUDA_DEVICES == VISIBLE_DEVICES


def test_trouble_means_cpu_and_says_so() -> None:
    assert check_gpu.choose_profile(CHOICES, NO_DRIVER) == ("cpu", "no usable GPU: no driver")


def test_too_small_gpu_is_told() -> None:
    profile, reason = check_gpu.choose_profile(CHOICES, reading(gpu(2000, "tiny")))
    assert profile == "cpu"
    assert reason.startswith("tiny with 2000 MiB is smaller")


def test_no_choices_mean_cpu() -> None:
    assert check_gpu.choose_profile((), reading(gpu()))[0] == "cpu"


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


KERNEL = "6.8.0-45-generic"


@pytest.mark.parametrize(
    ("capability", "short"),
    [
        ("7.0", ["bfloat16", "VLLM_BATCH_INVARIANT=1", "AWQ", "Marlin kernels for MXFP4"]),
        ("7.5", ["bfloat16", "VLLM_BATCH_INVARIANT=1", "Marlin kernels for MXFP4"]),
        ("8.0", []),
        ("8.9", []),
        ("10.0", []),
    ],
)
def test_what_a_device_is_too_old_for_is_told(capability: str, short: list[str]) -> None:
    told = device_cautions(reading(gpu().model_copy(update={"compute_capability": capability})), KERNEL)
    assert [caution.fact for caution in told] == [
        f"RTX 4050 has compute capability {capability}, and {limit.what} needs {limit.least[0]}.{limit.least[1]}"
        for limit in LIMITS
        if limit.what in short
    ]
    assert [limit.what for limit in LIMITS if limit.what in short] == short
    assert [caution.fix for caution in told] == [limit.instead for limit in LIMITS if limit.what in short]


def test_on_turing_the_fix_for_bfloat16_is_float16() -> None:
    told = device_cautions(reading(gpu().model_copy(update={"compute_capability": "7.5"})), KERNEL)
    assert ("leave serve.dtype at auto, which takes float16 there", True) in [
        (caution.fix, "bfloat16 needs 8.0" in caution.fact) for caution in told
    ]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.what)
def test_each_limit_names_its_source(limit: Limit) -> None:
    assert "0.32.0" in limit.source or "docs.vllm.ai" in limit.source


def test_under_wsl_memory_per_process_is_not_told() -> None:
    (told,) = device_cautions(reading(gpu()), "5.15.153.1-microsoft-standard-WSL2")
    assert told.fact == "GPU 0: under WSL2 the driver does not tell which process uses how much memory"
    assert "above its baseline" in told.fix
    assert device_cautions(reading(gpu()), KERNEL) == []


@pytest.mark.parametrize(("pythons", "cautioned"), [([], False), (["/a/python3.12", "/b/python3.12"], False), (["/a/python3.12"], True)])
def test_missing_python_headers_are_told_where_no_python_that_install_may_take_has_them(
    monkeypatch: pytest.MonkeyPatch, pythons: list[str], cautioned: bool
) -> None:
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(packages, "pythons", lambda _: pythons)
    monkeypatch.setattr(compilers, "has_headers", lambda python, _: python.startswith("/b/"))
    told = list(check_gpu.of_compiler(reading(gpu())))
    assert [caution.fix for caution in told] == ([C_COMPILER.install] if cautioned else [])
    assert all("Python.h" in caution.fact and "/a/python3.12 has none" in caution.fact for caution in told)
