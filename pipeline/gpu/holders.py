"""A device's memory and the processes that hold it, by NVML. The sampler imports this module, so it loads little."""

from typing import Any, NamedTuple


class Memory(NamedTuple):
    """Bytes; `used` leaves out what the driver reserves for itself. If the driver does not report that, `reserved` is None.

    `unified`: the device has no memory of its own; these are the machine's bytes.
    """

    total: int
    free: int
    used: int
    reserved: int | None
    unified: bool = False


def memory_of(pynvml: Any, handle: Any) -> Memory:
    """Return the device's memory, by the newest function that its driver has; raise pynvml.NVMLError on failure."""
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported, pynvml.NVMLError_ArgumentVersionMismatch):
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle)  # before driver 510, and some MIG instances
        except pynvml.NVMLError_NotSupported:
            return of_machine()
        return Memory(info.total, info.free, info.used, None)
    return Memory(info.total, info.free, info.used, info.reserved)


def of_machine() -> Memory:
    """Return the machine's memory, which is the device's where NVML reports none: of a GB10 or a Jetson."""
    import psutil

    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available, memory.total - memory.available, 0, unified=True)


def running(pynvml: Any, handle: Any, kind: str) -> list[Any] | None:
    """Return the device's processes of that kind, by the newest function that its driver has; None if it does not report them."""
    for function in (f"nvmlDeviceGet{kind}RunningProcesses", f"nvmlDeviceGet{kind}RunningProcesses_v2"):
        try:
            return list(getattr(pynvml, function)(handle))
        except pynvml.NVMLLibraryMismatchError:  # an old driver; this is not an NVMLError
            continue
        except pynvml.NVMLError:
            break
    return None


def silences(pynvml: Any) -> tuple[type[Exception], ...]:
    """Return the errors with which a driver says that it does not report a value at all."""
    return (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NoPermission,
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_ArgumentVersionMismatch,
        pynvml.NVMLLibraryMismatchError,
    )


def error_name(error: Any) -> str:
    """Return NVML's error as a word: "GpuIsLost" for NVML_ERROR_GPU_IS_LOST."""
    name = type(error).__name__.removeprefix("NVMLError_")
    return f"code {error.value}" if name == "NVMLError" else name
