"""Cautions about the devices, before anything is installed: facts and what to do about them. Pure."""

from collections.abc import Iterator, Sequence

from pipeline.gpu.nvml import Driver, Gpu, Reading
from pipeline.gpu.visible import VISIBLE_DEVICES
from pipeline.message import Sentence
from pipeline.values import Frozen
from pipeline.vllm.limits import unmet
from pipeline.vllm.sets import ON_GPU, UPDATE_DRIVER, no_set_for, set_for_driver

NOTABLE_MIB = 256.0  # about what the driver of an idle device reserves, where it does not report its reserve


class Caution(Frozen):
    """A fact that may spoil a run, and what to do about it."""

    fact: Sentence
    fix: Sentence


def device_cautions(reading: Reading, kernel: str) -> list[Caution]:
    """Return the cautions about the devices; `kernel` is the release of the running kernel, which identifies WSL."""
    cautions = [Caution(fact=trouble.reason, fix=trouble.fix) for trouble in reading.others]
    if reading.gpus and reading.driver:
        cautions += driver_cautions(reading.driver)
    cautions += unlike_device_cautions(reading.gpus)
    wsl = "microsoft" in kernel.lower()
    for gpu in reading.gpus:
        cautions += memory_cautions(gpu, wsl)
        cautions += [
            Caution(
                fact=f"{gpu.name} has compute capability {gpu.compute_capability}, and {limit.what} needs {dotted(limit.least)}",
                fix=limit.instead,
            )
            for limit in unmet(gpu.compute_capability)
        ]
        if gpu.mig:
            problem = f"it is one instance of GPU {gpu.index}, which is in MIG mode, of which CUDA sees one"
            cautions.append(
                Caution(
                    fact=f"{gpu.name}: {problem}",
                    fix=f"choose it by {VISIBLE_DEVICES}={gpu.uuid}, or turn MIG off: `sudo nvidia-smi -mig 0`",
                )
            )
    return cautions


def driver_cautions(driver: Driver) -> Iterator[Caution]:
    """Yield a caution where the driver does not run the newest vLLM set, or any."""
    vllm_set, newest = set_for_driver(driver.version), ON_GPU[0]
    if vllm_set is None:
        yield Caution(fact=no_set_for(driver.version), fix=UPDATE_DRIVER)
    elif vllm_set != newest:
        fact = f"NVIDIA driver {driver.version} runs CUDA {vllm_set.cuda}, so vLLM {vllm_set.vllm} and not {newest.vllm}"
        yield Caution(fact=fact, fix=f"update the driver to {newest.min_driver} or newer, if you want the newer vLLM")


def unlike_device_cautions(gpus: Sequence[Gpu]) -> Iterator[Caution]:
    """Yield a caution where the first of unlike devices, which vLLM takes, is not the largest."""
    largest = max(gpus, key=lambda gpu: gpu.total_mib, default=None)
    if largest and largest is not gpus[0] and len({(gpu.name, gpu.total_mib) for gpu in gpus}) > 1:
        fact = f"{len(gpus)} unlike devices are visible: vLLM takes the first, {gpus[0].name}, and profile and plan count on that"
        yield Caution(fact=fact, fix=f"set {VISIBLE_DEVICES}={largest.uuid} (environment or serve.env) for the largest, {largest.name}")


def memory_cautions(gpu: Gpu, wsl: bool) -> Iterator[Caution]:
    """Yield cautions about memory that others hold, and about a driver that does not report memory per process."""
    known_uses = [process.used_mib for process in gpu.processes if process.used_mib is not None]
    if gpu.display or gpu.processes or gpu.taken_mib >= NOTABLE_MIB:
        fact = f"GPU {gpu.index}: {gpu.taken_mib:.0f} of {gpu.total_mib:.0f} MiB are taken" + (
            "; it drives a display" if gpu.display else ""
        )
        advice = "; let the display use the processor's own graphics (laptops: `sudo prime-select on-demand`)" if gpu.display else ""
        yield Caution(fact=fact, fix=f"close what you do not need{advice}")
    if wsl:
        fact = f"GPU {gpu.index}: under WSL2 the driver does not tell which process uses how much memory"
        yield Caution(
            fact=fact, fix="nothing to do: the server's memory is measured as the device's above its baseline; leave Windows alone"
        )
    elif not gpu.listed or len(known_uses) < len(gpu.processes):
        fact = f"GPU {gpu.index}: the driver does not tell which process uses how much memory"
        fix = "start nothing else on it: the server's memory is measured as the device's above its baseline"
        yield Caution(fact=fact, fix=fix)


def dotted(capability: tuple[int, int]) -> str:
    """Return (8, 0) as "8.0"."""
    return ".".join(map(str, capability))
