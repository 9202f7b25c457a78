"""What refuses a start that would fail after a minute, before it is tried: parts, device, driver, compiler and memory."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import ServeConfig
from pipeline.errors import OutOfMemoryError, ServerError
from pipeline.gpu import nvml
from pipeline.gpu.host import Host
from pipeline.gpu.nvml import Driver, Gpu
from pipeline.vllm import compilers
from pipeline.vllm.compilers import compiler_for
from pipeline.vllm.demand import arguments, demand_on, devices
from pipeline.vllm.fit import hopeless, share_of
from pipeline.vllm.ladder import FEWEST_SEQUENCES, HOPELESS, PLANNED
from pipeline.vllm.parallel import check_parts, read_model_parts
from pipeline.vllm.plan import CONTEXT_MIB, DEFAULT_UTILIZATION, SHORTEST_CONTEXT, Demand, Plan
from pipeline.vllm.sets import CPU_SET, set_named

ALL_THE_SAME = "or try all the same: --set serve.force_start=true"


@dataclass(frozen=True)
class Site:
    """Where a server starts: the machine, its devices or why there are none and what to do, the environment, the model's folder."""

    host: Host
    gpus: Sequence[Gpu]
    driver: Driver | None
    reason: str
    fix: str
    set: str
    distribution: str
    versions: Mapping[str, str]
    python: Path
    model: Path

    @property
    def on_cpu(self) -> bool:
        """Tell whether the environment's vLLM runs on processors."""
        return self.distribution == CPU_SET.distribution


def insist_on_site(settings: ServeConfig, site: Site) -> None:
    """Raise ServerError where the model cannot be spread as the settings ask, or the machine lacks a device, driver or compiler."""
    if settings.world_size * settings.data_parallel_size > 1:  # on processors vLLM takes cores, which are not counted
        check_parts(settings, read_model_parts(site.model), None if site.on_cpu else len(site.gpus))
    trouble = None if settings.force_start else lacking(settings, site)
    if trouble:
        raise ServerError(f"not started: {trouble[0]}", f"{trouble[1]}; {ALL_THE_SAME}")


def lacking(settings: ServeConfig, site: Site) -> tuple[str, str] | None:
    """Return (what the machine lacks for this start, what to do); None where nothing is known to be lacking."""
    chosen = set_named(site.set)
    if chosen is not None and chosen.min_driver:
        if not site.gpus:
            return f"{chosen.name} needs a GPU: {site.reason}", f"{site.fix}; without a GPU use --profile cpu"
        major = site.driver.version.split(".", 1)[0] if site.driver else ""
        if site.driver and major.isdecimal() and int(major) < chosen.min_driver:
            why = f"the NVIDIA driver {site.driver.version} is too old for {chosen.name}, which needs {chosen.min_driver}"
            return why, f"leave install.set at auto, or update the driver to {chosen.min_driver} or newer"
    compiler = compiler_for(settings, site.distribution)
    if compiler is None or (not site.on_cpu and not site.gpus):
        return None
    environment = {**os.environ, **settings.env}
    fix = compiler.install + ("; or set serve.enforce_eager=true" if site.on_cpu else "")
    if compiler.path(environment) is None:
        return compiler.missing(environment), fix
    if not compilers.has_headers(str(site.python), environment):
        return compiler.headers_missing, fix
    return None


def plan_start(settings: ServeConfig, site: Site) -> Plan | None:
    """Return what the start will take of the device that decides, None where it is not known; OutOfMemoryError where it would fail.

    It fails where others hold so much of the GPU now that vLLM would refuse, and where even the error of the plan would not help.
    """
    wanted = demand_on(settings, site.gpus, site.distribution, site.model)
    if not settings.force_start:
        refuse_crowded(settings, site)
        refuse_hopeless(wanted, settings.gpu_memory_utilization)
    return wanted.at(settings.gpu_memory_utilization) if wanted else None


def refuse_crowded(settings: ServeConfig, site: Site) -> None:
    """Raise OutOfMemoryError where others hold so much of the GPU now that vLLM would refuse, after a minute."""
    if site.on_cpu or not site.gpus:
        return
    refused = crowded(nvml.read(",".join(gpu.uuid for gpu in site.gpus)).gpus, settings)
    if refused is not None:
        raise OutOfMemoryError(f"not started: {refused[0]}", f"{refused[1]}; {ALL_THE_SAME}", None, "free-vram")


def refuse_hopeless(wanted: Demand | None, share: float | None) -> None:
    """Raise OutOfMemoryError for a start that cannot succeed by the plan, even where its error is in the start's favour."""
    refused = hopeless(wanted, share) if wanted else None
    if wanted is not None and refused is not None:
        why, fitting = refused
        least = wanted.model_copy(update={"max_model_len": SHORTEST_CONTEXT, "max_num_seqs": FEWEST_SEQUENCES})
        cause = HOPELESS if least.at(share).cannot_fit else PLANNED
        raise OutOfMemoryError(f"not started: {why}", f"{fitting}; {ALL_THE_SAME}", None, cause)


def crowded(gpus: Sequence[Gpu], settings: ServeConfig) -> tuple[str, str] | None:
    """Return (why vLLM will refuse for what others hold of a device, what to do); None where it will not.

    It refuses where less is free than its share of the device, both as CUDA counts them: without the driver's reserve.
    """
    named = arguments(settings.extra_args)
    if "--gpu-memory-utilization" in named or "--config" in named:
        return None
    share = settings.gpu_memory_utilization or DEFAULT_UTILIZATION
    for gpu in devices(gpus, settings):
        total_mib = gpu.total_mib - (CONTEXT_MIB if gpu.reserved_mib is None else gpu.reserved_mib)
        if gpu.free_mib < share * total_mib:
            who = [f"pid {one.pid} ({one.name})" + ("" if one.used_mib is None else f" {one.used_mib:.0f}") for one in gpu.processes]
            why = (
                f"{gpu.free_mib:.0f} of {total_mib:.0f} MiB are free on GPU {gpu.index} ({gpu.name}), and "
                f"serve.gpu_memory_utilization {share:g} asks for {share * total_mib:.0f}{'; held by ' + ', '.join(who) if who else ''}"
            )
            fits = share_of(gpu.free_mib, total_mib)
            lower = f", or set serve.gpu_memory_utilization={fits:g} or less" if fits > 0 else ""
            return why, f"close what you do not need on the GPU (`./inv check-gpu` lists it){lower}"
    return None
