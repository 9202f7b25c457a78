"""The devices that CUDA programs see: all, or those named in CUDA_VISIBLE_DEVICES; of a board in MIG mode, an instance.

The rules are the CUDA programming guide's (CUDA environment variables): an entry is an index in nvidia-smi's order, a UUID, or
an unambiguous prefix of one; the first entry that names no device ends the list.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"  # same as pipeline.config.schema.CUDA_DEVICES, which the sampler should not load


@dataclass(frozen=True)
class Device:
    """A device to compute on: `handle` gives its memory and processes, `board` its sensors; without MIG both are the same."""

    index: int
    uuid: str
    handle: Any
    board: Any
    mig: bool | None


@dataclass(frozen=True)
class Board:
    """A GPU, and its instances if it is in MIG mode; `device.mig` is None if it has no such mode."""

    device: Device
    instances: tuple[Device, ...]

    def first(self) -> list[Device]:
        """Return the devices that CUDA uses if the board is named: in MIG mode one instance, if there is any."""
        return list(self.instances[:1]) if self.device.mig else [self.device]


@dataclass(frozen=True)
class BoardFailure:
    """A board that NVML cannot show, and the error."""

    index: int
    mig: bool
    error: Any


def boards(pynvml: Any) -> tuple[list[Board], list[BoardFailure]]:
    """Return the boards that respond and those that do not; raise pynvml.NVMLError if not even their number is known."""
    found, failed = [], []
    for index in range(pynvml.nvmlDeviceGetCount()):
        mig: bool | None = None
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            mig = in_mig_mode(pynvml, handle)
            device = Device(index, text(pynvml.nvmlDeviceGetUUID(handle)), handle, handle, mig)
            found.append(Board(device, tuple(instances(pynvml, device)) if mig else ()))
        except pynvml.NVMLError as error:
            failed.append(BoardFailure(index, bool(mig), error))
    return found, failed


def in_mig_mode(pynvml: Any, handle: Any) -> bool | None:
    """Return whether MIG is on; None if the device has no MIG, or the driver is older than MIG."""
    with suppress(pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    return None


def instances(pynvml: Any, board: Device) -> list[Device]:
    """Return the board's MIG instances; raise pynvml.NVMLError on failure, as without permission."""
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(board.handle)):
        with suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board.handle, number)
            found.append(Device(board.index, text(pynvml.nvmlDeviceGetUUID(handle)), handle, board.board, True))
    return found


def visible(found: Sequence[Board], value: str | None) -> tuple[list[Device], str]:
    """Return the devices in the variable's order, and its first entry that names none, or "" if all name one."""
    if value is None:
        return [device for board in found for device in board.first()], ""
    devices: list[Device] = []
    for name in (entry.strip() for entry in value.split(",")):
        matches = matching(found, name)
        if len(matches) != 1:
            return devices, name or "nothing"
        if matches[0] not in devices:
            devices += matches
    return devices, ""


def matching(found: Sequence[Board], name: str) -> list[Device]:
    """Return the devices that an entry may refer to."""
    if name.isdecimal():
        return [device for board in found if board.device.index == int(name) for device in board.first()]
    if name.startswith("MIG-"):
        return [device for board in found for device in board.instances if device.uuid.startswith(name)]
    if name.startswith("GPU-"):
        return [device for board in found if board.device.uuid.startswith(name) for device in board.first()]
    return []


def text(value: str | bytes) -> str:
    """Return NVML's text as str; old bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value
