"""Faults provoked on the real server, and what the commands then said and left. `benchmarks/faults.py` prints them as a table."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil

from pipeline.client.control import Control
from pipeline.errors import MeasureError
from pipeline.vllm.metrics import REQUESTS_RUNNING
from tests.e2e.conftest import EAGER, PATIENCE_S, ROOT, Project

LOADED = ("measure-vram", "--force", "--set", "vram.load_s=120", *EAGER)
STAGES = ("check-gpu", "install", "download-model", "serve", "test-router", "test-determinism", "bench", "measure-vram", "report")
# What `all` measures is not the point where it is killed again and again.
FEW = ("router.cases=2", "determinism.count=1", "determinism.load=[]", "bench.concurrency=[1]", "bench.open_loop=[]", "vram.load_s=3")
BRIEF = (*EAGER, *(word for setting in FEW for word in ("--set", setting)))
OWN_WORKER = ("--set", "serve.distributed_executor_backend=mp")
CLOCK_STEP_S = -86400
ASKED_GIB = psutil.virtual_memory().total // 2**30 * 2


@dataclass(frozen=True)
class Seen:
    """What a fault led to: the telling line, the exit code, seconds from the fault to the command's end, and what was left.

    `left` counts processes after the command that cleans up; `fine` is what else the scenario wants. That the next start
    succeeds is shown by the next scenario.
    """

    fault: str
    said: str
    code: int
    after_s: float
    left: int
    fine: bool = True

    def row(self) -> str:
        """Return it as a row of a Markdown table."""
        said = self.said.replace("|", "\\|")
        return f"| {self.fault} | {said} | {self.code} | {self.after_s:.1f} | {self.left} |{'' if self.fine else ' NOT FINE'}"


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for `condition`; TimeoutError names what never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came: {what}")
        time.sleep(0.05)


def log_says(project: Project, text: str) -> bool:
    """Tell whether the current launch's log holds `text`."""
    launch = project.launch()
    return launch is not None and text in (project.root / launch["log"]).read_text(encoding="utf-8", errors="replace")


def in_flight(project: Project) -> float:
    """Return how many requests the server says that it works on."""
    try:
        return Control(f"http://127.0.0.1:{project.port}").metrics().get(REQUESTS_RUNNING, 0)
    except MeasureError:
        return 0


def strangers(project: Project) -> list[psutil.Process]:
    """Return the project's processes that are neither the current server's nor its sampler's."""
    running = project.launch()
    ours = (running["pid"], running["sampler_pid"]) if running else ()
    return [process for process in project.processes() if os.getsid(process.pid) not in ours]


def processes_of(project: Project) -> dict[str, psutil.Process]:
    """Return the server's processes by what they are."""
    launch = project.launch()
    assert launch is not None
    leader = psutil.Process(launch["pid"])
    found = {"API server": leader}
    for process in leader.children(recursive=True):
        title = re.match(r"VLLM::(\w+)", " ".join(process.cmdline()))
        if title:
            found[title[1]] = process
    return found


def telling(output: str, *words: str) -> str:
    """Return the first line of the output that holds one of the words; empty when none does."""
    return next((line.strip() for line in output.splitlines() if any(word in line for word in words)), "")


def start(project: Project, *settings: str) -> None:
    """Have a server up, whatever was before."""
    code, output = project.run("serve", *EAGER, *settings)
    assert code == 0, output


def killed_under_load(project: Project, which: str, how: signal.Signals, *settings: str) -> Seen:
    """Signal one process of a server that is being measured."""
    start(project, *settings)
    measuring = project.start(*LOADED, *settings)
    wait_for(lambda: in_flight(project) > 0, "its load")
    began = time.perf_counter()
    processes_of(project)[which].send_signal(how)
    output, _ = measuring.communicate(timeout=PATIENCE_S)
    after_s = time.perf_counter() - began
    project.run("stop")
    said = telling(output, "measure-vram failed")
    return Seen(f"{how.name} to the {which} while measured", said, measuring.returncode, after_s, len(project.processes()))


