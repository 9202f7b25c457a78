"""check-gpu: Look at what the machine offers and choose the profile that fits."""

import os
import platform
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
from pipeline.vllm.sets import set_for_driver

CPU_PROFILE = "cpu"


class Machine(Artifact):
    """The host, the NVIDIA devices that CUDA sees or why there are none, and the profile that `auto` means here."""

    host: Host
    driver: Driver | None
    gpus: list[Gpu]
    reason: Sentence
    fix: Sentence
    profile: str
    profile_reason: Sentence
    cautions: list[Caution] = []

    def identity(self) -> dict[str, Any]:
        """Return what is fixed about the machine; free memory, processes and displays change by the second."""
        volatile = {"free_mib", "processes", "reserved_mib", "display", "listed"}
        return self.model_dump(mode="json", exclude={"gpus": {"__all__": volatile}, "cautions": True})


def check_gpu(settings: GpuConfig, visible: VisibleDevices) -> Machine:
    """Look at GPU, driver and processor, and choose the profile that fits."""
    reading = nvml.read(visible.devices)
    if reading.trouble is not None and settings.required:
        raise MachineError(
            _("no usable GPU: {reason}", reason=reading.trouble.reason), f"{reading.trouble.fix}; or set gpu.required: false"
        )
    profile, why = choose_profile(settings.auto, reading)
    return Machine(
        host=host.read(),
        driver=reading.driver,
        gpus=reading.gpus,
        reason=reading.trouble.reason if reading.trouble else "",
        fix=reading.trouble.fix if reading.trouble else "",
        profile=profile,
        profile_reason=why,
        cautions=[*device_cautions(reading, platform.release()), *of_compiler(reading)],
    )


def of_compiler(reading: nvml.Reading) -> Iterator[Caution]:
    """Yield what is missing of what Triton compiles with on a GPU, which is needed when the server starts."""
    chosen = set_for_driver(reading.driver.version) if reading.gpus and reading.driver else None
    if chosen is None:
        return
    if C_COMPILER.path(os.environ) is None:
        yield Caution(fact=C_COMPILER.missing(os.environ), fix=C_COMPILER.install)
        return
    found = packages.pythons(chosen.python)  # install takes one with headers, if there is any, and lets uv fetch one, if there is none
    if found and not any(compilers.has_headers(python, os.environ) for python in found):
        yield Caution(fact=f"{C_COMPILER.headers_missing}: {found[0]} has none", fix=C_COMPILER.install)


def choose_profile(choices: tuple[AutoProfile, ...], reading: nvml.Reading) -> tuple[str, str]:
    """Return (profile, reason): the choice with the largest minimum that the first device meets, which is the one vLLM takes."""
    if reading.trouble is not None:
        return CPU_PROFILE, _("no usable GPU: {reason}", reason=reading.trouble.reason)
    first = reading.gpus[0]
    seen = f"{first.name} with {first.total_mib:.0f} MiB"
    fitting = [choice for choice in choices if choice.min_total_mib <= first.total_mib]
    if not fitting:
        return CPU_PROFILE, f"{seen} is smaller than every GPU profile's minimum"
    chosen = max(fitting, key=lambda choice: choice.min_total_mib)
    return chosen.profile, f"{seen}; its model's licence forbids commercial use" if chosen.non_commercial else seen
