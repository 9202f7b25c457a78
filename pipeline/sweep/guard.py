"""Run a cell's commands one after the other, and end everything they started when the input closes.

The worker that starts this process holds the other end of the input. However the worker ends (the cell is cancelled, the worker
killed, the node lost), the input closes: the running command gets an interrupt, and whatever outlives that is killed.
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
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of the commands become our children
end_signals: list[int] = []  # the signals that asked this process to end


class Cancelled(Exception):  # noqa: N818
    """The input was closed, or this process got a signal to end."""


def main(order: dict[str, Any]) -> int:
    """Run the order's steps in the current folder; return the exit code of the last one."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's workers block interrupts, and children inherit that
    for end_signal in (signal.SIGINT, signal.SIGTERM):
        # A handler, because the commands would inherit SIG_IGN.
        signal.signal(end_signal, lambda number, _frame: end_signals.append(number))
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    if order.get("cores"):
        os.sched_setaffinity(0, order["cores"])  # inherited by all that is started here: server, sampler, load clients
    code = 0
    try:
        with Path(order["log"]).open("a", encoding="utf-8") as log, ExitStack() as folder_lock:
            wait_for(folder_lock, order["folder_lock"], order["patience_s"])
            for step in order["steps"]:
                with ExitStack() as shared_lock:
                    if step["shared"]:
                        wait_for(shared_lock, order["shared_lock"], None)
                    code = run(step["words"], log.fileno(), order["stop_s"])
    except Timeout:
        print("another run of this cell still holds its folder", file=sys.stderr)
        return BUSY
    except Cancelled:
        return CANCELLED
    finally:
        kill_rest()
    return code


def wait_for(stack: ExitStack, path: str, patience_s: float | None) -> None:
    """Acquire the lock; Timeout after `patience_s`, Cancelled if the input closes first."""
    lock, deadline = FileLock(path), None if patience_s is None else time.monotonic() + patience_s
    while True:
        try:
            stack.enter_context(lock.acquire(timeout=0))
            return
        except Timeout:
            if deadline is not None and time.monotonic() > deadline:
                raise
            if closed(POLL_S):
                raise Cancelled from None


def run(words: list[str], log: int, stop_s: float) -> int:
    """Run a command and return its exit code; if the input closes, end it and raise Cancelled."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, restore_signals=True)
    while process.poll() is None:
        if closed(POLL_S):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(stop_s)
            raise Cancelled
    return process.returncode


def closed(wait_s: float) -> bool:
    """Wait up to `wait_s` for the input to close; tell whether this process should end."""
    ready, _, _ = select.select([0], [], [], wait_s)
    return bool(end_signals) or (bool(ready) and not os.read(0, 1))


def kill_rest() -> None:
    """Kill every descendant of this process."""
    this_process = psutil.Process()
    while survivors := [child for child in this_process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]:
        for child in survivors:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(survivors, timeout=5)


def in_child() -> int | None:
    """Fork; return None in the child, and in the parent the child's exit code once it has ended.

    A Ray worker that ends kills its children. The guard is a grandchild, so it lives to clean up.
    """
    child = os.fork()
    if not child:
        os.setsid()
        return None
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    code = in_child()
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))) if code is None else code)