def killed_while_idle(project: Project, which: str) -> Seen:
    """Kill one process of a server that nobody uses, and ask for its status."""
    start(project)
    launch = project.launch()
    assert launch is not None
    began = time.perf_counter()
    processes_of(project)[which].kill()
    wait_for(lambda: not psutil.pid_exists(launch["pid"]), "the API server's end")
    after_s = time.perf_counter() - began
    code, output = project.run("status")
    project.run("stop")
    return Seen(f"SIGKILL to the idle {which}", telling(output, "died"), code, after_s, len(project.processes()))


def pipeline_killed_while_starting(project: Project) -> Seen:
    """SIGKILL `serve` while the server loads; the next `serve` cleans up and starts, and its server stays."""
    serve = project.start("serve", *EAGER)
    wait_for(lambda: log_says(project, "Initializing a V1 LLM engine"), "the engine")
    began = time.perf_counter()
    os.killpg(serve.pid, signal.SIGKILL)
    serve.communicate()
    code, output = project.run("serve", *EAGER)
    after_s = time.perf_counter() - began
    up = code == 0 and project.launch() is not None
    said = telling(output, "our earlier server")
    return Seen("SIGKILL to the pipeline while the server starts", said, code, after_s, len(strangers(project)), up)


def pipeline_killed_at_each_stage(project: Project) -> Seen:
    """SIGKILL `all` at the beginning of each stage in turn; then let one run through."""
    project.run("clean")
    began = time.perf_counter()
    for stage in STAGES:
        task = project.start("all", *BRIEF)
        assert task.stdout is not None
        for line in task.stdout:
            if line.startswith(f"▶ {stage}:"):
                break
        os.killpg(task.pid, signal.SIGKILL)
        task.communicate()
    code, output = project.run("all", *BRIEF)
    whole = all(project.record(stage)["status"] == "ok" for stage in STAGES)
    said = telling(output, "required gates pass")
    after_s = time.perf_counter() - began
    return Seen("SIGKILL to `all` at each of its 9 stages, then `all`", said, code, after_s, len(project.processes()), whole)


def two_at_once(project: Project) -> Seen:
    """Two `serve` from two terminals at the same moment; the server of one of them stays."""
    project.run("stop")
    began = time.perf_counter()
    tasks = [project.start("serve", *EAGER) for _ in range(2)]
    outputs = [task.communicate(timeout=PATIENCE_S)[0] for task in tasks]
    after_s = time.perf_counter() - began
    codes = sorted(task.returncode for task in tasks)
    said = telling("\n".join(outputs), "only one command can run in this folder")
    sessions = {os.getsid(process.pid) for process in project.processes()}
    up = codes == [0, 2] and len(sessions) == 2  # one server and its sampler
    return Seen("two `serve` at once", said, codes[-1], after_s, len(strangers(project)), up)


def foreign_server(project: Project) -> Seen:
    """A server on our port that answers 200 to everything."""

    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET  # noqa: N815 - http.server's name

    with ThreadingHTTPServer(("127.0.0.1", project.port), Yes) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        began = time.perf_counter()
        code, output = project.run("serve", *EAGER)
        after_s = time.perf_counter() - began
        foreign.shutdown()
    return Seen(
        "a server on the port that says 200 to everything", telling(output, "is taken by"), code, after_s, len(project.processes()), True
    )


def hang(project: Project) -> Seen:
    """Freeze the engine while it starts."""
    serve = project.start("serve", *EAGER, "--set", "serve.stall_timeout_s=10")
    wait_for(lambda: log_says(project, "Starting to load model"), "the engine")
    began = time.perf_counter()
    for process in processes_of(project).values():
        process.suspend()
    output, _ = serve.communicate(timeout=PATIENCE_S)
    after_s = time.perf_counter() - began
    said = telling(output, "hangs")
    return Seen("SIGSTOP while the model loads, stall_timeout_s = 10", said, serve.returncode, after_s, len(project.processes()))


