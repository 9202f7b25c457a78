"""Detection of a start that makes no progress, and of where its processes hang."""

import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.server import state
from pipeline.server.state import Launch

BUSY_SHARE = 0.05  # of one core: a waiting process polls, which takes some CPU time
DUMP_WAIT_S = 3.0
DUMP_BEGINS = "Fatal Python error: Aborted"
FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')


@dataclass
class Progress:
    """The last progress of a start: log bytes, CPU seconds and bytes read of the server's processes, at seconds since the start."""

    at_s: float = 0.0
    log_bytes: int = 0
    cpu_s: float = 0.0
    read_bytes: int = 0

    def idle_s(self, at_s: float, log_bytes: int, cpu_s: float, read_bytes: int) -> float:
        """Record the values observed at `at_s`; return the seconds since the last progress."""
        busy = cpu_s - self.cpu_s > BUSY_SHARE * (at_s - self.at_s)
        if log_bytes != self.log_bytes or read_bytes != self.read_bytes or busy:
            self.at_s, self.log_bytes, self.cpu_s, self.read_bytes = at_s, log_bytes, cpu_s, read_bytes
        return at_s - self.at_s


def work_done(launch: Launch) -> tuple[float, int]:
    """Return (CPU seconds, bytes read from disk) of the launch's living processes."""
    cpu_s, read_bytes = 0.0, 0
    for process in state.members(launch):
        with suppress(psutil.Error):
            times = process.cpu_times()
            cpu_s += times.user + times.system
            read_bytes += process.io_counters().read_bytes
    return cpu_s, read_bytes


def stacks(launch: Launch, log: Path) -> list[str]:
    """Abort the launch's processes, whose fault handler writes their stacks to the log; return the innermost frame of each."""
    size = log.stat().st_size
    members = state.members(launch)
    for process in members:
        with suppress(psutil.Error):
            process.rlimit(psutil.RLIMIT_CORE, (0, 0))  # no core dump, which could take gigabytes
            process.send_signal(signal.SIGABRT)
            process.send_signal(signal.SIGCONT)  # a stopped process handles SIGABRT only once it continues
    deadline = time.monotonic() + DUMP_WAIT_S
    while state.members(launch) and time.monotonic() < deadline:
        time.sleep(0.1)
    with log.open("rb") as file:
        file.seek(size)
        return innermost_frames(file.read().decode("utf-8", errors="replace"))


def innermost_frames(dump: str) -> list[str]:
    """Return the innermost frame of each process's main thread, which the fault handler writes last."""
    frames = []
    for stack in dump.split(DUMP_BEGINS)[1:]:
        threads = re.split(r"(?m)^(?:Current thread|Thread) 0x\w+.*$", stack)[1:]
        frame = next((match for thread in reversed(threads) if (match := FRAME.search(thread))), None)
        if frame and not frame["file"].endswith("resource_tracker.py"):  # Python's own helper, which always waits
            frames.append(f"{frame['function']} ({'/'.join(Path(frame['file']).parts[-3:])}:{frame['line']})")
    return frames
