"""What a node does for a cell. Ray sends this module by value, so at module level it imports only the standard library.

The cell's folder is a project of its own, which shares code, models and the server's environment with the others through links.
"""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

COPIED = ("tasks.py", "config.yaml")  # not linked: tasks.py resolves links to find the project's folder
SHARED = ("pipeline", "templates", "suites", "requirements", "models", ".cache")
MADE = ("models", ".cache")  # shared folders, created if missing
NODE_DROPPED_VARIABLES = ("RAY_", "VLLM_POC__", "GITHUB_STEP_SUMMARY", "OMP_NUM_THREADS")  # Ray's own, the node's settings, what Ray sets
LARGE = ("launches", "raw", "runs")  # left out, in this order, if the archive would be too large to send
SWEEPS = Path("artifacts", "sweep")
PORT_FILE, ORDER_FILE, LOG_FILE, LOCK_FILE = ".port", ".order.json", "cell.log", ".cell.lock"


def place() -> tuple[str, str]:
    """Return (node id, host name) of this worker."""
    import ray

    return str(ray.get_runtime_context().get_node_id()), socket.gethostname()


class Runner:
    """Runs one cell in its own worker; `stop` may be called while it runs."""

    def __init__(self, where: Callable[[], tuple[str, str]] = place) -> None:
        self._where = where
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._starting = threading.Lock()

    def where(self, token: str, word: str) -> dict[str, Any]:
        """Return where this runs, its niceness, and whether the driver's file `token` is visible from here."""
        try:
            shared = Path(token).read_text(encoding="utf-8") == word
        except OSError:
            shared = False
        node, host = self._where()
        return {"node": node, "host": host, "shared": shared, "niceness": os.getpriority(os.PRIO_PROCESS, 0)}

    def run(self, order: dict[str, Any], project: bytes | None) -> dict[str, Any]:
        """Run the cell and return how it ended.

        `project` is the packed project if this node does not see the driver's folder; the cell's files are then part of the result.
        """
        began = time.monotonic()
        base = Path(order["root"]) if project is None else unpacked(project, Path(order["local"]).expanduser(), order["code"])
        folder = base / SWEEPS / order["cell"]
        arrange(base, folder, order["environment"])
        spec = spec_of(order, base, folder)
        (folder / ORDER_FILE).write_text(json.dumps(spec), encoding="utf-8")
        with self._starting:
            if self._stopped:
                return {"code": 130, "took_s": 0.0, "said": "", "archive": None, "left": []}
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "pipeline.sweep.guard", ORDER_FILE],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=environment(order["variables"]),
                start_new_session=True,
            )
        assert self._guard.stderr is not None
        message = self._guard.stderr.read().decode(errors="replace")
        code = self._guard.wait()
        archive, left_out = (None, []) if project is None else packed(folder, order["most_bytes"])
        return {"code": code, "took_s": time.monotonic() - began, "said": message.strip()[-500:], "archive": archive, "left": left_out}

    def stop(self) -> bool:
        """End the cell and everything it started; return when that is done."""
        with self._starting:
            self._stopped = True
            guard = self._guard
        if guard is not None:
            assert guard.stdin is not None
            guard.stdin.close()
            while guard.poll() is None:
                time.sleep(0.1)
        return True


def arrange(base: Path, folder: Path, environment: str) -> None:
    """Create the cell's folder with its copies and links; files of an earlier run stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*MADE, environment):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(base / name, folder / name)
    links = {name: base / name for name in SHARED if (base / name).exists()} | {"venv-vllm": base / environment}
    for name, target in links.items():
        link, relative = folder / name, os.path.relpath(target, folder)
        if not (link.is_symlink() and str(link.readlink()) == relative):
            link.unlink(missing_ok=True)
            link.symlink_to(relative)


def spec_of(order: dict[str, Any], base: Path, folder: Path) -> dict[str, Any]:
    """Return the guard's order: the commands with this node's Python and a free port, and the locks."""
    fill = {"{python}": sys.executable, "{port}": str(port_of(folder))}

    def fill_in(word: str) -> str:
        for name, value in fill.items():
            word = word.replace(name, value)
        return word

    steps = [{"words": [fill_in(word) for word in step["words"]], "shared": step["shared"]} for step in order["steps"]]
    return {
        "steps": steps,
        "log": LOG_FILE,
        "folder_lock": LOCK_FILE,
        "shared_lock": str(base / ".cache" / "sweep.lock"),
        "patience_s": order["patience_s"],
        "stop_s": order["stop_s"],
    }


def port_of(folder: Path) -> int:
    """Return the cell's port: the earlier one if it is still free, else another."""
    file = folder / PORT_FILE
    try:
        previous = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        previous = 0
    for candidate in (previous, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", candidate))
                port = int(probe.getsockname()[1])
                file.write_text(str(port), encoding="ascii")
                return port
    raise OSError("no port is free")


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the cell's environment: this node's without the variables in NODE_DROPPED_VARIABLES, plus the driver's `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NODE_DROPPED_VARIABLES)}
    return {**inherited, **variables}


def unpacked(project: bytes, local: Path, code: str) -> Path:
    """Return the folder of this node that holds the packed project, unpacked completely or not at all."""
    base = local / code
    if not base.is_dir():
        fresh = local / f".{code}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(project)) as archive:
            archive.extractall(fresh, filter="data")
        with suppress(OSError):  # another worker was first
            fresh.rename(base)
        shutil.rmtree(fresh, ignore_errors=True)
    return base


def packed(folder: Path, most_bytes: int) -> tuple[bytes, list[str]]:
    """Return the cell's files as an archive, and the folders left out to keep it small enough."""
    left_out: list[str] = []
    while True:
        archive = archive_of(folder, [folder / "artifacts" / name for name in left_out])
        if len(archive) <= most_bytes or len(left_out) == len(LARGE):
            return archive, left_out
        left_out.append(LARGE[len(left_out)])


def archive_of(folder: Path, without: list[Path]) -> bytes:
    """Return the folder's own files as an archive; links are left out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            linked = any((folder / parent).is_symlink() for parent in (inside, *inside.parents[:-1]))
            if path.is_file() and not linked and not any(path.is_relative_to(other) for other in without):
                archive.add(path, str(inside), recursive=False)
    return buffer.getvalue()


def cards() -> list[tuple[str, float]]:
    """Return (name, total MiB) of this node's GPUs, from NVML."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [(str(pynvml.nvmlDeviceGetName(handle)), pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20) for handle in handles]
