"""The whole pipeline on a real vLLM server. The tests build on one another and run in this order."""

import json
import os
import signal
import time
import urllib.request
from dataclasses import replace

import pytest

from benchmarks.clients import Installed, Job, NotMeasuredError, run, vllm_bench, work
from tests.e2e.conftest import EAGER, PATIENCE_S, Project

MEASURING = ("test-router", "test-determinism", "bench", "measure-vram")
STAGES = ("check-gpu", "install", "download-model", "serve", *MEASURING, "report")


def wait_for_log(project: Project, text: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until the current launch's log holds `text`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        launch = project.launch()
        if launch and text in (project.root / launch["log"]).read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.2)
    pytest.fail(f"the log never said {text!r}")


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
    bench = project.record("bench")["data"]
    assert all(count["client"] == count["server"] for count in bench["ledger"]), bench["ledger"]
    assert (bench["cold_hit_tokens"], bench["warm_hit_tokens"] > 0) == (0, True)
    assert all(check["server_ms"] is not None for check in bench["means"])


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
    code, output = project.run("serve", *EAGER)
    assert code == 0, output
    base = f"http://127.0.0.1:{project.port}"
    assert f"{base}/v1" in output
    with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as answer:
        assert json.load(answer)["data"][0]["id"] == "SmolLM2-135M-Instruct"
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the opposite of hot?"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert "cold" in json.load(answer)["choices"][0]["message"]["content"]
    assert "answers" in project.run("status")[1]


def test_a_stage_uses_the_running_server_and_leaves_it(project: Project) -> None:
    before = project.launch()
    code, output = project.run("test-determinism", "--force", *EAGER)
    assert code == 0, output
    assert project.launch() == before
    assert project.record("test-determinism")["data"]["figures"]["identical"]["n"] == 2, "prompts"


def test_the_remedy_is_proven_and_the_server_that_was_up_comes_back(project: Project) -> None:
    before, serve = project.launch(), project.record("serve")
    few = ["determinism.count=4", "determinism.runs=3", "determinism.max_tokens=32", "determinism.restart=false"]
    few += ["bench.decode_requests=2", "bench.concurrency=[4]", "bench.requests_per_level=4"]
    code, output = project.run("determinism-remedy", *EAGER, *(word for setting in few for word in ("--set", setting)))
    assert code == 0, output
    proof = project.record("determinism-remedy")["data"]
    without, remedied = proof["without"], proof["remedied"]
    assert proof["in_settings"], "the cpu profile has it"
    assert remedied["environment"] == {**without["environment"], "VLLM_CPU_ATTN_SPLIT_KV": "0"} != without["environment"]
    for side in (without, remedied):
        assert not side["simulated"]
        assert {"D1", "D5"} <= {arm["arm"] for arm in side["arms"] if arm["prompts"]}, output
        assert all(arm["prompts"] or arm["reason"] for arm in side["arms"]), output
        assert side["decode_tok_s"]["n"] == 2
    after = project.launch()
    assert before is not None
    assert after is not None
    assert after["id"] not in (before["id"], *without["launch_ids"], *remedied["launch_ids"])
    assert (after["stays"], after["command"], after["settings"]) == (True, before["command"], before["settings"])
    assert "answers" in project.run("status")[1]
    again = project.record("serve")
    assert again["because"] == serve["because"]
    assert again["data"]["handle"]["launch_id"] == after["id"]


def lies_within(value: float, others: list[float], share: float = 0.25) -> bool:
    """Tell whether the value is among the others, or off by no more than that share."""
    return min(others) * (1 - share) <= value <= max(others) * (1 + share)


def test_vllms_own_client_sees_the_same_server(project: Project) -> None:
    launch, folder = project.launch(), project.record("download-model")["data"]["folder"]
    assert launch is not None
    theirs = vllm_bench(Installed(project.root / "venv-vllm" / "bin" / "python", "vllm-cpu", "", project.root / folder))
    job = Job(f"http://127.0.0.1:{project.port}", "SmolLM2-135M-Instruct", requests=8, tokens=64, concurrency=1, first=0)
    before = work(replace(job, first=100))
    try:
        told = run(theirs, job, launch["pid"]).told
    except NotMeasuredError as error:
        if "exit code -4" not in str(error):
            raise
        pytest.skip("vLLM's client ends with SIGILL here: it is built for newer processors than the server")
    ours = (before, work(replace(job, first=200)))
    # One server, two clients: both share its cores, theirs takes more of them, and the machine itself is not always as fast.
    assert lies_within(told.tpot_ms, [each.tpot_ms for each in ours])
    assert lies_within(told.tok_s, [each.tok_s for each in ours])


def test_a_server_of_somebody_else_is_measured_by_its_endpoint(project: Project) -> None:
    before, base = project.launch(), f"http://127.0.0.1:{project.port}"
    code, output = project.run("bench", "--attach", base)
    assert code == 0, output
    server = project.record("serve")["data"]
    assert server["attached"] == base
    assert server["real"], "a real vLLM shows what the endpoint's proofs ask for"
    assert project.record("bench")["data"]["figures"]["answered"]["value"] == 100
    assert project.launch() == before, "neither stopped nor started"


def test_doctor_finds_nothing_to_mend_beside_our_own_server(project: Project) -> None:
    code, output = project.run("doctor")
    assert code == 0, output
    assert f"{project.port} is our own server's" in output


def test_stop_ends_it_and_says_so(project: Project) -> None:
    code, output = project.run("stop")
    assert code == 0, output
    assert f"port {project.port} is free" in output
    assert project.processes() == []
    assert project.run("stop")[1].strip() == "no server of ours is running"


def test_ctrl_c_during_the_start_leaves_nothing(project: Project) -> None:
    serve = project.start("serve", *EAGER)
    wait_for_log(project, "Initializing a V1 LLM engine")
    os.killpg(serve.pid, signal.SIGINT)
    output, _ = serve.communicate(timeout=PATIENCE_S)
    assert serve.returncode == 130, output
    assert "Traceback" not in output
    assert project.processes() == []
    assert project.launch() is None


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
