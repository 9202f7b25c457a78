"""NVML through pynvml: what devices there are, and why not when there are none."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.gpu.holders import running

MIB = 1024 * 1024


class GpuProcess(BaseModel):
    """A process that holds memory of a device; `used_mib` is None where the driver does not tell."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    pid: int
    name: str
    used_mib: float | None


class Gpu(BaseModel):
    """One device as NVML shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    index: int
    uuid: str
    name: str
    total_mib: float
    free_mib: float
    compute_capability: str
    processes: list[GpuProcess]


class Driver(BaseModel):
    """The driver's version and the newest CUDA version that it supports."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    version: str
    cuda: str


@dataclass(frozen=True)
class Trouble:
    """Why NVML shows no usable device, and what to do."""

    reason: str
    fix: str


# NVML's return codes (nvmlReturn_t in nvml.h) that a person can do something about.
TROUBLES = {
    "NVMLError_LibraryNotFound": Trouble(
        "NVML library libnvidia-ml.so.1 not found: no NVIDIA driver is installed",
        "install the NVIDIA driver (Debian, Ubuntu: `sudo apt install nvidia-driver`), then `nvidia-smi` must work",
    ),
    "NVMLError_DriverNotLoaded": Trouble(
        "the NVIDIA driver is installed but not loaded",
        "run `sudo modprobe nvidia`, or restart; with Secure Boot the module must be signed",
    ),
    "NVMLError_LibRmVersionMismatch": Trouble(
        "the NVIDIA driver in the kernel and its library have different versions",
        "restart the machine to finish the driver update",
    ),
    "NVMLError_NoPermission": Trouble(
        "no permission to use the NVIDIA devices",
        "add your user to the groups `video` and `render`, or give the container `--gpus all`",
    ),
    "NVMLError_GpuIsLost": Trouble(
        "the GPU has fallen off the bus",
        "restart the machine; if it comes back, look at power and seating (`dmesg | grep -i xid`)",
    ),
}
NO_DEVICE = Trouble("the NVIDIA driver is loaded but shows no device", "check the device with `lspci | grep -i nvidia`")


@dataclass(frozen=True)
class Reading:
    """What NVML shows now: driver and devices, or the trouble."""

    driver: Driver | None
    gpus: list[Gpu]
    trouble: Trouble | None


def read() -> Reading:
    """Return what NVML shows; never raises for NVML's own errors."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Reading(None, [], trouble_of(error))
    try:
        driver = Driver(version=text(pynvml.nvmlSystemGetDriverVersion()), cuda=cuda_version(pynvml.nvmlSystemGetCudaDriverVersion_v2()))
        gpus = [device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return Reading(None, [], trouble_of(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return Reading(driver, gpus, None if gpus else NO_DEVICE)


def trouble_of(error: Exception) -> Trouble:
    """Return the trouble that an NVMLError stands for."""
    return TROUBLES.get(type(error).__name__, Trouble(f"NVML: {error}", "see whether `nvidia-smi` works"))


def device(pynvml: Any, index: int) -> Gpu:
    """Return device `index`; raises pynvml.NVMLError."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        uuid=text(pynvml.nvmlDeviceGetUUID(handle)),
        name=text(pynvml.nvmlDeviceGetName(handle)),
        total_mib=memory.total / MIB,
        free_mib=memory.free / MIB,
        compute_capability=f"{major}.{minor}",
        processes=processes(pynvml, handle),
    )


def processes(pynvml: Any, handle: Any) -> list[GpuProcess]:
    """Return who holds the device's memory; empty where the driver does not list processes."""
    import psutil

    found: dict[int, Any] = {}
    for kind in ("Compute", "Graphics"):
        found.update({process.pid: process for process in running(pynvml, handle, kind)})
    result = []
    for pid, process in sorted(found.items()):
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            name = "?"
        used = process.usedGpuMemory
        result.append(GpuProcess(pid=pid, name=name, used_mib=None if used is None else used / MIB))
    return result


def device_used_mib() -> list[float] | None:
    """Return the used memory of each device now, or None without NVML."""
    reading = read()
    return [gpu.total_mib - gpu.free_mib for gpu in reading.gpus] if reading.gpus else None


def cuda_version(number: int) -> str:
    """Return "12.4" for 12040, as nvmlSystemGetCudaDriverVersion encodes it."""
    return f"{number // 1000}.{number % 1000 // 10}"


def text(value: str | bytes) -> str:
    """Return NVML's text, which old bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else value
