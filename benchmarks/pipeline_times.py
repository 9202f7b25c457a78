"""Print how long the pipeline's own commands take, beside their limits and a peer's start-up.

In this checkout, `python -m benchmarks.pipeline_times` times `./inv --list`, and `./inv all` with nothing changed (run `./inv all`
first); `--force` starts the server and times `./inv all --force` on it; `--fresh` also clones HEAD into a temporary folder and times
`./inv all` there.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = 7


def seconds(command: list[str], folder: Path, runs: int) -> list[float]:
    """Return the wall time of each run in seconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True)
        times.append(time.perf_counter() - began)
    return times


def show(name: str, times: list[float], limit_s: float, against_s: float | None = None) -> None:
    """Print median, spread and the ratio to the limit (and to the peer)."""
    middle = statistics.median(times)
    peer = f"  {middle / against_s:.1f} × `inv --version`" if against_s else ""
    print(f"{name:<34}{middle:8.2f} s  ({min(times):.2f}–{max(times):.2f}, n={len(times)})  {middle / limit_s:.2f} of {limit_s:g} s{peer}")


def main() -> None:
    """Run the timings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="also time a fresh clone's ./inv all")
    parser.add_argument("--force", action="store_true", help="also time ./inv all --force with the server up")
    arguments = parser.parse_args()
    bare = statistics.median(seconds([sys.executable, "-m", "invoke", "--version"], ROOT, RUNS))
    print(f"{'bare Invoke, inv --version':<34}{bare:8.2f} s")
    show("./inv --list", seconds(["./inv", "--list"], ROOT, RUNS), 0.3, bare)
    states = subprocess.run(["./inv", "why"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    if all(line.endswith("unchanged") for line in states if line.startswith("  ") and "check-gpu" not in line):
        show("./inv all, nothing changed", seconds(["./inv", "all"], ROOT, RUNS), 0.6, bare)
    else:
        print("./inv all has something to do (`./inv why`); run it first, then this again")
    if arguments.force:
        subprocess.run(["./inv", "serve"], cwd=ROOT, capture_output=True, check=True)
        try:
            show("./inv all --force, server up", seconds(["./inv", "all", "--force"], ROOT, 1), 90)
        finally:
            subprocess.run(["./inv", "stop"], cwd=ROOT, capture_output=True, check=True)
    if arguments.fresh:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
            show("fresh clone, ./inv all", seconds(["./inv", "all"], Path(folder), 1), 240)


if __name__ == "__main__":
    main()
