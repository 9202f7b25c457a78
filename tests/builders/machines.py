"""Machines and records that several tests look at."""

from pipeline.gpu.host import Host
from pipeline.gpu.nvml import Driver, Gpu
from pipeline.stages.check_gpu import Machine


def host(system: str = "Linux", machine: str = "x86_64") -> Host:
    return Host(system=system, machine=machine, cpu="Test CPU", cores=2, physical_cores=2, vector=["avx2"], memory_mib=8192)


def gpu(total_mib: float = 6141, name: str = "RTX 4050", index: int = 0) -> Gpu:
    return Gpu(
        index=index, uuid=f"GPU-{index}", name=name, total_mib=total_mib, free_mib=total_mib - 100, compute_capability="8.9", processes=[]
    )


def machine(driver: str | None = None, profile: str = "cpu") -> Machine:
    """Return a machine with one GPU under that driver, or without any."""
    return Machine(
        host=host(),
        driver=Driver(version=driver, cuda="12.4") if driver else None,
        gpus=[gpu()] if driver else [],
        reason="" if driver else "no driver",
        fix="" if driver else "install it",
        profile=profile,
        profile_reason="no usable GPU: no driver" if profile == "cpu" else "RTX 4050 with 6141 MiB",
    )
