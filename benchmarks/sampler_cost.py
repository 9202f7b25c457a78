"""The cost of the memory sampler: its share of a core at 5 Hz beside a tree of processes, against its limit of 1 %.

`python -m benchmarks.sampler_cost [MiB] [seconds]` starts three processes that hold this much memory each (1024 MiB) and measures
the sampler for this long (60 s), without a GPU and with a simulated one, from the NVML stand-in of the tests. The stand-in answers
immediately, unlike a driver, so the second figure covers only our own code and pynvml.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.fakes.nvml import RTX_4050, SYSTEM, FakeNvml

ROOT = Path(__file__).resolve().parents[1]
LIMIT_PERCENT = 1.0
SAMPLES_PER_S = 5.0
CHILDREN = 2
TREE = """
import os, sys, time
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        break
held = bytearray(int(sys.argv[1]) << 20)
held[::4096] = b"x" * len(held[::4096])
time.sleep(10**6)
"""


def cpu_s(pid: int) -> float:
    """Return the CPU time of a single-threaded process in seconds, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def tree(mib: int) -> psutil.Popen:
    """Start the processes in a session of their own and return the leader once all hold their memory."""
    leader = psutil.Popen([sys.executable, "-c", TREE, str(mib), str(CHILDREN)], start_new_session=True)
    while sum(process.memory_info().rss >= mib << 20 for process in (leader, *leader.children())) <= CHILDREN:
        time.sleep(0.1)
    return leader


def measured(session: int, seconds: float, environment: Mapping[str, str]) -> tuple[float, float, int]:
    """Return (CPU seconds of the start, percent of a core afterwards, samples) of a sampler in this environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "session").write_text(str(session), encoding="utf-8")
        words = [sys.executable, "-m", "pipeline.gpu.sampler", name, str(SAMPLES_PER_S)]
        sampler = subprocess.Popen(words, cwd=ROOT, env=dict(environment))
        try:
            samples = folder / "samples.jsonl"
            while not (samples.exists() and samples.stat().st_size):
                time.sleep(0.01)
            started, began = cpu_s(sampler.pid), time.monotonic()
            time.sleep(seconds)
            used_s, took_s = cpu_s(sampler.pid) - started, time.monotonic() - began
            return started, 100 * used_s / took_s, len(samples.read_text(encoding="utf-8").splitlines())
        finally:
            sampler.kill()
            sampler.wait()


def main() -> None:
    """Print a row for each arm."""
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    print(f"{CHILDREN + 1} processes of {mib} MiB each, {len(psutil.pids())} on the machine, {seconds:g} s at {SAMPLES_PER_S:g} Hz\n")
    print("| sampler | samples | CPU of its start (s) | share of a core | limit |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        nvml = FakeNvml(Path(name))
        nvml.play(SYSTEM + RTX_4050)
        leader = tree(mib)
        members = [leader, *leader.children()]
        try:
            for arm, environment in (("host only", os.environ), ("with a stand-in GPU", nvml.environment())):
                start_s, percent, samples = measured(leader.pid, seconds, environment)
                verdict = "met" if percent < LIMIT_PERCENT else "MISSED"
                print(f"| {arm} | {samples} | {start_s:.2f} | {percent:.2f} % | < {LIMIT_PERCENT:g} %: {verdict} |", flush=True)
        finally:
            for member in members:
                member.kill()
            psutil.wait_procs(members, timeout=10)


if __name__ == "__main__":
    main()
