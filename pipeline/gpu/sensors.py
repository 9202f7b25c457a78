"""Repeated readings of a server's devices by NVML. An NVML error becomes part of a sample and goes no further."""

import math
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.gpu.holders import error_name, memory_of, running, silences
from pipeline.gpu.visible import VISIBLE_DEVICES, Device, boards, visible
from pipeline.measure.units import MIB

NO_GPU = ("LibraryNotFound", "DriverNotLoaded")
HANGS = "Hangs"
DEVICE_GONE = ("GpuIsLost", "ResetRequired", "Uninitialized", "DriverNotLoaded", "LibRmVersionMismatch")
# nvmlClocksEventReasons in nvml.h; 0x1 is "idle", which slows nothing down.
THROTTLE_BITS = {
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
Way = Callable[[Any, Any], Any]
# Functions that read each value, tried in this order.
WAYS: dict[str, tuple[Way, ...]] = {
    "util_percent": (lambda nvml, board: nvml.nvmlDeviceGetUtilizationRates(board).gpu,),
    "temperature_c": (
        lambda nvml, board: nvml.nvmlDeviceGetTemperature(board, nvml.NVML_TEMPERATURE_GPU),
        lambda nvml, board: nvml.nvmlDeviceGetTemperatureV(board, nvml.NVML_TEMPERATURE_GPU),  # replaces the one above from CUDA 14 on
    ),
    "power_w": (lambda nvml, board: round(nvml.nvmlDeviceGetPowerUsage(board) / 1000, 1),),
    "sm_clock_mhz": (lambda nvml, board: nvml.nvmlDeviceGetClockInfo(board, nvml.NVML_CLOCK_SM),),
    "throttle": (
        lambda nvml, board: throttle_names(nvml.nvmlDeviceGetCurrentClocksEventReasons(board)),
        lambda nvml, board: throttle_names(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(board)),  # before driver 535
    ),
}


def throttle_names(reasons: int) -> list[str]:
    """Return the names of the reasons that hold the clocks down."""
    return [name for bit, name in THROTTLE_BITS.items() if reasons & bit]


class Sensors:
    """One device, and for each value the functions that its driver may support."""

    def __init__(self, pynvml: Any, device: Device) -> None:
        self.nvml = pynvml
        self.device = device
        self.silences = silences(pynvml)
        self.ways = {key: list(ways) for key, ways in WAYS.items()}

    def used_mib(self) -> float:
        """Return the device's used memory; raise pynvml.NVMLError on failure."""
        return round(memory_of(self.nvml, self.device.handle).used / MIB, 1)

    def tree_mib(self, tree: set[int]) -> float | None:
        """Return the memory that these processes use, or None if the driver does not report it or lists none of them."""
        mine = [process.usedGpuMemory for process in running(self.nvml, self.device.handle, "Compute") or () if process.pid in tree]
        return None if not mine or any(value is None for value in mine) else round(sum(mine) / MIB, 1)

    def state(self) -> dict[str, Any]:
        """Return the sensors' values; raise pynvml.NVMLError if the device is gone.

        A value that the driver does not support is not read again; other errors may pass.
        """
        samples = {}
        for key, ways in self.ways.items():
            while ways:
                try:
                    samples[key] = ways[0](self.nvml, self.device.board)
                    break
                except self.silences:
                    ways.pop(0)
                except self.nvml.NVMLError as error:
                    if error_name(error) in DEVICE_GONE:
                        raise
                    break
        return samples


class Watcher:
    """Reads the devices in a thread of its own: a call that hangs, as in a driver reset, blocks nothing else.

    While a call hangs, samples have `gpu_error: Hangs` and no GPU values; the first sample after it ends has them again.
    """

    def __init__(self, open_devices: Callable[[], "Devices"], open_s: float, hangs_s: float) -> None:
        self.patience_s, self.hangs_s = open_s, hangs_s
        self.requests: queue.SimpleQueue[tuple[float, set[int]]] = queue.SimpleQueue()
        self.samples: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.hanging = False
        threading.Thread(target=self.answer, args=(open_devices,), daemon=True).start()

    def answer(self, open_devices: Callable[[], "Devices"]) -> None:
        """Answer requests for samples, one after the other."""
        devices = open_devices()
        while True:
            self.samples.put(devices.sample(*self.requests.get()))

    def sample(self, at: float, tree: set[int]) -> dict[str, Any]:
        """Return the devices' part of the sample; the late result of a call that hung is dropped, because its time has passed."""
        try:
            if self.hanging:
                self.samples.get_nowait()
                self.hanging = False
            self.requests.put((at, tree))
            samples = self.samples.get(timeout=self.patience_s)
        except queue.Empty:
            self.hanging = True
            samples = {"gpu_error": HANGS}
        self.patience_s = self.hangs_s
        return samples


class Devices:
    """The devices that the server may use; a device that fails is not read until NVML is restarted."""

    def __init__(self, at: float, retry_s: float) -> None:
        self.retry_s = retry_s
        self.uuids: list[str] = []
        self.sensors: dict[str, Sensors] = {}
        self.error = ""
        self.open_at = math.inf
        self.open(at)

    def open(self, at: float) -> None:
        """Start NVML, or restart it after a failure, and find the devices; their order stays that of the first time."""
        import pynvml

        self.error, self.open_at, self.sensors = "", math.inf, {}
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        try:
            pynvml.nvmlInit()
            found, failed = boards(pynvml)
        except pynvml.NVMLError as error:
            if self.uuids or error_name(error) not in NO_GPU:
                self.fail(error, at)
            return
        devices, _ = visible(found, os.environ.get(VISIBLE_DEVICES))
        self.uuids = self.uuids or [device.uuid for device in devices]
        self.sensors = {device.uuid: Sensors(pynvml, device) for device in devices}
        for failure in failed:
            self.fail(failure.error, at)
        if not failed and not self.sensors.keys() >= set(self.uuids):
            self.fail(pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND), at)

    def fail(self, error: Any, at: float) -> None:
        """Record the error, and when to restart NVML."""
        self.error, self.open_at = error_name(error), at + self.retry_s

    def sample(self, at: float, tree: set[int]) -> dict[str, Any]:
        """Return each device's used memory, the part that the server's processes hold, and its state; empty without a GPU."""
        if at >= self.open_at:
            self.open(at)
        samples = [self.read(uuid, at, tree) for uuid in self.uuids]
        values: dict[str, Any] = {}
        if samples:
            used, of_tree, states = zip(*samples, strict=True)
            values = {"gpu_used_mib": used, "gpu_tree_mib": of_tree, "devices": states}
        return {**values, "gpu_error": self.error} if self.error else values

    def read(self, uuid: str, at: float, tree: set[int]) -> tuple[float | None, float | None, dict[str, Any]]:
        """Return one device's part of the sample, without values if the device fails."""
        sensors = self.sensors.get(uuid)
        if sensors is None:
            return None, None, {}
        try:
            return sensors.used_mib(), sensors.tree_mib(tree), sensors.state()
        except sensors.nvml.NVMLError as error:
            del self.sensors[uuid]
            self.fail(error, at)
            return None, None, {}
