"""The devices that NVML shows, by pynvml, and the reason if it shows none."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.gpu.holders import memory_of, running
from pipeline.gpu.visible import VISIBLE_DEVICES, Board, BoardFailure, Device, boards, text, visible
from pipeline.measure.units import MIB
from pipeline.message import _
from pipeline.values import Frozen

# Of memory that device and processor share. A decision, not measured: programs, page cache and the server's own processes need the rest.
UNIFIED_SHARE = 0.75
JETSON = Path("/etc/nv_tegra_release")  # NVIDIA's system for Jetson has this file
READ_S = 30.0  # starting a device takes seconds; a driver that hangs never answers


class GpuProcess(Frozen):
    """A process that holds memory of a device; `used_mib` is None if the driver does not report it."""

    pid: int
    name: str
    used_mib: float | None


class Gpu(Frozen):
    """One device as NVML shows it: a GPU, or an instance of a GPU in MIG mode.

    None means that the driver does not report a value: `reserved_mib` is the memory it keeps for itself, `display` whether a
    screen is active on the device, `mig` whether MIG mode is on. `listed` is false if the driver lists no processes. `unified`:
    the device has no memory of its own, so that the sizes are the machine's.
    """

    index: int
    uuid: str
    name: str
    total_mib: float
    free_mib: float
    compute_capability: str
    processes: list[GpuProcess]
    reserved_mib: float | None = None
    display: bool | None = None
    mig: bool | None = None
    listed: bool = True
    unified: bool = False

    @property
    def plannable_mib(self) -> float:
        """Return the memory that a server may plan with: of memory shared with the processor the rest stays for its programs."""
        return self.total_mib * UNIFIED_SHARE if self.unified else self.total_mib

    @property
    def taken_mib(self) -> float:
        """Return the memory that programs use, including the driver's reserve if it is not reported separately."""
        return self.total_mib - self.free_mib - (self.reserved_mib or 0)


class Driver(Frozen):
    """The driver's version and the newest CUDA version that it supports."""

    version: str
    cuda: str


@dataclass(frozen=True)
class Trouble:
    """Why NVML shows no usable device, and how to fix it."""

    reason: str
    fix: str


