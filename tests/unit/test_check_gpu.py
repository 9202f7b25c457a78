"""The machine, its GPU trouble, and the profile that fits."""

import pynvml
import pytest

from pipeline.config import AutoProfile, GpuConfig
from pipeline.errors import MachineError
from pipeline.gpu import holders, nvml
from pipeline.gpu.nvml import NO_DEVICE, TROUBLES, Driver, Gpu, Reading, Trouble, cuda_version, text, trouble_of
from pipeline.stages import check_gpu
from tests.unit.machines import gpu

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


def test_largest_device_counts() -> None:
    profile, reason = check_gpu.choose_profile(CHOICES, reading(gpu(2000, "small one"), gpu(6000, "large one", 1)))
    assert (profile, reason) == ("large", "large one with 6000 MiB")


def test_trouble_means_cpu_and_says_so() -> None:
    assert check_gpu.choose_profile(CHOICES, NO_DRIVER) == ("cpu", "no usable GPU: no driver")


def test_too_small_gpu_is_told() -> None:
    profile, reason = check_gpu.choose_profile(CHOICES, reading(gpu(2000, "tiny")))
    assert profile == "cpu"
    assert reason.startswith("tiny with 2000 MiB is smaller")


def test_no_choices_mean_cpu() -> None:
    assert check_gpu.choose_profile((), reading(gpu()))[0] == "cpu"


def look(monkeypatch: pytest.MonkeyPatch, seen: Reading, *, required: bool = False) -> check_gpu.Machine:
    monkeypatch.setattr(nvml, "read", lambda: seen)
    return check_gpu.check_gpu(GpuConfig(required=required, auto=CHOICES))


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
    other = look(monkeypatch, reading(gpu(8000)))
    assert before.identity() == after.identity() != other.identity()


CODES = {
    "NVMLError_LibraryNotFound": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    "NVMLError_DriverNotLoaded": pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    "NVMLError_LibRmVersionMismatch": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    "NVMLError_NoPermission": pynvml.NVML_ERROR_NO_PERMISSION,
    "NVMLError_GpuIsLost": pynvml.NVML_ERROR_GPU_IS_LOST,
}


@pytest.mark.parametrize("name", sorted(TROUBLES))
def test_error_of_pynvml_gets_its_trouble(name: str) -> None:
    assert trouble_of(pynvml.NVMLError(CODES[name])) is TROUBLES[name]
    assert trouble_of(getattr(pynvml, name)()) is TROUBLES[name]


def test_other_errors_are_told_in_nvmls_words() -> None:
    trouble = trouble_of(pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT))
    assert trouble.reason.startswith("NVML: ")
    assert str(pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)) in trouble.reason
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


@pytest.mark.parametrize(("older", "seen"), [([7, 8], [7, 8]), (None, [])])
def test_an_old_driver_is_asked_by_the_function_that_it_has(older: list[int] | None, seen: list[int]) -> None:
    assert holders.running(OldDriver(older), None, "Compute") == seen
