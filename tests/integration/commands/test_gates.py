"""gates and waivers."""

from datetime import UTC, datetime

import pytest
import yaml

from pipeline.commands import session
from pipeline.commands.session import Options, Session
from tests.builders.project import Project
from tests.integration.commands.reading import blocks, rendered, verdicts

WAIVER = "waivers.throughput={reason: no card yet, expires: 2999-12-31}"


def test_gates_of_nothing_are_not_measured_and_leave_nothing_behind(project: Project) -> None:
    done = project.invoke("gates", "--profile", "cpu", "--set", "gates.throughput.target=40")
    assert done.returncode == 2
    told = blocks(done.stdout)
    path = project.root / "config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    names = list(yaml.safe_load("\n".join(lines))["gates"])
    assert list(told)[: len(names)] == names
    for name in names:
        assert told[name]["verdict"].startswith("NOT_MEASURED: ")
        assert told[name]["verdict"].endswith(" never ran")
        assert told[name]["figure"].endswith(", nothing on record")
        number = int(told[name]["gate"].partition(";")[0].removeprefix("config.yaml:"))
        assert lines[number - 1] == f"  {name}:"
    assert told["throughput"]["target"].startswith("> 40 tok/s")
    assert told["throughput"]["gate"].endswith("; target: --set gates.throughput.target")
    assert told["vram_usage"]["gate"].endswith(" (profile cpu)")
    assert told["vram_usage"]["target"].endswith("; not required")
    assert done.stdout.splitlines()[-2].startswith(
        "NOT MEASURED: 0 of 7 required gates pass; not required: 10 have no valid measurement. Open: "
    )
    assert done.stdout.splitlines()[-1] == "profile cpu (--profile)"
    assert not (project.root / "artifacts").exists()


def test_gates_say_what_the_report_says_of_a_crash_that_is_waived(project: Project) -> None:
    project.fail("bench", "the server died")
    words = ("--profile", "cpu", "--set", WAIVER)
    rendering, listing = project.invoke("report", "--only", *words), project.invoke("gates", *words)
    assert (rendering.returncode, listing.returncode) == (2, 2)
    waived = "NOT_MEASURED (waived until 2999-12-31: no card yet)"
    assert f"{waived}: the server died\n" in rendering.stdout
    assert f"{waived}: the server died" in dict(verdicts(rendered(project)))["Throughput"]
    told = blocks(listing.stdout)["throughput"]
    assert told["verdict"] == f"{waived}: the server died"
    assert told["waiver"] == "--set waivers.throughput"
    said = (
        "NOT MEASURED: 0 of 7 required gates pass, 1 is waived; not required: 10 have no valid measurement. bench failed: the server died."
    )
    assert said in rendering.stdout.splitlines()
    assert said in listing.stdout.splitlines()
    (gate,) = [gate for gate in project.record("report")["data"]["gates"] if gate["gate"] == "throughput"]
    assert (gate["verdict"], gate["waiver"]) == ("NOT_MEASURED", "waived until 2999-12-31: no card yet")


def test_gates_of_a_record_that_cannot_be_read(project: Project) -> None:
    project.fail("bench", "it died")
    (project.root / "artifacts" / "bench.json").write_text("{", encoding="utf-8")
    done = project.invoke("gates", "--profile", "cpu")
    assert done.returncode == 2
    assert "bench.json is not readable JSON" in blocks(done.stdout)["throughput"]["verdict"]
    (project.root / "artifacts" / "bench.json").write_text('{"schema_version": 99}', encoding="utf-8")
    assert "has record schema 99" in project.refuses("gates", "--profile", "cpu")[0]


def test_waiver_of_an_unknown_gate_is_one_line(untouched: Project) -> None:
    first, hint = untouched.refuses("gates", "--set", WAIVER.replace("throughput", "troughput"))
    assert first == "error: --set waivers.troughput: waivers.troughput: unknown gate; did you mean 'throughput'?"
    assert hint.startswith("  → gates: first_token_latency, ")


def test_the_report_is_stale_when_a_waiver_comes_or_expires_and_not_before(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(*sets: str) -> str:
        session = Session(project.root, Options("cpu", sets), silent=True)
        return session.pipeline.why(session.pipeline.stage("report"))

    project.invoke("report", "--only", "--profile", "cpu")
    assert why() == ""
    assert "waivers.in_force.throughput is new: {'reason': 'no card yet', 'expires': '2999-12-31'}" in why(WAIVER)
    project.invoke("report", "--only", "--profile", "cpu", "--set", WAIVER)
    for day, stale in ((datetime(2999, 12, 31, 23, 59, tzinfo=UTC), False), (datetime(3000, 1, 1, tzinfo=UTC), True)):
        monkeypatch.setattr(session, "now", lambda day=day: day)
        assert why(WAIVER).startswith("invocation.waivers.in_force.throughput is gone") == stale
        assert ("invocation.waivers.expired.throughput is new" in why(WAIVER)) == stale
        assert bool(why(WAIVER)) == stale
