"""Cautions about the devices, before anything is installed: facts and what to do about them. Pure."""

from collections.abc import Iterator, Sequence

from pipeline.gpu.host import Host
from pipeline.gpu.nvml import UNIFIED_SHARE, Driver, Gpu, Reading
from pipeline.gpu.visible import VISIBLE_DEVICES
from pipeline.message import Sentence
from pipeline.values import Frozen
from pipeline.vllm.limits import unmet
from pipeline.vllm.releases import UNPINNED
from pipeline.vllm.sets import ON_GPU, set_for, too_old, why_no_set

NOTABLE_MIB = 256.0  # about what the driver of an idle device reserves, where it does not report its reserve


class Caution(Frozen):
    """A fact that may spoil a run, and what to do about it."""

    fact: Sentence
    fix: Sentence


def device_cautions(reading: Reading, host: Host) -> list[Caution]:
    """Return the cautions about the devices of this host."""
    cautions = [Caution(fact=trouble.reason, fix=trouble.fix) for trouble in reading.others]
    if reading.gpus and reading.driver:
        cautions += set_cautions(reading.driver, reading.gpus[0], host)
    cautions += unlike_device_cautions(reading.gpus)
    for gpu in reading.gpus:
        cautions += memory_cautions(gpu, host.wsl)
        cautions += [
            Caution(
                fact=f"{gpu.name} has compute capability {gpu.compute_capability}, and {limit.what} needs {dotted(limit.least)}",
                fix=limit.instead,
            )
            for limit in (() if too_old(gpu.compute_capability, host.machine) else unmet(gpu.compute_capability))
        ]
        if gpu.mig:
            problem = f"it is one instance of GPU {gpu.index}, which is in MIG mode, of which CUDA sees one"
            cautions.append(
                Caution(
                    fact=f"{gpu.name}: {problem}",
                    fix=f"name its GPU, {VISIBLE_DEVICES}={gpu.index}, for the first one; or turn MIG off: `sudo nvidia-smi -mig 0`",
                )
            )
    return cautions


def set_cautions(driver: Driver, gpu: Gpu, host: Host) -> Iterator[Caution]:
    """Yield a caution where driver or device does not run the newest vLLM set, or any, and one about Linux under Windows."""
    vllm_set, newest = set_for(driver.version, gpu.compute_capability, host.machine), ON_GPU[0]
    if vllm_set is None:
        fact, fix = why_no_set(driver.version, gpu.compute_capability, host.machine)
        yield Caution(fact=fact, fix=fix)
    elif vllm_set != newest and not newest.has_kernels_for(gpu.compute_capability, host.machine):
        least = dotted(newest.kernels[host.machine])
        fact = f"vLLM {newest.vllm} needs compute capability {least}, and {gpu.name} has {gpu.compute_capability}: so vLLM {vllm_set.vllm}"
        yield Caution(fact=fact, fix="nothing newer runs on it; no run on such a card is known to us, only the kernels in the wheels")
    elif vllm_set != newest:
        fact = f"NVIDIA driver {driver.version} runs CUDA {vllm_set.cuda}, so vLLM {vllm_set.vllm} and not {newest.vllm}"
        yield Caution(fact=fact, fix=f"update the driver to {newest.min_driver} or newer, if you want the newer vLLM")
    if host.wsl and vllm_set is not None:
        runner = "runs without it" if UNPINNED.holds_in(vllm_set.vllm) else "is kept on its first model runner, which needs none"
        fact = f"under WSL2 CUDA's pinned memory is off: vLLM {vllm_set.vllm} {runner} (read in its source, not run by us)"
        yield Caution(fact=fact, fix="`wsl --update`; with vLLM 0.24 or newer --set serve.env.VLLM_WSL2_ENABLE_PIN_MEMORY=1 turns it on")


def unlike_device_cautions(gpus: Sequence[Gpu]) -> Iterator[Caution]:
    """Yield a caution where the first of unlike devices, which vLLM takes, is not the largest."""
    largest = max(gpus, key=lambda gpu: gpu.total_mib, default=None)
    if largest and largest is not gpus[0] and len({(gpu.name, gpu.total_mib) for gpu in gpus}) > 1:
        fact = f"{len(gpus)} unlike devices are visible: vLLM takes the first, {gpus[0].name}, and profile and plan count on that"
        yield Caution(fact=fact, fix=f"set {VISIBLE_DEVICES}={largest.uuid} (environment or serve.env) for the largest, {largest.name}")


def memory_cautions(gpu: Gpu, wsl: bool) -> Iterator[Caution]:
    """Yield cautions about memory that others hold or share, and about a driver that does not report memory per process."""
    if gpu.unified:
        share = f"at most {UNIFIED_SHARE:.0%} of the machine's {gpu.total_mib:.0f} MiB"
        fact = f"GPU {gpu.index}: {gpu.name} has no memory of its own, and a server gets {share}"
        yield Caution(fact=fact, fix="close other programs: what they take is the GPU's too (read in vLLM's source, not run by us)")
        return
    known_uses = [process.used_mib for process in gpu.processes if process.used_mib is not None]
    if gpu.display or gpu.processes or gpu.taken_mib >= NOTABLE_MIB:
        fact = f"GPU {gpu.index}: {gpu.taken_mib:.0f} of {gpu.total_mib:.0f} MiB are taken" + (
            "; it drives a display" if gpu.display else ""
        )
        advice = "; let the display use the processor's own graphics (laptops: `sudo prime-select on-demand`)" if gpu.display else ""
        yield Caution(fact=fact, fix=f"close what you do not need{advice}")
    if wsl:
        fact = f"GPU {gpu.index}: under WSL2 the driver does not tell which process uses how much memory"
        fix = "close what uses the GPU in Windows: the server's memory is measured as the device's above its baseline"
        yield Caution(fact=fact, fix=fix)
    elif not gpu.listed or len(known_uses) < len(gpu.processes):
        fact = f"GPU {gpu.index}: the driver does not tell which process uses how much memory"
        fix = "start nothing else on it: the server's memory is measured as the device's above its baseline"
        yield Caution(fact=fact, fix=fix)


def dotted(capability: tuple[int, int]) -> str:
    """Return (8, 0) as "8.0"."""
    return ".".join(map(str, capability))
