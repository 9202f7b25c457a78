"""A project folder in which commands run, by Invoke's own program."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline.engine.record import Failure, Store, now
from tests.fakes.forkserver import Process, start

ROOT = Path(__file__).resolve().parents[2]
STAGE_NAMES = ("check-gpu", "install", "download-model", "serve", "test-router", "test-determinism", "bench", "measure-vram", "report")
COMMAND_NAMES = (
    *("all", "determinism-remedy", "soak", "doctor", "restart", "stop", "status", "plan", "gates", "systemd-unit", "why", "logs", "graph"),
    *("clean", "test", "lint", "history", "compare", "calibrate-noise", "sweep", "publish", "env", "join", "bundle"),
)
SMALL = (
    *("--set", "router.cases=2", "--set", "determinism.count=1", "--set", "determinism.runs=2", "--set", "determinism.load=[]"),
    *("--set", "bench.ttft_requests=2", "--set", "bench.decode_requests=2", "--set", "bench.requests_per_level=2"),
    *("--set", "bench.level_min_s=0", "--set", "bench.open_min_s=0"),
    *("--set", "bench.client_busy_delay_ms=1000"),
    *("--set", "bench.client_delay_ms=1000"),  # tests run side by side, and the client with them
)


class Project:
    """A project folder with this checkout's code and configuration, and nothing on record."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for name in ("tasks.py", "config.yaml"):
            shutil.copy(ROOT / name, root)
        for name in ("pipeline", "templates", "suites", "requirements"):
            (root / name).symlink_to(ROOT / name)

    def copy_pipeline(self) -> None:
        """Give the project a pipeline and templates of its own, which a test may change."""
        for name in ("pipeline", "templates"):
            (self.root / name).unlink()
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))

    def append(self, file: str, text: str) -> None:
        """Append text to a file of the project."""
        with (self.root / file).open("a", encoding="utf-8") as opened:
            opened.write(text)

    def start(self, *words: str, **variables: str) -> Process:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root / "home"), "COLUMNS": "200", **variables}
        return start(["-m", "invoke", *words], self.root, environment)

    def invoke(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; no command may end in a traceback."""
        process = self.start(*words, **variables)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode is not None
        assert "Traceback" not in out + err, err
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    def says(self, *words: str, **variables: str) -> list[str]:
        """Return the lines that a command prints that must succeed."""
        done = self.invoke(*words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def refuses(self, *words: str, **variables: str) -> list[str]:
        """Return what a command that must be refused says: one line, and one with the hint where there is one."""
        done = self.invoke(*words, **variables)
        assert (done.returncode, done.stdout) == (2, "")
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error: ")
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  → "))
        return lines

    def configure(self, **sections: Any) -> None:
        """Change these settings in config.yaml."""
        path = self.root / "config.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, values in sections.items():
            settings[name] = {**settings[name], **values} if isinstance(values, dict) else values
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def replace(self, old: str, new: str) -> int:
        """Replace text in config.yaml, where it must be the only one of its kind; return its line."""
        path = self.root / "config.yaml"
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new), encoding="utf-8")
        start = text.index(old) + len(old) - len(old.lstrip())
        return text[:start].count("\n") + 1

    def has(self, stage: str) -> bool:
        """Tell whether the stage has left a record."""
        return (self.root / "artifacts" / f"{stage}.json").exists()

    def record(self, stage: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.root / "artifacts" / f"{stage}.json").read_text(encoding="utf-8"))
        return loaded

    def fail(self, stage: str, message: str, hint: str = "", log_tail: tuple[str, ...] = ()) -> None:
        """Leave the record of a stage that failed."""
        failure = Failure(kind="server", message=message, hint=hint, log="server.log" if log_tail else None, log_tail=list(log_tail))
        Store(self.root / "artifacts").write(stage, {}, now(), 1.0, failure)
