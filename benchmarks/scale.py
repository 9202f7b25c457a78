"""How cost grows with requests, concurrency, clients, kept runs, cells and nodes, and the limit of each part.

`python -m benchmarks.scale [parts]` measures on this machine, each size in its own process. Beyond what its cores allow it simulates,
with a service law that is fitted to the measurements and stated. `--write` puts the results of all parts into benchmarks/scale.md.
Parts: requests, concurrency, stamps, runs, workers, sweep (8 minutes in all).

The ratio of growth is the cost per unit divided by that at the size before: 1 is linear. SIMULATED marks what was not measured.
"""

import argparse
import gzip
import json
import math
import os
import pickle
import platform
import random
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from benchmarks.clients import busy_s, children_s, truth
from pipeline.client.answer import Answer
from pipeline.client.payloads import streamed
from pipeline.load.calibration import EACH_MS, FIRST_MS, MOST_CHUNKS_S, STUB_MODEL, TRIES, stub
from pipeline.load.clocks import Clock, by_ours
from pipeline.load.generator import closed_loop, uncollected
from pipeline.measure.statistics import quantile

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "scale.md"
TIMEOUT_S = 120.0
REQUESTS = (100, 1_000, 10_000, 100_000)
REQUEST_TOKENS, REQUEST_CONCURRENCY = 8, 32
CONCURRENCIES = (1, 4, 16, 64, 256, 1024, 4096)
RATES, RATE_CONCURRENCY, RATE_S = (800, 1_600, 3_200, 6_400, 12_800, 25_600), 64, 4.0
BUDGET_MS = 1.0  # bench.client_delay_ms
STAMP_CHUNKS = 64
RUNS = (1, 10, 100, 1_000)
CELLS, NODES = (1, 2, 4, 8), (1, 2, 4)
CLIENTS, SIMULATED_CLIENTS = (1, 2, 4), (1, 2, 4, 8, 16, 32, 64)
SIMULATED_NODES = (1, 4, 16, 64, 256, 1024, 4096)
STEP_MS = 20.0  # step of a server that sends a token to every request at once
MEMORY_MIB = 1024.0  # limit of one client process
HISTORY_S, REPORT_S = 1.0, 10.0
CELL_S = 300.0  # a short cell
SHARE = 0.1  # of the time that may be overhead
EVENTS = 100_000  # per simulation
Point = tuple[float, float]


# The laws. Pure.


def line(points: Sequence[Point]) -> Point:
    """Return (a, b) of y = a + b x by least squares of the relative errors, so that small sizes count as much as large ones."""
    weights = [1 / max(y, 1e-12) ** 2 for _, y in points]
    total = sum(weights)
    at = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    level = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - at) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    b = sum(w * (x - at) * (y - level) for w, (x, y) in zip(weights, points, strict=True)) / spread
    return level - b * at, b


def growth(points: Sequence[Point]) -> list[float | None]:
    """Return for each point the cost per unit divided by that of the point before; None for the first."""
    return [None, *((y / before_y) / (x / before_x) for (before_x, before_y), (x, y) in pairwise(points))]


def crossing(points: Sequence[Point], limit: float) -> float | None:
    """Return the x at which the points first exceed the limit, interpolated linearly in the logarithms; None if they never do."""
    for (before_x, before_y), (x, y) in pairwise(points):
        if before_y <= limit < y:
            share = (math.log(limit) - math.log(before_y)) / (math.log(y) - math.log(before_y))
            return math.exp(math.log(before_x) + share * (math.log(x) - math.log(before_x)))
    return points[0][0] if points and points[0][1] > limit else None


def reached(law: Point, limit: float) -> float:
    """Return the x at which the law a + b x reaches the limit; infinity if the law does not grow."""
    return (limit - law[0]) / law[1] if law[1] > 0 else math.inf


def waits_ms(rate_per_s: float, service_us: float, events: int = EVENTS, seed: int = 1) -> list[float]:
    """Return the delay of each chunk's timestamp at one client with Poisson arrivals, first come, first served (Lindley's recursion)."""
    source, wait_s, service_s = random.Random(seed), 0.0, service_us / 1e6
    delays = []
    for _ in range(events):
        delays.append(1000 * (wait_s + service_s))
        wait_s = max(0.0, wait_s + service_s - source.expovariate(rate_per_s))
    return delays


