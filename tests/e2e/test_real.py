"""The whole pipeline on a real vLLM server. The tests build on one another and run in this order."""

import http.server
import json
import os
import signal
import threading
import time
import urllib.request

import psutil
import pytest

from tests.e2e.conftest import Project

MEASURING = ("test-router", "test-determinism", "bench", "measure-vram")
EAGER = "serve.enforce_eager=true"  # starts sooner, on whatever processor
STAGES = ("check-gpu", "install", "download-model", "serve", *MEASURING, "report")


def wait_for_log(project: Project, text: str, timeout_s: float = 200) -> None:
    """Wait until the current launch's log holds `text`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        launch = project.launch()
        if launch and text in (project.root / launch["log"]).read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.2)
    pytest.fail(f"the log never said {text!r}")


def engine_of(pid: int) -> psutil.Process:
    """Return the EngineCore process below the API server `pid`."""
    return next(child for child in psutil.Process(pid).children(recursive=True) if "EngineCore" in " ".join(child.cmdline()))


def test_all_measures_a_real_server_and_reports(project: Project) -> None:
    code, output = project.run("all")
    assert code in (0, 1), output
    for stage in STAGES:
        assert project.record(stage)["status"] == "ok", output
    server = project.record("serve")["data"]
    assert server["real"]
    assert all(proof["holds"] for proof in server["proofs"])
    phases = server["handle"]["phases_s"]
    assert sum(phases.values()) == pytest.approx(server["handle"]["ready_s"], abs=0.1)
    assert {"interpreter", "engine", "weights", "compile", "KV cache", "HTTP"} <= set(phases)
    report = (project.root / "REPORT.md").read_text(encoding="utf-8")
    assert "TBD" not in report
    assert "SIMULATED:" not in report
    for gate in project.record("report")["data"]["gates"]:
        assert gate["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE") or not gate["required"], gate
    assert project.record("bench")["data"]["ledger"]["client_tokens"] == project.record("bench")["data"]["ledger"]["server_tokens"]


def test_all_left_nothing_running_and_says_so(project: Project) -> None:
    assert project.processes() == []
    assert project.launch() is None
    closing = project.record("stop")["data"]
    assert closing["port_free"]
    assert closing["killed"] == []
    assert closing["launch_id"] == project.record("bench")["data"]["launch_id"]


def test_constrained_answers_all_fit_the_schema(project: Project) -> None:
    figures = project.record("test-router")["data"]["figures"]
    raw = (project.root / "artifacts" / "raw" / "test-router.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in raw]
    valid = [answer for answer in answers if answer["arm"] == "constrained" and answer["failure"] is None]
    assert figures["constrained_schema_valid"]["value"] == pytest.approx(100 * len(valid) / figures["constrained_schema_valid"]["n"])
    assert all(isinstance(json.loads(answer["text"]), dict) for answer in valid)


def test_again_changes_nothing_and_starts_no_server(project: Project) -> None:
    launches, report = project.launches(), (project.root / "REPORT.md").read_bytes()
    code, output = project.run("all")
    assert code in (0, 1), output
    for stage in STAGES[1:]:
        assert f"· {stage} unchanged" in output
    assert project.launches() == launches
    assert (project.root / "REPORT.md").read_bytes() == report


def test_why_names_serve_and_the_reason(project: Project) -> None:
    code, output = project.run("why", "--set", "serve.port=8123")
    assert code == 0
    line = next(line for line in output.splitlines() if line.strip().startswith("serve "))
    assert "serve.port changed" in line
    assert "8123" in line


def test_a_broken_environment_is_rebuilt(project: Project) -> None:
    (project.root / "venv-vllm" / "lib" / "python3.11" / "site-packages" / "torch" / "__init__.py").unlink()
    code, output = project.run("install", "--force")
    assert code == 0, output
    assert "making venv-vllm" in output
    code, output = project.run("install", "--force")
    assert "is whole" in output


def test_a_lost_report_is_rendered_again_without_a_server(project: Project) -> None:
    launches = project.launches()
    (project.root / "REPORT.md").unlink()
    project.run("report", "--only")
    assert (project.root / "REPORT.md").exists()
    assert project.launches() == launches


def test_serve_leaves_a_server_that_curl_can_use(project: Project) -> None:
    code, output = project.run("serve")
    assert code == 0, output
    base = f"http://127.0.0.1:{project.port}"
    assert f"{base}/v1" in output
    with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as answer:
        assert json.load(answer)["data"][0]["id"] == "SmolLM2-135M-Instruct"
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is 2+2?"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "4" in json.load(answer)["choices"][0]["message"]["content"]
    assert "answers" in project.run("status")[1]


def test_a_stage_uses_the_running_server_and_leaves_it(project: Project) -> None:
    before = project.launch()
    code, output = project.run("test-determinism", "--force")
    assert code == 0, output
    assert project.launch() == before
    assert project.record("test-determinism")["data"]["figures"]["identical"]["n"] == 10  # 2 prompts × 5


def test_a_server_killed_while_measured_is_the_failure_that_is_reported(project: Project) -> None:
    launch = project.launch()
    assert launch is not None
    bench = project.start("bench", "--force")
    wait_for_record_gone(project, "bench")
    engine_of(launch["pid"]).kill()
    output, _ = bench.communicate(timeout=200)
    assert bench.returncode == 2, output
    assert "died while it was measured" in project.record("bench")["failure"]["message"], output


def wait_for_record_gone(project: Project, stage: str) -> None:
    """Wait until the stage runs (its old record is removed first), and a little into its requests."""
    path = project.root / "artifacts" / f"{stage}.json"
    deadline = time.monotonic() + 60
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)


def test_the_next_command_says_what_happened_and_cleans_up(project: Project) -> None:
    assert "the server died: " in project.run("status")[1]
    code, output = project.run("stop")
    assert code == 0, output
    assert project.processes() == []


def test_an_api_server_killed_hard_leaves_no_orphans_after_stop(project: Project) -> None:
    code, output = project.run("serve", "--set", EAGER)
    assert code == 0, output
    launch = project.launch()
    assert launch is not None
    os.kill(launch["pid"], signal.SIGKILL)
    code, output = project.run("stop")
    assert code == 0, output
    assert project.processes() == []


def test_ctrl_c_during_the_start_leaves_nothing(project: Project) -> None:
    serve = project.start("serve", "--set", EAGER)
    wait_for_log(project, "Initializing a V1 LLM engine")
    os.killpg(serve.pid, signal.SIGINT)
    output, _ = serve.communicate(timeout=60)
    assert serve.returncode == 130, output
    assert "Traceback" not in output
    assert project.processes() == []
    assert project.launch() is None


def test_a_taken_port_names_its_owner(project: Project) -> None:
    class Yes(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with http.server.ThreadingHTTPServer(("127.0.0.1", project.port), Yes) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        code, output = project.run("serve")
        foreign.shutdown()
    assert code == 2
    assert f"port {project.port} is taken by pid {os.getpid()}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["serve.max_model_len=100000"], "is more than the model's 8192"),
        (["serve.extra_args=[--no-such-flag]"], "vLLM does not take these arguments"),
        (["serve.env={VLLM_CPU_KVCACHE_SPACE: '9999'}", "serve.enforce_eager=true"], "too little free main memory"),
    ],
)
def test_a_start_that_cannot_succeed_is_diagnosed_from_the_real_log(project: Project, settings: list[str], says: str) -> None:
    code, output = project.run("serve", *(word for setting in settings for word in ("--set", setting)))
    assert code == 2
    assert says in output
    assert "Traceback" not in output
    assert project.processes() == []


def test_a_failed_start_is_a_report_that_says_so(project: Project) -> None:
    code, _ = project.run("report", "--only")
    assert code == 2
    report = (project.root / "REPORT.md").read_text(encoding="utf-8")
    assert "the server did not start" in report
    assert "TBD" not in report
    assert "was measured on another server than the one on record" in report
    assert "✅ PASS" not in report, "figures of an earlier server must not pass for one that did not start"
