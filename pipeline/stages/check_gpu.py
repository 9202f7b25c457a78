"""check-gpu: Read the machine's GPUs, driver and processor, and choose the profile that fits."""

import os
from collections.abc import Iterator
from typing import Any

from pipeline import packages
from pipeline.config.schema import AutoProfile, GpuConfig
from pipeline.contexts import VisibleDevices
from pipeline.engine.record import Artifact
from pipeline.errors import MachineError
from pipeline.gpu import host, nvml
from pipeline.gpu.host import Host
from pipeline.gpu.nvml import Driver, Gpu
from pipeline.message import Sentence, _
from pipeline.vllm import compilers
from pipeline.vllm.cautions import Caution, device_cautions
from pipeline.vllm.compilers import C_COMPILER
from pipeline.vllm.sets import as_numbers, set_for, too_old, why_no_set

CPU_PROFILE = "cpu"


class Machine(Artifact):
    """The host, the NVIDIA devices visible to CUDA or the reason why none are, and the profile that `auto` selects."""

    host: Host
    driver: Driver | None
    gpus: list[Gpu]
    reason: Sentence
    fix: Sentence
    profile: str
    profile_reason: Sentence
    cautions: list[Caution] = []

    def identity(self) -> dict[str, Any]:
        """Return the machine's fixed properties; free memory, processes and displays change from second to second."""
        volatile = {"free_mib", "processes", "reserved_mib", "display", "listed"}
        return self.model_dump(mode="json", exclude={"gpus": {"__all__": volatile}, "cautions": True})


def check_gpu(settings: GpuConfig, visible: VisibleDevices) -> Machine:
    """Read GPU, driver and processor, and choose the profile that fits."""
    reading = nvml.read(visible.devices)
    if reading.trouble is not None and settings.required:
        raise MachineError(
            _("no usable GPU: {reason}", reason=reading.trouble.reason), f"{reading.trouble.fix}; or set gpu.required: false"
        )
    here = host.read()
    profile, reason = choose_profile(settings.auto, reading, here.machine)
    return Machine(
        host=here,
        driver=reading.driver,
        gpus=reading.gpus,
        reason=reading.trouble.reason if reading.trouble else "",
        fix=reading.trouble.fix if reading.trouble else "",
        profile=profile,
        profile_reason=reason,
        cautions=[*device_cautions(reading, here), *of_compiler(reading, here.machine)],
    )


def of_compiler(reading: nvml.Reading, machine: str) -> Iterator[Caution]:
    """Yield a caution where a host with a GPU lacks the C compiler or the Python headers that Triton needs."""
    if not reading.gpus or reading.driver is None:
        return
    vllm_set = set_for(reading.driver.version, reading.gpus[0].compute_capability, machine)
    if vllm_set is None:
        return
    if C_COMPILER.path(os.environ) is None:
        yield Caution(fact=C_COMPILER.missing(os.environ), fix=C_COMPILER.install)
        return
    interpreters = packages.pythons(vllm_set.python)  # install prefers one with headers; uv fetches one where none is installed
    if interpreters and not any(compilers.has_headers(python, os.environ) for python in interpreters):
        yield Caution(fact=f"{C_COMPILER.headers_missing}: {interpreters[0]} has none", fix=C_COMPILER.install)


def choose_profile(choices: tuple[AutoProfile, ...], reading: nvml.Reading, machine: str) -> tuple[str, str]:
    """Return (profile, reason): the choice with the largest minimum that the first device meets; vLLM takes that device.

    A device for which no vLLM set has kernels gets the profile for processors.
    """
    if reading.trouble is not None:
        return CPU_PROFILE, _("no usable GPU: {reason}", reason=reading.trouble.reason)
    first = reading.gpus[0]
    device = f"{first.name} with {first.total_mib:.0f} MiB"
    if too_old(first.compute_capability, machine):
        return CPU_PROFILE, f"{first.name}: {why_no_set('', first.compute_capability, machine)[0]}"
    best = largest_choice(choices, first.plannable_mib, first.compute_capability)
    if best is None:
        return CPU_PROFILE, f"{device} is smaller than every GPU profile's minimum"
    return best.profile, f"{device}; its model's licence forbids commercial use" if best.non_commercial else device


def largest_choice(choices: tuple[AutoProfile, ...], total_mib: float, capability: str | None) -> AutoProfile | None:
    """Return the choice with the largest minimum that a device of that size and, where known, compute capability meets."""
    able = [choice for choice in choices if capability is None or as_numbers(choice.min_capability) <= as_numbers(capability)]
    return max((choice for choice in able if choice.min_total_mib <= total_mib), key=lambda choice: choice.min_total_mib, default=None)
