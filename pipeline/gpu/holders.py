"""Who holds a device's memory, as NVML tells. Apart, because the sampler that watches a measurement is to load little."""

from typing import Any


def running(pynvml: Any, handle: Any, kind: str) -> list[Any]:
    """Return the device's processes of that kind, by the newest function that its driver has; empty where none tells."""
    for function in (f"nvmlDeviceGet{kind}RunningProcesses", f"nvmlDeviceGet{kind}RunningProcesses_v2"):
        try:
            return list(getattr(pynvml, function)(handle))
        except pynvml.NVMLLibraryMismatchError:  # an old driver; no NVMLError
            continue
        except pynvml.NVMLError:
            break
    return []