# NVML's return codes (nvmlReturn_t in nvml.h) that a user can act on.
TROUBLES = {
    "NVMLError_LibraryNotFound": Trouble(
        _("NVML library libnvidia-ml.so.1 not found: no NVIDIA driver is installed"),
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
    "NVMLError_ResetRequired": Trouble(
        "the GPU must be reset before it works again",
        "end what uses it, then `sudo nvidia-smi --gpu-reset`; restart the machine where that is refused",
    ),
    "NVMLError_FunctionNotFound": Trouble("the NVIDIA driver is too old: its library lacks a function", "update the NVIDIA driver"),
    "NVMLError_Timeout": Trouble(
        "the NVIDIA driver does not answer in time",
        "see `dmesg | grep -i -e nvrm -e xid`; restart the machine when `nvidia-smi` hangs too",
    ),
    "NVMLError_Unknown": Trouble(
        "the NVIDIA driver reports an unknown error",
        "see `dmesg | grep -i -e nvrm -e xid`; in a container, start it anew (a reload of systemd takes its devices away)",
    ),
}
MIG_DENIED = Trouble(
    "the GPU is in MIG mode, and its instances are shown to the administrator only",
    "ask for an instance of your own, or turn MIG off: `sudo nvidia-smi -mig 0`",
)
MIG_EMPTY = Trouble(
    "the GPU is in MIG mode and has no instance to compute on",
    "make one (`sudo nvidia-smi mig -cgi 0 -C` takes the whole GPU), or turn MIG off: `sudo nvidia-smi -mig 0`",
)
NO_JETSON = Trouble(
    "this is a Jetson whose system brings no NVML, so no driver for which a vLLM set is pinned",
    "install JetPack 7 (driver 580, CUDA 13), or name an environment with a vLLM of your own: install.python",
)
NAME_DEVICES = f"`nvidia-smi -L` lists the devices; unset {VISIBLE_DEVICES} to use all"
NO_DEVICE = Trouble("the NVIDIA driver is loaded but shows no device", "check the device with `lspci | grep -i nvidia`")


@dataclass(frozen=True)
class Reading:
    """What NVML shows now: the driver and the devices that CUDA sees, or the trouble; `others` are troubles of other devices."""

    driver: Driver | None
    gpus: list[Gpu]
    trouble: Trouble | None
    others: tuple[Trouble, ...] = ()


def read(visible_devices: str | None = None) -> Reading:
    """Return what NVML shows of the devices that `visible_devices`, or else our environment, selects; raise no NVML error.

    `visible_devices` is a value of CUDA_VISIBLE_DEVICES.
    """
    readings: list[Reading] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            readings.append(read_now(visible_devices))
        except Exception as error:  # raised below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(READ_S)
    if failed:
        raise failed[0]
    return readings[0] if readings else Reading(None, [], TROUBLES["NVMLError_Timeout"])


def read_now(visible_devices: str | None) -> Reading:
    """Return what NVML shows, without a time limit."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Reading(None, [], trouble_of(error))
    try:
        driver = Driver(version=text(pynvml.nvmlSystemGetDriverVersion()), cuda=cuda_version(newest_cuda(pynvml)))
        return look(pynvml, driver, os.environ.get(VISIBLE_DEVICES) if visible_devices is None else visible_devices)
    except pynvml.NVMLError as error:
        return Reading(None, [], trouble_of(error))
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def newest_cuda(pynvml: Any) -> int:
    """Return the newest CUDA version that the driver supports, by the newest function that the driver has."""
    try:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError_FunctionNotFound:
        return int(pynvml.nvmlSystemGetCudaDriverVersion())


def look(pynvml: Any, driver: Driver, visible_devices: str | None) -> Reading:
    """Return the devices that `visible_devices`, the value of CUDA_VISIBLE_DEVICES, selects; raise pynvml.NVMLError on failure."""
    found, failed = boards(pynvml)
    devices, unknown = visible(found, visible_devices)
    gpus = []
    for one in devices:
        try:
            gpus.append(device(pynvml, one))
        except pynvml.NVMLError as error:
            failed.append(BoardFailure(one.index, bool(one.mig), error))
    hidden = [hides(visible_devices, unknown)] if visible_devices is not None and unknown else []
    board_troubles = [of_board(failure) for failure in failed]
    if not gpus:
        return Reading(driver, [], (board_troubles + hidden + empty(found) + [NO_DEVICE])[0])
    return Reading(
        driver,
        gpus,
        None,
        tuple(Trouble(f"GPU {bad.index}: {trouble.reason}", trouble.fix) for bad, trouble in zip(failed, board_troubles, strict=True))
        + tuple(hidden),
    )


def hides(visible_devices: str, unknown: str) -> Trouble:
    """Return the trouble with an entry that names no device: it ends the list."""
    if visible_devices.strip() in ("", "-1"):
        return Trouble(f"{VISIBLE_DEVICES}={visible_devices!r} hides every device", NAME_DEVICES)
    return Trouble(
        f"{VISIBLE_DEVICES}={visible_devices}: {unknown} is no device here, and what stands after it counts for nothing", NAME_DEVICES
    )


def empty(found: list[Board]) -> list[Trouble]:
    """Return the trouble of each board in MIG mode that has no instance."""
    return [MIG_EMPTY for board in found if board.device.mig and not board.instances]


def of_board(failure: BoardFailure) -> Trouble:
    """Return the trouble of one board; a refusal in MIG mode has a reason of its own."""
    trouble = trouble_of(failure.error)
    return MIG_DENIED if failure.mig and trouble is TROUBLES["NVMLError_NoPermission"] else trouble


def trouble_of(error: Exception) -> Trouble:
    """Return the trouble that an NVMLError means."""
    if type(error).__name__ == "NVMLError_LibraryNotFound" and JETSON.exists():
        return NO_JETSON
    return TROUBLES.get(type(error).__name__, Trouble(f"NVML: {error}", "see whether `nvidia-smi` works"))


def device(pynvml: Any, one: Device) -> Gpu:
    """Return the description of a device; raise pynvml.NVMLError on failure."""
    memory = memory_of(pynvml, one.handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(one.board)
    holders = holders_of(pynvml, one.handle)
    return Gpu(
        index=one.index,
        uuid=one.uuid,
        name=text(pynvml.nvmlDeviceGetName(one.handle)),
        total_mib=memory.total / MIB,
        free_mib=memory.free / MIB,
        compute_capability=f"{major}.{minor}",
        processes=holders or [],
        reserved_mib=None if memory.reserved is None else memory.reserved / MIB,
        display=has_display(pynvml, one.board),
        mig=one.mig,
        listed=holders is not None,
        unified=memory.unified,
    )


def has_display(pynvml: Any, handle: Any) -> bool | None:
    """Return whether a screen is active on this device, or None if the driver does not report it."""
    with suppress(pynvml.NVMLError):
        return bool(pynvml.nvmlDeviceGetDisplayActive(handle))
    return None


def holders_of(pynvml: Any, handle: Any) -> list[GpuProcess] | None:
    """Return the processes that hold the device's memory, or None if the driver does not list processes."""
    import psutil

    lists = [running(pynvml, handle, kind) for kind in ("Compute", "Graphics")]
    found = {process.pid: process for listed in lists for process in listed or ()}
    result = []
    for pid, process in sorted(found.items()):
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            name = "?"
        used = process.usedGpuMemory
        result.append(GpuProcess(pid=pid, name=name, used_mib=None if used is None else used / MIB))
    return result if any(listed is not None for listed in lists) else None


def device_used_mib(visible_devices: str | None = None) -> list[float] | None:
    """Return the used memory of each device, counted as the sampler does, or None without a device."""
    reading = read(visible_devices)
    return [gpu.taken_mib for gpu in reading.gpus] if reading.gpus else None


def cuda_version(number: int) -> str:
    """Return "12.4" for 12040, as nvmlSystemGetCudaDriverVersion encodes it."""
    return f"{number // 1000}.{number % 1000 // 10}"