def burst_ms(concurrency: int, clients: int, service_us: float, step_ms: float = STEP_MS, steps: int = 100) -> list[float]:
    """Return the delay of each chunk's timestamp when the chunks of all requests come at once, each step, and the clients share them."""
    own, backlog_ms, service_ms = math.ceil(concurrency / clients), 0.0, service_us / 1000
    delays = []
    for _ in range(steps):
        delays += [backlog_ms + service_ms * (number + 1) for number in range(own)]
        backlog_ms = max(0.0, backlog_ms + service_ms * own - step_ms)
    return delays


def holds_bursts(clients: int, service_us: float, concurrency: int) -> bool:
    """Tell whether the clients timestamp bursts of `concurrency` chunks within the budget."""
    return quantile(burst_ms(concurrency, clients, service_us), 0.95) <= BUDGET_MS


def highest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` for which `holds` is true, which must be monotonic; 0 for none."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def makespan_s(cells: int, nodes: int, cell_s: float, place_s: float) -> float:
    """Return the duration of a sweep whose driver places one cell after the other, each on the node that is free first."""
    free, driver_s = [0.0] * nodes, 0.0
    for number in range(cells):
        node = number % nodes  # all cells take the same time, so nodes become free in turn
        driver_s = max(driver_s, free[node]) + place_s
        free[node] = driver_s + cell_s
    return max(free)


# Jobs: each size in a process of its own.


def requests_job(size: int) -> dict[str, float]:
    """Send `size` requests to a stub that never waits."""
    payloads = [streamed(STUB_MODEL, [{"role": "user", "content": "x"}], REQUEST_TOKENS) for _ in range(size)]
    base_mib = peak_mib()
    with stub() as target:
        began, cpu = time.perf_counter(), time.process_time()
        answers, _ = closed_loop(target, payloads, REQUEST_CONCURRENCY, TIMEOUT_S)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert all(answer.ok for answer in answers)
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": peak_mib(), "more_mib": peak_mib() - base_mib}


def concurrency_job(size: int) -> dict[str, float]:
    """Hold `size` requests in flight, at a chunk rate that the stub can keep."""
    return paced_job(size, max(EACH_MS, 1000 * size / MOST_CHUNKS_S), 32 if size <= 64 else 8)


def rate_job(size: int) -> dict[str, float]:
    """Receive `size` chunks per second, if the stub can send them."""
    return paced_job(RATE_CONCURRENCY, 1000 * RATE_CONCURRENCY / size, math.ceil(RATE_S / 2 * size / RATE_CONCURRENCY))


def paced_job(in_flight: int, each_ms: float, tokens: int) -> dict[str, float]:
    """Hold requests in flight against a stub with a schedule, and measure how late chunks are timestamped."""
    payloads = [streamed(STUB_MODEL, [{"role": "user", "content": "x"}], tokens) for _ in range(max(32, 2 * in_flight))]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # the stub's, which inherits it
    with stub("--first-ms", f"{FIRST_MS:g}", "--each-ms", f"{each_ms:g}", "--role-with-first") as target:
        os.sched_setaffinity(0, cores[1:] or cores)
        began, cpu = time.perf_counter(), time.process_time()
        answers, _ = closed_loop(target, payloads, in_flight, TIMEOUT_S)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        sent_ms, _ = truth(target, len(payloads), by_arrivals=True)
    assert all(answer.ok for answer in answers)
    delays = [(at - int(sent)) / 1e6 for answer in answers for at, sent in zip(answer.chunk_ns, answer.text.split(), strict=True)]
    late_ms = mean((answer.first_ns - answer.sent_ns) / 1e6 for answer in answers) - sent_ms
    found = {"chunks": len(delays), "chunks_s": len(delays) / wall_s, "cpu_us": 1e6 * cpu_s / len(delays), "peak_mib": peak_mib()}
    return {**found, "ttft_error_ms": late_ms, "p50_ms": quantile(delays, 0.5), "p95_ms": quantile(delays, 0.95)}


def stamps_job(size: int) -> dict[str, float]:
    """Process the stamps of `size` requests as a run does: merge, write, read, figures, charts, comparison."""
    from pipeline.load.stamps import between_ms, compressed, first_ms, raw_answer, raw_line
    from pipeline.measure.comparison import by_samples
    from pipeline.measure.statistics import percentile_figure
    from pipeline.report.drawing.charts import Caption, Series, bins, distribution, histogram
    from pipeline.report.words import ENGLISH

    source = random.Random(1)
    answers = [synthetic_answer(number, source) for number in range(size)]
    pickled = pickle.dumps(answers)
    clock = Clock(10**12, 1000)
    steps: dict[str, Callable[[], Any]] = {
        "merge_s": lambda: merge_answers(pickled, clock),
        "write_s": lambda: compressed([raw_line("x c1", answer, 0) for answer in answers]),
    }
    done = {name: timed(step) for name, step in steps.items()}
    file = done["write_s"][1]
    read_s, answers_read = timed(lambda: [raw_answer(json.loads(text)) for text in gzip.decompress(file).splitlines()])
    first, gaps = first_ms(answers_read), between_ms(answers_read)
    figures_s, _ = timed(lambda: [percentile_figure(values, q, "ms") for values in (first, gaps) for q in (0.5, 0.95)])
    series = [Series("x", sorted(gaps))]
    edges = bins(series, series[0].values[-1])
    charts_s, _ = timed(lambda: [draw(Caption("x", "x", "x"), series, edges, ENGLISH) for draw in (histogram, distribution)])
    compare_s, _ = timed(lambda: [by_samples(first, first, q) for q in (0.5, 0.95)])
    sizes = {"told_bytes": len(pickled), "written_bytes": len(file), "peak_mib": peak_mib()}
    return {"merge_s": done["merge_s"][0], "write_s": done["write_s"][0], "read_s": read_s, "figures_s": figures_s, "charts_s": charts_s,
            "compare_s": compare_s, **sizes}  # fmt: skip


def merge_answers(pickled: bytes, clock: Clock) -> list[Answer]:
    """Return the answers that a client handed over, converted to our clock."""
    with uncollected():
        return [by_ours(answer, clock) for answer in pickle.loads(pickled)]


def synthetic_answer(number: int, source: random.Random) -> Answer:
    """Return a synthetic answer with gaps like a server's; only its size matters."""
    sent = number * 10**7
    stamps = [sent + 5 * 10**7]
    for _ in range(STAMP_CHUNKS - 1):
        stamps.append(stamps[-1] + int(source.gauss(13e6, 1e6)))
    return Answer(sent, stamps[0], stamps[-1], stamps, "x", "length", 37, 0, STAMP_CHUNKS, "", sent, stamps[0])


def runs_job(size: int) -> dict[str, float]:
    """List `size` kept runs, and find one of them."""
    from pipeline.engine.workspace import Workspace
    from pipeline.report.formats.document import text_of
    from pipeline.runs import history
    from pipeline.runs import kept as runs
    from pipeline.terminal import Silent
    from tests.builders.documents import document, figure, gate

    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace(Path(temporary), Silent())
        names = [f"bench.figure_{number}" for number in range(50)]
        for number in range(size):
            shown = document({name: figure(40.0, high=45.0) for name in names}, tuple(gate(f"g{one}") for one in range(10)), number=number)
            folder = runs.folder_of(workspace) / str(shown.run_id)
            folder.mkdir(parents=True)
            (folder / "report.json").write_text(text_of(shown), encoding="utf-8")
        list_s, rows = timed(lambda: history.data(workspace))
        find_s, _ = timed(lambda: runs.find("latest", workspace))
        assert len(rows) == size
    return {"list_s": list_s, "find_s": find_s, "peak_mib": peak_mib()}


JOBS: dict[str, Callable[[int], dict[str, float]]] = {
    "requests": requests_job,
    "concurrency": concurrency_job,
    "rate": rate_job,
    "stamps": stamps_job,
    "runs": runs_job,
}


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that the step took, and its result."""
    began = time.perf_counter()
    result = step()
    return time.perf_counter() - began, result


def peak_mib() -> float:
    """Return the peak memory of this process; getrusage would include what its parent had when this process was started."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(text_line.split()[1]) for text_line in text.splitlines() if text_line.startswith("VmHWM:")) / 1024


def measured(job: str, size: int) -> dict[str, float]:
    """Return the result of the job of that size, run as a separate program."""
    command = [sys.executable, "-m", "benchmarks.scale", "--job", job, "--size", str(size)]
    began, busy, before_s = time.perf_counter(), busy_s([]), children_s()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{job} {size}: {process.stderr.strip().splitlines()[-1] if process.stderr.strip() else process.returncode}")
    wall_s, own_s = time.perf_counter() - began, children_s() - before_s
    return {**json.loads(process.stdout), "others": max(0.0, busy_s([]) - busy - own_s) / wall_s / (os.cpu_count() or 1)}


def others(found: Iterable[Mapping[str, float]]) -> str:
    """Return the largest share of the cores that other processes used meanwhile, as a sentence."""
    return f"Others' work had at most {max(one['others'] for one in found):.0%} of the cores."


# The page.


class Page:
    """The printed lines, kept for writing."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.limits: list[tuple[str, str, str, str]] = []

    def say(self, *lines: str) -> None:
        """Print lines."""
        for text in lines:
            print(text, flush=True)
            self.lines.append(text)

    def prose(self, text: str) -> None:
        """Print a paragraph."""
        self.say("", *textwrap.wrap(text, 125, break_on_hyphens=False), "")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        self.say("", *table(head, rows), "")

    def limit(self, part: str, limit: str, where: str, then: str) -> None:
        """Record the limit of a part."""
        self.limits.append((part, limit, where, then))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def short(value: float | None) -> str:
    """Return a number as short text; a dash for none."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def about(value: float | None, most: float, what: str) -> str:
    """Return a limit with two digits, or the text that it was not reached."""
    if value is None or math.isinf(value):
        return f"not reached at {most:,.0f} {what}"
    digits = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
    return f"about {round(value / digits) * digits:,.0f} {what}" + (", by the law" if value > most else "")


def requests(page: Page) -> None:
    """Measure the client with a growing number of requests."""
    page.say("## Requests")
    found = {size: measured("requests", size) for size in REQUESTS}
    page.prose(
        f"One client, a stub that never waits, {REQUEST_TOKENS} tokens a request, concurrency {REQUEST_CONCURRENCY}; n = 1 a size. "
        f"{others(found.values())}"
    )
    cpu, memory = ([(float(size), one[name]) for size, one in found.items()] for name in ("cpu_s", "peak_mib"))
    rows = [
        [f"{size:,}", short(one["wall_s"]), short(one["cpu_s"]), short(1e6 * one["cpu_s"] / size), short(ratio), short(one["peak_mib"])]
        for (size, one), ratio in zip(found.items(), growth(cpu), strict=True)
    ]
    page.table(["requests", "wall (s)", "CPU (s)", "CPU a request (µs)", "ratio of growth", "peak memory (MiB)"], rows)
    law = line(memory)
    page.prose(f"Law: memory = {law[0]:.0f} MiB + {1024 * law[1]:.2f} KiB a request.")
    where = about(reached(law, MEMORY_MIB), REQUESTS[-1], "requests")
    page.limit("requests of one run", f"{MEMORY_MIB:g} MiB in one client", where, "several runs, which `compare` sets beside each other")


def concurrency(page: Page) -> None:
    """Measure the client with growing concurrency and rate, and simulate more clients."""
    page.say("## Concurrency and rate")
    found = {size: measure_within_budget("concurrency", size) for size in CONCURRENCIES}
    page.prose(
        f"One client, and on a core of its own a stub that sends each request a chunk every {EACH_MS:g} ms, slowed so that it sends "
        f"{MOST_CHUNKS_S:g} chunks/s at most; of at most {TRIES} tries a size the first within {BUDGET_MS:g} ms, else the best, as `bench` "
        "calibrates. Delay: from the stub's send to the client's stamp. TTFT error: the mean against the stub's own, from when it had the "
        f"request; one that waits in the stub's socket counts against the client. {others(found.values())}"
    )
    head = ["chunks/s", "CPU a chunk (µs)", "TTFT error (ms)", "delay p50 (ms)", "p95 (ms)", f"p95 ÷ {BUDGET_MS:g} ms"]
    page.table(
        ["concurrency", *head, "peak memory (MiB)"], [[*paced_cells(size, one), short(one["peak_mib"])] for size, one in found.items()]
    )
    late = crossing([(float(size), one["p95_ms"]) for size, one in found.items()], BUDGET_MS)
    more = "`bench` takes more client processes by itself, up to the cores; then `bench.ray_clients`"
    page.limit("concurrency of one client", f"delay p95 ≤ {BUDGET_MS:g} ms", about(late, CONCURRENCIES[-1], "in flight at that rate"), more)
    rates = {size: measure_within_budget("rate", size) for size in RATES}
    page.prose(
        f"The same at concurrency {RATE_CONCURRENCY} and a rising rate, as far as the stub sends it, for about "
        f"{RATE_S:g} s each. SIMULATED: "
        "Poisson arrivals at the rate that came, each holding the client for the CPU time that a chunk took; what was measured beyond that "
        f"is chunks that come together, and others' work. {others(rates.values())}"
    )
    rows = []
    for size, one in rates.items():
        simulated = quantile(waits_ms(one["chunks_s"], one["cpu_us"]), 0.95)
        rows.append([*paced_cells(size, one), short(simulated), f"{one['p95_ms'] / simulated:.1f}"])
    page.table(["wanted chunks/s", *head, "SIMULATED p95 (ms)", "measured ÷ SIMULATED"], rows)
    within = [one for one in rates.values() if one["p95_ms"] <= BUDGET_MS] or list(rates.values())[:1]
    fastest = max(rates.values(), key=lambda one: one["chunks_s"])["chunks_s"]
    came = crossing([(one["chunks_s"], one["p95_ms"]) for one in rates.values()], BUDGET_MS)
    service_us = within[-1]["cpu_us"]
    rate = 100 * highest(lambda hundreds: quantile(waits_ms(100 * hundreds, service_us), 0.95) <= BUDGET_MS, int(1e4 / service_us))
    widths = {clients: highest(partial(holds_bursts, clients, service_us), 100_000) for clients in SIMULATED_CLIENTS}
    measured_rate = came or fastest
    then = "more clients, each with its share; then replicas (`attach.replicas`)"
    where = f"{about(came, fastest, 'chunks/s')}; SIMULATED: {about(float(rate), rate, 'chunks/s')}"
    page.limit("rate of one client", f"delay p95 ≤ {BUDGET_MS:g} ms", where, then)
    where = f"SIMULATED: {about(float(widths[1]), widths[1], 'in flight')}"
    page.limit(f"bursts at one client, each {STEP_MS:g} ms", f"delay p95 ≤ {BUDGET_MS:g} ms", where, then)
    page.prose(
        f"Law of a client with a core of its own: a chunk holds it for {service_us:.0f} µs, as at the highest rate "
        f"within the limit. SIMULATED: "
        f"the highest rate of Poisson arrivals, and, where a server sends every request's chunk at once each {STEP_MS:g} ms, the highest "
        f"concurrency, at which p95 ≤ {BUDGET_MS:g} ms. The rate that was measured within it is "
        f"{measured_rate / rate:.2f} of the SIMULATED one; "
        "beside it stands what as many clients as the one that was measured would take."
    )
    rows = []
    for clients in SIMULATED_CLIENTS:
        width = widths[clients]
        rows.append([str(clients), short(measured_rate * clients), short(rate * clients), f"{width:,}"])
    page.table(["clients", "clients × measured chunks/s", "SIMULATED chunks/s", "SIMULATED concurrency, in bursts"], rows)


def measure_within_budget(job: str, size: int) -> dict[str, float]:
    """Return the first of a few tries within the budget, else the best: short noise of the machine must not count against the client."""
    results: list[dict[str, float]] = []
    while len(results) < TRIES and not (results and results[-1]["p95_ms"] <= BUDGET_MS):
        results.append(measured(job, size))
    return min(results, key=lambda one: one["p95_ms"])


def paced_cells(size: int, one: Mapping[str, float]) -> list[str]:
    """Return the cells about the delay of timestamps."""
    cells = [short(one[name]) for name in ("chunks_s", "cpu_us", "ttft_error_ms", "p50_ms", "p95_ms")]
    return [f"{size:,}", *cells, f"{one['p95_ms'] / BUDGET_MS:.2f}"]


def stamps(page: Page) -> None:
    """Measure the processing of a run's stamps."""
    page.say("## Stamps")
    found = {size: measured("stamps", size) for size in REQUESTS}
    page.prose(
        "Merging what clients hand over, writing and reading bench.jsonl.gz, figures, charts and comparison, of "
        "requests that are made up in "
        f"memory with {STAMP_CHUNKS} chunks each; n = 1 a size. Ratio of growth: of all of it. {others(found.values())}"
    )
    names = ["merge_s", "write_s", "read_s", "figures_s", "charts_s", "compare_s"]
    totals = [(float(size), sum(one[name] for name in names)) for size, one in found.items()]
    rows = []
    for (size, one), ratio in zip(found.items(), growth(totals), strict=True):
        mib = [one["told_bytes"] / 2**20, one["written_bytes"] / 2**20, one["peak_mib"]]
        rows.append([f"{size:,}", *(short(one[name]) for name in names), short(ratio), *(short(value) for value in mib)])
    head = ["requests", *(f"{name.removesuffix('_s')} (s)" for name in names), "ratio of growth"]
    page.table([*head, "handed over (MiB)", "file (MiB)", "peak memory (MiB)"], rows)
    memory = line([(float(size), one["peak_mib"]) for size, one in found.items()])
    page.prose(f"Law: memory = {memory[0]:.0f} MiB + {1024 * memory[1]:.1f} KiB a request.")
    where = about(reached(memory, MEMORY_MIB), REQUESTS[-1], "requests")
    page.limit("stamps of one run", f"{MEMORY_MIB:g} MiB at the leader", where, "several runs, which `compare` sets beside each other")
    report = [(float(size), one["read_s"] + one["figures_s"] + one["charts_s"]) for size, one in found.items()]
    where = about(crossing(report, REPORT_S) or reached(line(report), REPORT_S), REQUESTS[-1], "requests")
    page.limit(
        "report and compare", f"{REPORT_S:g} s for reading, figures, charts", where, "fewer requests: bounds narrow with their root alone"
    )
    merge = line([(float(size), one["merge_s"]) for size, one in found.items()])
    page.limit(
        "merging at the leader",
        f"{REPORT_S:g} s a loop",
        about(reached(merge, REPORT_S), REQUESTS[-1], "requests"),
        "shorter loops, of which each is merged alone",
    )


def kept_runs(page: Page) -> None:
    """Measure the cost of listing kept runs."""
    page.say("## Kept runs")
    found = {size: measured("runs", size) for size in RUNS}
    page.prose(
        "`history`, which reads every report, and finding the latest; reports of 50 figures and 10 gates; n = 1 a size. "
        f"{others(found.values())}"
    )
    lists = [(float(size), one["list_s"]) for size, one in found.items()]
    rows = [
        [f"{size:,}", short(one["list_s"]), short(ratio), short(1000 * one["find_s"]), short(one["peak_mib"])]
        for (size, one), ratio in zip(found.items(), growth(lists), strict=True)
    ]
    page.table(["kept runs", "history (s)", "ratio of growth", "find the latest (ms)", "peak memory (MiB)"], rows)
    where = about(crossing(lists, HISTORY_S) or reached(line(lists[1:]), HISTORY_S), RUNS[-1], "runs")
    page.limit("kept runs", f"{HISTORY_S:g} s for `history`", where, "`runs.keep` (20 by default) removes older ones")


@contextmanager
def cluster() -> Iterator[Any]:
    """Run a Ray cluster on this machine whose head has no cores."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        yield ray_cluster
    finally:
        ray_cluster.shutdown()


def add_nodes(ray_cluster: Any, count: int) -> None:
    """Add nodes of one core until the cluster has `count`."""
    while len(ray_cluster.worker_nodes) < count:
        ray_cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def workers(page: Page) -> None:
    """Measure the cost of load clients on Ray before and after a loop, and simulate more of them."""
    from pipeline.load.spread import LoadShare
    from pipeline.load.workers import Workers

    page.say("## Load clients on Ray")
    page.prose(
        "An empty loop: each client's process started, clocks compared before and after, results fetched; virtual "
        "nodes of one core on this "
        "machine, median of 5 loops. A clock's bound: by how much the clock of a client's host, which here is ours, may be wrong."
    )
    rows, points = [], []
    with cluster() as ray_cluster:
        for count in CLIENTS:
            add_nodes(ray_cluster, count)
            place_s, crew = timed(partial(Workers, ray_cluster.address, count, (), lambda _: None))
            with crew:
                parts = [LoadShare(("http://127.0.0.1:9",), [], 0, 1.0, None) for _ in range(count)]
                loops = [timed(partial(crew.run, parts, lambda: True)) for _ in range(5)]
            loop_s = quantile([took_s for took_s, _ in loops], 0.5)
            bounds = [one.clock.bound_ns / 1e6 for _, reports in loops for one in reports]
            points.append((float(count), loop_s))
            rows.append([str(count), short(place_s), short(loop_s), short(quantile(bounds, 0.5)), short(max(bounds))])
    page.table(["clients = nodes", "joining and placing (s)", "an empty loop (s)", "a clock's bound p50 (ms)", "highest (ms)"], rows)
    law = line(points)
    page.prose(
        f"Law: an empty loop takes {law[0]:.2f} s + {law[1]:.3f} s a client. Here the clients' processes all start on "
        f"this machine's cores, "
        "so the law is an upper bound for nodes with cores of their own."
    )
    page.table(["clients", "SIMULATED empty loop (s)", "÷ a loop of 60 s"], [
        [str(clients), short(law[0] + law[1] * clients), f"{(law[0] + law[1] * clients) / 60:.2f}"] for clients in SIMULATED_CLIENTS
    ])  # fmt: skip
    where = f"SIMULATED: {about(reached(law, SHARE * 60), CLIENTS[-1], 'clients')}"
    page.limit("load clients on Ray", "a tenth of a loop of 60 s", where, "longer loops; a `bench` for each group of replicas")


def sweep(page: Page) -> None:
    """Measure the cost of a cell besides its commands, and simulate more nodes."""
    from pipeline.sweep.placing import CellOrder, slots

    page.say("## Cells and nodes")
    page.prose(
        "Cells whose command is `python -c pass`, placed by Ray on virtual nodes of one core on this machine; n = 1 a row. Peer: the same "
        "command as a bare process, median of 9."
    )
    bare_s = quantile([timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))[0] for _ in range(9)], 0.5)
    rows, points, driver_s = [], [], []
    with cluster() as ray_cluster, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("tasks.py", "config.yaml", "pipeline", "templates", "suites", "requirements"):
            (root / name).symlink_to(ROOT / name)
        for nodes in NODES:
            add_nodes(ray_cluster, nodes)
            for cells in CELLS if nodes == 1 else CELLS[-1:]:
                wall_s, cpu_s = run_sweep(ray_cluster.address, root, cells)
                if nodes == 1:
                    points.append((float(cells), wall_s))
                driver_s.append(cpu_s / cells)
                rows.append(
                    [
                        str(nodes),
                        str(cells),
                        short(wall_s),
                        short(wall_s / cells),
                        short(wall_s / cells / bare_s),
                        short(1000 * cpu_s / cells),
                    ]
                )
    page.table(["nodes", "cells", "wall (s)", "a cell (s)", "÷ bare process", "driver's CPU a cell (ms)"], rows)
    law, place_s = line(points), max(driver_s)
    page.prose(
        f"Law of a node: {law[0]:.2f} s + {law[1]:.2f} s a cell beside its commands, {law[1] / CELL_S:.2%} of a cell of "
        f"{CELL_S:g} s; virtual "
        f"nodes share the cores, so it is an upper bound. Law of the driver: one cell after the other, "
        f"{1000 * place_s:.0f} ms of CPU each, "
        "and the choice among so many nodes, which is measured here. SIMULATED: 4 cells a node, "
        f"{CELL_S:g} s each; what Ray's own head takes is not in it."
    )
    simulated, efficiency = [], []
    for count in SIMULATED_NODES:
        alive, orders = [{"CPU": 8.0}] * count, [CellOrder("x", 0, {})] * (4 * count)
        choose_s = quantile([timed(partial(slots, alive, orders))[0] for _ in range(5)], 0.5)
        took_s = makespan_s(4 * count, count, CELL_S + law[1], place_s + choose_s)
        simulated.append([f"{count:,}", f"{4 * count:,}", short(1000 * choose_s), short(took_s), f"{4 * CELL_S / took_s:.3f}"])
        efficiency.append((float(count), took_s / (4 * CELL_S)))
    page.table(["nodes", "cells", "choosing (ms)", "SIMULATED wall (s)", "without overhead ÷ with"], simulated)
    where = f"SIMULATED: {about(crossing(efficiency, 1 / (1 - SHARE)), SIMULATED_NODES[-1], 'nodes')}"
    then = "a sweep for each part of the grid; `sweep.max_cells` (64) asks first"
    page.limit("nodes of one sweep", f"a tenth of the time, cells of {CELL_S:g} s", where, then)


def run_sweep(address: str, root: Path, cells: int) -> tuple[float, float]:
    """Return (wall s, the driver's CPU s) of `cells` cells, without joining the cluster."""
    from pipeline.sweep.placing import CellOrder, Ended, Listener, Nodes, Placing

    ended: list[Ended] = []
    step = {"words": ["{python}", "-c", "pass"], "shared": False}
    instructions = {"root": str(root), "local": "", "code": "", "environment": "venv-vllm", "steps": [step], "variables": {}}
    limits = {"patience_s": 60.0, "stop_s": 10.0, "most_bytes": 2**20}
    orders = [CellOrder(f"cell-{number}", 0, {"cell": f"cell-{number}", **instructions, **limits}) for number in range(cells)]
    (root / "artifacts" / "sweep").mkdir(parents=True, exist_ok=True)
    nodes = Nodes(address, 0, 128)
    try:
        cpu = time.process_time()
        listener = Listener(print, lambda _order, _where: None, lambda _order, how: ended.append(how))
        placing = Placing(nodes, root, 0, 10.0, listener)
        wall_s, _ = timed(lambda: placing.run(orders))
        cpu_s = time.process_time() - cpu
    finally:
        nodes.close()
    assert [how.code for how in ended] == [0] * cells, ended
    return wall_s, cpu_s


PARTS: Mapping[str, Callable[[Page], None]] = {
    "requests": requests,
    "concurrency": concurrency,
    "stamps": stamps,
    "runs": kept_runs,
    "workers": workers,
    "sweep": sweep,
}


def processor() -> str:
    """Return the processor's name."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return next((text_line.partition(":")[2].strip() for text_line in text.splitlines() if text_line.startswith("model name")), "unknown")


def main() -> None:
    """Run the named parts, or one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all without a name")
    parser.add_argument("--write", action="store_true", help="write what all parts print to benchmarks/scale.md")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if arguments.job:
        print(json.dumps(JOBS[arguments.job](arguments.size)))
        return
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if arguments.write and arguments.parts:
        parser.error("--write takes all parts")
    page = Page()
    memory_gib = psutil.virtual_memory().total / 2**30
    page.say(
        "# How cost grows", "", "Written by `.venv/bin/python -m benchmarks.scale --write`; its first lines define what is measured.", ""
    )
    page.say(
        f"{os.cpu_count()} cores of {processor()}, {memory_gib:.0f} GiB, Python {platform.python_version()}, {time.strftime('%Y-%m')}.", ""
    )
    began = time.perf_counter()
    for name in arguments.parts or PARTS:
        PARTS[name](page)
        page.say("")
    wall_s = time.perf_counter() - began
    page.say("## Where each part stops being enough")
    page.table(["part", "limit", "enough up to", "what takes over"], page.limits)
    page.prose(f"All of it took {wall_s:.0f} s.")
    if arguments.write:
        PAGE.write_text("\n".join(squeezed(page.lines)) + "\n", encoding="utf-8")


def squeezed(lines: Sequence[str]) -> list[str]:
    """Return the lines with consecutive empty lines merged."""
    return [text for number, text in enumerate(lines) if text or (number and lines[number - 1])]


if __name__ == "__main__":
    main()
