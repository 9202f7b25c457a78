"""Runs a cell's commands one after the other, and ends all that they started when its input closes.

The worker that starts this holds the other end of the input. However that ends (a cell that is cancelled, a worker that is
killed, a node that is lost), the input closes, the running command gets an interrupt, and what outlives that is killed.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

CANCELLED = 130
BUSY = 75  # EX_TEMPFAIL
POLL_S = 0.1
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: what the commands leave behind becomes our child
asked: list[int] = []  # signals that ask this process itself to end


class Cancelled(Exception):  # noqa: N818
    """The other end of the input has closed, or this process was asked to end."""


def main(order: dict[str, Any]) -> int:
    """Run the order's steps in the current folder; return the last one's exit code."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's workers block interrupts, and children inherit that
    for request in (signal.SIGINT, signal.SIGTERM):
        # Not ignored: commands would inherit that.
        signal.signal(request, lambda number, _frame: asked.append(number))
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    code = 0
    try:
        with Path(order["log"]).open("a", encoding="utf-8") as log, ExitStack() as held:
            wait_for(held, order["folder_lock"], order["patience_s"])
            for step in order["steps"]:
                with ExitStack() as shared:
                    if step["shared"]:
                        wait_for(shared, order["shared_lock"], None)
                    code = run(step["words"], log.fileno(), order["stop_s"])
    except Timeout:
        print("another run of this cell still holds its folder", file=sys.stderr)
        return BUSY
    except Cancelled:
        return CANCELLED
    finally:
        kill_rest()
    return code


def wait_for(held: ExitStack, path: str, patience_s: float | None) -> None:
    """Hold the lock; Timeout after `patience_s`, Cancelled when the input closes first."""
    lock, deadline = FileLock(path), None if patience_s is None else time.monotonic() + patience_s
    while True:
        try:
            held.enter_context(lock.acquire(timeout=0))
            return
        except Timeout:
            if deadline is not None and time.monotonic() > deadline:
                raise
            if closed(POLL_S):
                raise Cancelled from None


def run(words: list[str], log: int, stop_s: float) -> int:
    """Run a command; return its exit code, or end it and raise Cancelled when the input closes."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, restore_signals=True)
    while process.poll() is None:
        if closed(POLL_S):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(stop_s)
            raise Cancelled
    return process.returncode


def closed(wait_s: float) -> bool:
    """Tell whether it is time to end, waiting so long for the input to close."""
    ready, _, _ = select.select([0], [], [], wait_s)
    return bool(asked) or (bool(ready) and not os.read(0, 1))


def kill_rest() -> None:
    """Kill every process that descends from this one."""
    own = psutil.Process()
    while left := [child for child in own.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]:
        for child in left:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(left, timeout=5)


def in_child() -> int | None:
    """Fork; return None in the child, and in this process the child's exit code once it has ended.

    A Ray worker that ends kills its children. The guard is a grandchild, so that it lives to clean up.
    """
    child = os.fork()
    if not child:
        os.setsid()
        return None
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    code = in_child()
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))) if code is None else code)
