"""The machine apart from its GPU: processor, vector instructions, memory."""

import os
import platform
from pathlib import Path

from pipeline.values import Frozen

VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


class Host(Frozen):
    """Processor and memory; `cores` are those that we may use, `physical_cores` the same without hyperthreads.

    `vector` lists the instruction sets that decide which CPU kernels vLLM uses; `wsl` tells whether this is Linux under Windows.
    """

    system: str
    machine: str
    cpu: str
    cores: int
    physical_cores: int
    vector: list[str]
    memory_mib: int
    wsl: bool = False


def read() -> Host:
    """Return this machine's processor and memory."""
    info = cpu_info(Path("/proc/cpuinfo"))
    flags = set(info.get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        cpu=info.get("model name", platform.processor() or "unknown"),
        cores=cores,
        physical_cores=max(1, cores // threads_per_core(info)),
        vector=[flag for flag in VECTOR_FLAGS if flag in flags],
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        wsl=is_wsl(platform.release()),
    )


def is_wsl(kernel: str) -> bool:
    """Tell whether a kernel's release is that of the Windows Subsystem for Linux: "5.15.167.4-microsoft-standard-WSL2"."""
    return "microsoft" in kernel.lower()


def threads_per_core(info: dict[str, str]) -> int:
    """Return the number of hardware threads per core; 1 if /proc/cpuinfo does not say."""
    siblings, cores = info.get("siblings", ""), info.get("cpu cores", "")
    return max(1, int(siblings) // int(cores)) if siblings.isdigit() and cores.isdigit() and int(cores) else 1


def cpu_info(path: Path) -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo, or {} if it cannot be read."""
    try:
        block = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
