"""Python with the pipeline imported, which forks a process for each command: the imports, most of a short command, are paid once.

Such a process is like any other: it has its own pid, environment, folder, output and exit code, and gets its own signals. What it
shares is what importing fixed, so modules that read the environment when they are imported (huggingface_hub) are left to it.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tests.fakes.templates import compile_once

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("invoke.main", "jinja2", "jsonschema", "numpy", "requests", "filelock", "rich.console", "yaml", "psutil", "pynvml")
LIBRARY_PATH = "LD_LIBRARY_PATH"  # read once, when a program starts
MESSAGE_BYTES = 2**17
DESCRIPTORS = 4  # stdin, stdout, stderr, and the pipe for pid and exit code


class Fork:
    """A process that a fork server started, to be used as a `subprocess.Popen[str]` with pipes is."""

    def __init__(self, words: Sequence[str], out: int, err: int, status: int) -> None:
        self.args = words
        self.stdout, self.stderr = open(out, encoding="utf-8"), open(err, encoding="utf-8")  # noqa: SIM115 - closed when read
        self.returncode: int | None = None
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit code, as Popen has it; None while the process lives."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once there is one; subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Return (stdout, stderr) once both are at their end and the process is too."""
        deadline = time.monotonic() + timeout
        streams = [stream for stream in (self.stdout, self.stderr) if not stream.closed]
        parts: dict[int, bytes] = {stream.fileno(): b"" for stream in streams}
        unread = list(parts)
        while unread:
            ready = select.select(unread, [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            for descriptor in ready:
                part = os.read(descriptor, 65536)
                parts[descriptor] += part
                if not part:
                    unread.remove(descriptor)
        self.wait(max(0.0, deadline - time.monotonic()))
        out, err = (parts.get(stream.fileno(), b"").decode() if stream in streams else "" for stream in (self.stdout, self.stderr))
        for stream in streams:
            stream.close()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Fork | subprocess.Popen[str]


class ForkServer:
    """The process that forks; it ends with the one that started it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.forkserver", str(theirs.fileno())],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def close(self) -> None:
        """Let it end, as soon as it may."""
        self._socket.close()
        self._process.wait()

    def start(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Fork:
        """Start what `python *words` would, `-m MODULE …` or `-c CODE …`, in that folder and environment."""
        out, theirs_out = os.pipe()
        err, theirs_err = os.pipe()
        status, theirs_status = os.pipe()
        order = {"words": list(words), "folder": str(folder), "environment": dict(environment)}
        with Path(os.devnull).open("rb") as nothing:
            descriptors = [nothing.fileno(), theirs_out, theirs_err, theirs_status]
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
        for descriptor in (theirs_out, theirs_err, theirs_status):
            os.close(descriptor)
        return Fork(words, out, err, status)


@cache
def fork_server(library_path: str | None = None) -> ForkServer:
    """Return this process's fork server, whose programs find libraries there."""
    inherited = {name: value for name, value in os.environ.items() if name != LIBRARY_PATH}
    return ForkServer(inherited if library_path is None else {**inherited, LIBRARY_PATH: library_path})


def start(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
    """Start what `python *words` would in that folder and environment; a folder with a pipeline of its own gets a fresh Python."""
    if (folder / "pipeline").resolve() == ROOT / "pipeline":
        return fork_server(environment.get(LIBRARY_PATH)).start(words, folder, environment)
    command, pipe = [sys.executable, *words], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


# In the fork server.


def serve(orders: socket.socket) -> None:
    """Fork for each order and report each end, until nobody can order any more. In a fork this returns to the caller."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    status_of: dict[int, int] = {}
    while True:
        ready = select.select([orders.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            report_ends(status_of)
        if orders.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(orders, MESSAGE_BYTES, DESCRIPTORS)
            if not message:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                for descriptor in (woken, wake, *status_of.values()):
                    os.close(descriptor)
                orders.close()
                become(json.loads(message), descriptors)
                return
            status_of[pid] = descriptors.pop()
            os.write(status_of[pid], f"{pid}\n".encode())
            for descriptor in descriptors:
                os.close(descriptor)


def report_ends(status_of: dict[int, int]) -> None:
    """Write the exit code of each fork that has ended where its starter reads it."""
    while status_of:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = status_of.pop(pid)
        with suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(descriptor, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.close(descriptor)


def become(order: dict[str, Any], descriptors: list[int]) -> None:
    """Take over the order's folder, environment, output and signals, as a fresh process has them; then run its program."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.path[0] = order["folder"]
    (kind, program), words = order["words"][:2], order["words"][2:]
    sys.argv = [kind, *words]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


def build(model: type[BaseModel]) -> None:
    """Build the validators of all models below this one, which a command builds when it needs them."""
    for kind in model.__subclasses__():
        if kind.__module__.startswith("pipeline."):
            kind.model_rebuild()
        build(kind)


def main(descriptor: int) -> None:
    """Import what commands import, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import pipeline

    for name in (*LIBRARIES, *(module.name for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."))):
        importlib.import_module(name)
    build(BaseModel)
    templates = Path(tempfile.mkdtemp(prefix="templates-"))
    compile_once(templates)
    gc.collect()
    gc.freeze()
    own = os.getpid()
    try:
        serve(socket.socket(fileno=descriptor))
    finally:
        if os.getpid() == own:
            shutil.rmtree(templates)


if __name__ == "__main__":
    main(int(sys.argv[1]))
