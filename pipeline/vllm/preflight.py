"""Checks that refuse a start that would fail after a minute: model parts, device, driver, compiler and memory."""

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
    """Where a server starts: the host, its devices or why there are none and the fix, the environment, and the model's folder."""

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
        """Tell whether the environment's vLLM is the build for processors."""
        return self.distribution == CPU_SET.distribution


def insist_on_site(settings: ServeConfig, site: Site) -> None:
    """Raise ServerError where the model cannot be spread as the settings ask, or the machine lacks a device, driver or compiler."""
    if settings.world_size * settings.data_parallel_size > 1:  # on processors vLLM uses cores, whose number is not checked
        check_parts(settings, read_model_parts(site.model), None if site.on_cpu else len(site.gpus))
    trouble = None if settings.force_start else lacking(settings, site)
    if trouble:
        raise ServerError(f"not started: {trouble[0]}", f"{trouble[1]}; {ALL_THE_SAME}")


def lacking(settings: ServeConfig, site: Site) -> tuple[str, str] | None:
    """Return (what the machine lacks for this start, what to do); None where nothing is known to be missing."""
    vllm_set = set_named(site.set)
    if vllm_set is not None and vllm_set.min_driver:
        if not site.gpus:
            return f"{vllm_set.name} needs a GPU: {site.reason}", f"{site.fix}; without a GPU use --profile cpu"
        major = site.driver.version.split(".", 1)[0] if site.driver else ""
        if site.driver and major.isdecimal() and int(major) < vllm_set.min_driver:
            reason = f"the NVIDIA driver {site.driver.version} is too old for {vllm_set.name}, which needs {vllm_set.min_driver}"
            return reason, f"leave install.set at auto, or update the driver to {vllm_set.min_driver} or newer"
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
    """Return the plan of the start on the smallest device, None where it is unknown; OutOfMemoryError where it would fail.

    It would fail where others hold so much of the GPU that vLLM refuses, and where the plan lacks more than its error band.
    With serve.force_start neither is checked.
    """
    demand = demand_on(settings, site.gpus, site.distribution, site.model)
    if not settings.force_start:
        refuse_crowded(settings, site)
        refuse_hopeless(demand, settings.gpu_memory_utilization)
    return demand.at(settings.gpu_memory_utilization) if demand else None


def refuse_crowded(settings: ServeConfig, site: Site) -> None:
    """Raise OutOfMemoryError where others hold so much of the GPU now that vLLM would refuse after a minute."""
    if site.on_cpu or not site.gpus:
        return
    refusal = crowded(nvml.read(",".join(gpu.uuid for gpu in site.gpus)).gpus, settings)
    if refusal is not None:
        raise OutOfMemoryError(f"not started: {refusal[0]}", f"{refusal[1]}; {ALL_THE_SAME}", None, "free-vram")


def refuse_hopeless(demand: Demand | None, share: float | None) -> None:
    """Raise OutOfMemoryError for a start that does not fit by the plan, even with the error band in its favour."""
    refusal = hopeless(demand, share) if demand else None
    if demand is not None and refusal is not None:
        reason, advice = refusal
        smallest = demand.model_copy(update={"max_model_len": SHORTEST_CONTEXT, "max_num_seqs": FEWEST_SEQUENCES})
        cause = HOPELESS if smallest.at(share).cannot_fit else PLANNED
        raise OutOfMemoryError(f"not started: {reason}", f"{advice}; {ALL_THE_SAME}", None, cause)


def crowded(gpus: Sequence[Gpu], settings: ServeConfig) -> tuple[str, str] | None:
    """Return (why vLLM will refuse a device that others use, what to do); None where it will not.

    It refuses where less memory is free than its share of the total, both as CUDA counts them: without the driver's reserve.
    """
    values = arguments(settings.extra_args)
    if "--gpu-memory-utilization" in values or "--config" in values:
        return None
    share = settings.gpu_memory_utilization or DEFAULT_UTILIZATION
    for gpu in devices(gpus, settings):
        total_mib = gpu.total_mib - (CONTEXT_MIB if gpu.reserved_mib is None else gpu.reserved_mib)
        if gpu.free_mib < share * total_mib:
            users = [
                f"pid {process.pid} ({process.name})" + ("" if process.used_mib is None else f" {process.used_mib:.0f}")
                for process in gpu.processes
            ]
            reason = (
                f"{gpu.free_mib:.0f} of {total_mib:.0f} MiB are free on GPU {gpu.index} ({gpu.name}), and "
                f"serve.gpu_memory_utilization {share:g} asks for {share * total_mib:.0f}{'; held by ' + ', '.join(users) if users else ''}"
            )
            largest_share = share_of(gpu.free_mib, total_mib)
            alternative = f", or set serve.gpu_memory_utilization={largest_share:g} or less" if largest_share > 0 else ""
            return reason, f"close what you do not need on the GPU (`./inv check-gpu` lists it){alternative}"
    return None
