"""The part of a load client that runs on a Ray node. It is sent there by value, so it imports the standard library alone.

The client is a process of its own, so that Ray does not disturb its stamps; it ends with the worker that holds its input.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROGRAM = ("-m", "pipeline.load.spread")
READY = b"ready\n"
DROPPED_VARIABLES = (
    "RAY_",
    "VLLM_POC__",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
)  # Ray's, another run's settings, and what Ray sets


class Holder:
    """A Ray actor that runs a load client on this node, one process per loop; `end` may be called during a loop."""

    def __init__(self, package: bytes) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-poc-client-"))
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            archive.extractall(self._folder, filter="data")
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    def where(self) -> dict[str, Any]:
        """Return the node, host, boot id and niceness of this process."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"node": node, "host": socket.gethostname(), "boot": boot, "niceness": os.getpriority(os.PRIO_PROCESS, 0)}

    def clock(self) -> int:
        """Return the current time of the clock that the client stamps with."""
        return time.perf_counter_ns()

    def start(self, job: bytes) -> str:
        """Start a client with its job; return why it is not ready, or "" if it is."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED_VARIABLES)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._starting:
            self._process = subprocess.Popen([sys.executable, *PROGRAM], cwd=self._folder, env=environment, start_new_session=True, **pipes)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(job).to_bytes(8, "big") + job)
            process.stdin.flush()
        except BrokenPipeError:
            pass
        return "" if process.stdout.readline() == READY else self._last_words()

    def go(self, start_ns: int) -> tuple[bytes, str]:
        """Let the client send from `start_ns` on, by this node's clock; return its pickled result and "", or nothing and why."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"%d\n" % start_ns)
            process.stdin.flush()
        except BrokenPipeError:
            pass
        result = process.stdout.read()
        return result, "" if result else self._last_words()

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        code = self._process.wait()
        return lines[-1][:300] if lines else f"exit code {code}"

    def end(self) -> None:
        """End the running client."""
        with self._starting:
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the client and remove its folder."""
        self.end()
        shutil.rmtree(self._folder, ignore_errors=True)
