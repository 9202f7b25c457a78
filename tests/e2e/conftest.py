"""One project folder for the end-to-end tests, kept between runs so that environment, model and compile cache are made once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Fewer requests than the defaults: the tests are about what happens, not about the figures' bounds.
SETTINGS = {
    "SERVE__ON_OOM": "fail",
    "ROUTER__CASES": "6",
    "ROUTER__UNARY_CASES": "1",
    "DETERMINISM__RUNS": "3",
    "BENCH__TTFT_REQUESTS": "8",
    "BENCH__WARMUP_REQUESTS": "2",
    "BENCH__DECODE_REQUESTS": "4",
    "BENCH__OUTPUT_TOKENS": "16",
    "BENCH__REQUESTS_PER_LEVEL": "8",
    "BENCH__OPEN_REQUESTS": "6",
    "VRAM__LOAD_S": "6",
}
EAGER = ("--set", "serve.enforce_eager=true")  # starts sooner, on whatever processor
COPIED = ("tasks.py", "config.yaml", "pipeline", "templates", "suites", "requirements")
PATIENCE_S = 1800  # a command that hangs must end some day; how long one takes is no test's business


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time than the others have: a real server starts in each, on however slow a machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(2 * PATIENCE_S))


class Project:
    """A copy of the project's files with records, environment and models of its own."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.port = port
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_POC__") and k != "PYTHONDONTWRITEBYTECODE"}
        self.env |= {f"VLLM_POC__{name}": value for name, value in {**SETTINGS, "SERVE__PORT": str(port)}.items()}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a task in a process group of its own, as a terminal would."""
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *words],
            cwd=self.root,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Run a task to its end; return (exit code, output)."""
        task = self.start(*words)
        try:
            output, _ = task.communicate(timeout=PATIENCE_S)
        except BaseException:
            os.killpg(task.pid, signal.SIGINT)
            raise
        return task.returncode, output

    def record(self, stage: str) -> dict[str, Any]:
        """Return the stage's envelope."""
        envelope: dict[str, Any] = json.loads((self.root / "artifacts" / f"{stage}.json").read_text(encoding="utf-8"))
        return envelope

    def launch(self) -> dict[str, Any] | None:
        """Return the current launch on disk."""
        path = self.root / "artifacts" / "launch.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def launches(self) -> list[str]:
        """Return the ids of all launches that are kept."""
        return sorted(path.name for path in (self.root / "artifacts" / "launches").glob("*"))

    def processes(self) -> list[psutil.Process]:
        """Return every living process that runs this project's server environment or its sampler."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                environment = process.environ().get("VLLM_CACHE_ROOT", "")
                if f"{self.root}/" in words + environment and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fresh_project(name: str = "e2e") -> Project:
    """Return the folder of that name with this checkout's files and nothing on record; environment, models and caches are kept."""
    root = ROOT / ".cache" / name
    root.mkdir(parents=True, exist_ok=True)
    for part in COPIED:
        target = root / part
        if target.is_dir():
            shutil.rmtree(target)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / part, target)
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    (root / "REPORT.md").unlink(missing_ok=True)
    return Project(root, free_port())


@pytest.fixture(scope="session")
def project() -> Iterator[Project]:
    made = fresh_project()
    yield made
    made.run("stop")
    left = made.processes()
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"
