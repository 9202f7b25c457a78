"""The memory sampler: a process of its own, from before the server starts until after it has ended.

`python -m pipeline.gpu.sampler FOLDER SAMPLES_PER_S` appends JSON lines to FOLDER/samples.jsonl. FOLDER/session holds the
id of the server's session once it has started. `t` is CLOCK_MONOTONIC, one clock for all processes of a boot. The sampler
ends when the session has been empty for a while, or when no session is named in time.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.gpu.sensors import Devices, Watcher
from pipeline.measure.units import MIB

WAIT_FOR_SESSION_S = 60.0
AFTER_END_S = 3.0
LIST_EVERY_S = 1.0  # walking /proc costs milliseconds
SHARE_EVERY_S = 1.0  # at most this often, and less often if PSS would take more than SHARE_AT_MOST of a core
SHARE_AT_MOST = 0.02  # the kernel walks every page to compute PSS, 10 ms per gigabyte: every 1.5 s for three gigabytes
OPEN_S = 8.0  # a driver without persistence mode takes seconds to start a device
HANGS_S = 1.0  # only a driver that is being reset takes longer for an NVML call
RETRY_S = 5.0  # a driver takes seconds to come back, and restarting NVML costs more than many samples


def main(folder: Path, samples_per_s: float) -> None:
    """Sample until the server has ended."""
    watcher = Watcher(lambda: Devices(time.monotonic(), RETRY_S), OPEN_S, HANGS_S)
    processes: list[psutil.Process] = []
    session: int | None = None
    began = last_seen = time.monotonic()
    listed_at, share_due = -LIST_EVERY_S, 0.0
    due = began
    with (folder / "samples.jsonl").open("a", encoding="utf-8", buffering=1) as out:
        while True:
            at = time.monotonic()
            session = session or read_session(folder / "session")
            sample: dict[str, Any] = {"t": round(at, 3)}
            if session is not None:
                if at - listed_at >= LIST_EVERY_S:
                    processes, listed_at = in_session(session), at
                proportional, cpu_start_s = at >= share_due, time.thread_time()
                sample.update(host_memory(processes, proportional))
                if proportional:
                    share_due = at + max(SHARE_EVERY_S, (time.thread_time() - cpu_start_s) / SHARE_AT_MOST)
            sample.update(watcher.sample(at, {process.pid for process in processes}))
            out.write(json.dumps(sample) + "\n")
            if session is None:
                if at - began > WAIT_FOR_SESSION_S:
                    return
            elif processes:
                last_seen = at
            elif at - max(last_seen, began) > AFTER_END_S:
                return
            due = max(due + 1 / samples_per_s, at)
            time.sleep(max(0.0, due - time.monotonic()))


def read_session(path: Path) -> int | None:
    """Return the session id in the file, or None while there is none."""
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="utf-8"))
    return None


def in_session(session: int) -> list[psutil.Process]:
    """Return the living processes of the session."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == session:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def host_memory(processes: list[psutil.Process], proportional: bool) -> dict[str, Any]:
    """Return the processes' summed RSS (shared pages counted once per process) and, if `proportional`, PSS (counted once)."""
    rss = pss = 0
    for process in processes:
        with suppress(psutil.Error):
            rss += process.memory_info().rss
            if proportional:
                pss += process.memory_full_info().pss
    sample = {"processes": len(processes), "rss_mib": round(rss / MIB, 1)}
    return {**sample, "pss_mib": round(pss / MIB, 1)} if proportional else sample


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
