"""A server of somebody else: measured, and never started, stopped or passed off as ours."""

from tests.builders.project import SMALL, Project
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.integration.commands.reading import blocks


def test_all_on_a_server_of_somebody_else_installs_nothing_and_says_so(project: Project) -> None:
    with FakeVllm(Script(texts=('{"route": "chat"}',))) as fake:
        done = project.invoke("all", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert done.returncode == 2, f"its memory is not ours to measure: {done.stdout} {done.stderr}"
        here = ("--set", f"attach.url={fake.base_url}", "--profile", "cpu", *SMALL)
        gates = project.invoke("gates", *here)
        assert (gates.returncode, gates.stdout.splitlines()[-2]) == (done.returncode, project.record("report")["data"]["headline"])
        open_gates = [gate["gate"] for gate in project.record("report")["data"]["gates"] if gate["required"] and gate["verdict"] != "PASS"]
        assert f", launch {project.record('bench')['data']['launch_id']}" in blocks(gates.stdout)[open_gates[0]]["figure"]
        waived = [word for name in open_gates for word in ("--set", f"waivers.{name}={{reason: so small a run, expires: 2999-12-31}}")]
        rendering, gates = project.invoke("report", "--only", *here, *waived), project.invoke("gates", *here, *waived)
        assert (rendering.returncode, gates.returncode) == (0, 0)
        assert gates.stdout.splitlines()[-2] == project.record("report")["data"]["headline"]
        assert gates.stdout.splitlines()[-2].startswith("PASS: ")
        assert f"required gates pass, {len(open_gates)} " in gates.stdout
        assert "▫ measure-vram left out: the memory of the server" in done.stderr
        again = project.invoke("all", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert "· measure-vram unchanged" in again.stderr
        report = (project.root / "REPORT.md").read_text(encoding="utf-8")
        assert f"**Measured on the server at {fake.base_url}, which someone else runs" in report
        assert f"attach.url={fake.base_url}" in report, "the command to do it again"
        assert "What the endpoint shows of itself:" in report
        assert "was started in the project's folder" not in report
        assert f"the memory of the server at {fake.base_url} is not ours to measure" in report
        assert {path.name for path in (project.root / "artifacts").glob("*.json")} == {
            f"{stage}.json" for stage in ("check-gpu", "serve", "test-router", "test-determinism", "bench", "measure-vram", "report")
        } | {".code.json"}
        assert project.record("bench")["data"]["simulated"] is False
        assert project.says("status", "--set", f"attach.url={fake.base_url}")[0].startswith(f"server: attached to {fake.base_url}")
        assert "attached: neither started nor stopped by us" in project.says("serve", "--attach", fake.base_url)
        for task in (("restart",), ("serve", "--watch"), ("serve", "--foreground")):
            assert project.refuses(*task, "--set", f"attach.url={fake.base_url}")[0].startswith(
                f"error: the server at {fake.base_url} is not ours"
            )
        assert project.says("stop") == ["no server of ours is running"]


def test_a_mock_cannot_pass(project: Project) -> None:
    with FakeVllm(Script(owned_by="a mock")) as fake:
        project.invoke("bench", "--attach", fake.base_url, "--profile", "cpu", *SMALL)
        assert project.invoke("report", "--only", "--attach", fake.base_url).returncode != 0
        report = (project.root / "REPORT.md").read_text(encoding="utf-8")
        assert "SIMULATED" in report
        assert "✅ PASS" not in report


def test_a_wrong_address_is_one_line(project: Project) -> None:
    assert (
        project.refuses("bench", "--attach", "gpu-box:8000")[0]
        == "error: --set attach.url: attach.url: expected http://host:port or https://host"
    )