def too_much_memory(project: Project) -> Seen:
    """Ask for more KV cache than the machine has, with the ladder allowed."""
    began = time.perf_counter()
    asked = ("--set", "serve.on_oom=fallback", "--set", f"serve.env={{VLLM_CPU_KVCACHE_SPACE: '{ASKED_GIB}'}}")
    code, output = project.run("serve", *EAGER, *asked)
    after_s = time.perf_counter() - began
    server = project.record("serve")["data"]
    project.run("stop")
    fine = bool(server and server["attempts"] and server["real"])
    said = telling(output, "trying again with")
    return Seen(f"{ASKED_GIB} GiB of KV cache asked for, on_oom = fallback", said, code, after_s, len(project.processes()), fine)


def crash_under_watch(project: Project) -> Seen:
    """Kill the engine of a server that `serve --watch` keeps running."""
    keeper = project.start("serve", "--watch", *EAGER)
    wait_for(lambda: (project.launch() or {}).get("stays"), "the server")
    first = project.launch()
    assert first is not None
    began = time.perf_counter()
    processes_of(project)["EngineCore"].kill()
    wait_for(lambda: (project.launch() or first)["id"] != first["id"] and (project.launch() or {}).get("stays"), "the next server")
    after_s = time.perf_counter() - began
    os.killpg(keeper.pid, signal.SIGINT)
    output, _ = keeper.communicate(timeout=PATIENCE_S)
    said = telling(output, "starting again")
    return Seen("SIGKILL to the EngineCore under `serve --watch`", said, keeper.returncode, after_s, len(project.processes()))


def clock_step(project: Project) -> Seen:
    """Set the clock back by a day, for our own processes, while the server is measured."""
    library = project.root / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(ROOT / "tests" / "fakes" / "clock.c"), "-ldl"], check=True)
    offset = project.root / "clock-offset"
    offset.write_text("0", encoding="utf-8")
    kept = dict(project.env)
    project.env |= {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(offset)}
    try:
        start(project)
        before = project.launch()
        measuring = project.start("bench", "--force", *EAGER)
        wait_for(lambda: not (project.root / "artifacts" / "bench.json").exists(), "the measurement")
        offset.write_text(str(CLOCK_STEP_S), encoding="utf-8")
        began = time.perf_counter()
        output, _ = measuring.communicate(timeout=PATIENCE_S)
        after_s = time.perf_counter() - began
        ours = project.launch() == before and "answers" in project.run("status")[1]
        figures = project.record("bench")["data"]["figures"]
        sane = all(0 < figures[name]["value"] < 1e5 for name in ("ttft_ms_p50", "tpot_ms_p50", "e2e_ms_p50"))
        project.run("stop")
    finally:
        project.env = kept
    said = telling(output, "bench made")
    return Seen("the clock set back by a day while measured", said, measuring.returncode, after_s, len(project.processes()), ours and sane)


# The server that a scenario leaves is the one that the next would have to start.
SCENARIOS: dict[str, Callable[[Project], Seen]] = {
    "pipeline-at-each-stage": pipeline_killed_at_each_stage,
    "two-at-once": two_at_once,
    "api-server-loaded": lambda project: killed_under_load(project, "API server", signal.SIGKILL),
    "engine-loaded": lambda project: killed_under_load(project, "EngineCore", signal.SIGKILL),
    "worker-loaded": lambda project: killed_under_load(project, "Worker", signal.SIGKILL, *OWN_WORKER),
    "terminated-loaded": lambda project: killed_under_load(project, "API server", signal.SIGTERM),
    "pipeline-starting": pipeline_killed_while_starting,
    "engine-idle": lambda project: killed_while_idle(project, "EngineCore"),
    "foreign-server": foreign_server,
    "hang": hang,
    "memory": too_much_memory,
    "watch": crash_under_watch,
    "clock": clock_step,
}
