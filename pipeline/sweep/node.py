"""What a node does for a cell. Ray sends this module by value, so at module level it imports only the standard library.

The cell's folder is a project of its own, which shares code, models and the server's environment with the others through links.
"""

import fcntl
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
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

COPIED = ("tasks.py", "config.yaml")  # not linked: tasks.py resolves links to find the project's folder
SHARED = ("pipeline", "templates", "suites", "requirements", "models", ".cache")
MADE = ("models", ".cache")  # shared folders, created if missing
NODE_DROPPED_VARIABLES = ("RAY_", "VLLM_POC__", "GITHUB_STEP_SUMMARY", "OMP_NUM_THREADS")  # Ray's own, the node's settings, what Ray sets
LARGE = ("launches", "raw", "runs")  # left out, in this order, if the archive would be too large to send; then the largest files
NEEDED = ("report.json", "REPORT.md")  # the last to be left out
SWEEPS = Path("artifacts", "sweep")
# Ports below those that the kernel gives to clients: neighbours have hundreds of connections, one of which would take a free one.
FIRST_PORT = 20000
CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"
SLOT = "VLLM_POC_SLOT"  # same as in pipeline.vllm.environment
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
        """Return where this runs, its niceness and GPUs, and whether the driver's file `token` is visible from here."""
        try:
            shared = Path(token).read_text(encoding="utf-8") == word
        except OSError:
            shared = False
        node, host = self._where()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # as Ray assigned them
        return {"node": node, "host": host, "shared": shared, "niceness": os.getpriority(os.PRIO_PROCESS, 0), "gpus": gpus}

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
                env=environment({**order["variables"], **slot_variable(order)}),
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
    """Return the guard's order: the commands with this node's Python and a free port, the cores, and the locks.

    A cell that shares its node has the cores of its slots; others have all (None).
    """
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
        "cores": cores_of(order["slots"], order["slots_of"], os.sched_getaffinity(0)) if order.get("slots") else None,
    }


def slot_variable(order: dict[str, Any]) -> dict[str, str]:
    """Return the variable that gives the cell caches of its own; none on the first slot and alone, which have the project's."""
    first = min(order.get("slots", ()), default=0)
    return {SLOT: str(first)} if first else {}


def cores_of(slots: Sequence[int], total: int, cores: set[int]) -> list[int]:
    """Return the cores of these slots of `total`: equal shares, neighbours in the machine, and no physical core in two shares."""
    by_place: dict[tuple[int, ...], list[int]] = {}
    for core in sorted(cores):
        by_place.setdefault(place_of_core(core), []).append(core)
    physical = [by_place[key] for key in sorted(by_place)]
    each = len(physical) // total
    return sorted(core for slot in slots for siblings in physical[slot * each : (slot + 1) * each] for core in siblings)


def place_of_core(core: int) -> tuple[int, ...]:
    """Return (socket, physical core) of a core; where the kernel does not tell, each is one of its own."""
    try:
        return tuple(int(Path(TOPOLOGY.format(core, name)).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):
        return (0, core)


def port_of(folder: Path) -> int:
    """Return the cell's port: the earlier one if it is still free, else another; no two cells of a node have the same one."""
    with (folder.parent / ".ports").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        others = {port for file in folder.parent.glob(f"*/{PORT_FILE}") if file.parent != folder for port in read_port(file)}
        for candidate in (*read_port(folder / PORT_FILE), *ports_from(zlib.crc32(str(folder).encode())), 0):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with suppress(OSError):
                    probe.bind(("127.0.0.1", candidate))
                    port = int(probe.getsockname()[1])
                    if port not in others:
                        (folder / PORT_FILE).write_text(str(port), encoding="ascii")
                        return port
    raise OSError("no port is free")


def read_port(file: Path) -> Iterator[int]:
    """Yield the port in the file, if there is one."""
    with suppress(OSError, ValueError):
        yield int(file.read_text(encoding="ascii"))


def ports_from(number: int) -> Iterator[int]:
    """Yield the ports that the kernel gives to no client, beginning at one that `number` decides."""
    with suppress(OSError, ValueError):
        count = int(CLIENT_PORTS.read_text().split()[0]) - FIRST_PORT
        yield from (FIRST_PORT + (number + step) % count for step in range(max(0, count)))


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
    """Return the cell's files as an archive of at most `most_bytes`, and the folders and files left out for that."""
    files, left_out = own_files(folder), list[str]()
    large = [folder / "artifacts" / name for name in LARGE]
    largest = sorted(files, key=lambda path: (path.name in NEEDED, -path.stat().st_size))
    archive = archive_of(folder, files)
    for without in (*large, *largest):
        if len(archive) <= most_bytes:
            break
        kept = [path for path in files if not path.is_relative_to(without)]
        if len(kept) < len(files):
            left_out.append(without.name if without in large else str(without.relative_to(folder)))
            files, archive = kept, archive_of(folder, kept)
    return archive, left_out


def own_files(folder: Path) -> list[Path]:
    """Return the folder's own files, without links and what is behind them."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        linked = any((folder / parent).is_symlink() for parent in (inside, *inside.parents[:-1]))
        if path.is_file() and not linked:
            found.append(path)
    return found


def archive_of(folder: Path, files: Sequence[Path]) -> bytes:
    """Return these files of the folder as an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in files:
            archive.add(path, str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()


def cards() -> list[tuple[str, float]]:
    """Return (name, total MiB) of this node's GPUs, from NVML."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return [(str(pynvml.nvmlDeviceGetName(handle)), pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20) for handle in handles]
