"""A soak goes on where it was interrupted, on the same launch only, and keeps what it has."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.client.endpoint import Endpoint
from pipeline.commands.experiments import soak as soak_command
from pipeline.commands.session import Options
from pipeline.config.schema import VramConfig
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import SOAK_NOTE as NOTE
from pipeline.engine.record import Outcome, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, MeasureError, NothingAnsweredError, ServerError
from pipeline.experiments import soak as soaking
from pipeline.experiments.soak import parse_hours
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.memory import S_PER_H
from pipeline.server import state
from pipeline.stages.measure_vram import LaunchMemory, Load, MemoryUse, Soak, budget_of, memory_use
from pipeline.stages.serve import Server
from pipeline.terminal import Silent
from tests.fakes.environment import FakeProject, code_of, machine, simulated_server
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

SETTINGS = VramConfig(concurrency=2)
HOURS = 0.6 / S_PER_H
SLICE_S = 0.2


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A folder whose samples reach from a minute ago to a minute ahead, so that whatever moment is loaded has some."""
    (tmp_path / "server.log").touch()
    began = time.monotonic() - 60
    samples = [{"t": began + at * 0.02, "processes": 2, "rss_mib": 300.0, "pss_mib": 250.0} for at in range(6000)]
    (tmp_path / "samples.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    return Workspace(tmp_path, Silent())


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm(Script(inter_token_s=0.001)) as made:
        yield made


@pytest.fixture
def server(fake: FakeVllm, workspace: Workspace) -> Server:
    return simulated_server(fake, workspace)


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a minute would make every test as long."""
    monkeypatch.setattr(soaking, "SLICE_S", SLICE_S)


def soak(
    server: Server, workspace: Workspace, hours: float = HOURS, anew: bool = False, seen: Callable[[Soak], None] = lambda _: None
) -> Soak:
    return soaking.soak(SETTINGS, hours, anew, machine(), server, workspace, seen)


def on_record(workspace: Workspace) -> Soak:
    outcome: Outcome[Soak] = Store(workspace.artifacts).outcome(NOTE, Soak)
    assert outcome.data is not None
    return outcome.data


def interrupt(_: Soak) -> None:
    """Do what Ctrl-C does, after the first record."""
    raise KeyboardInterrupt


def kill(_: Soak) -> None:
    """End without a last word, as a SIGKILL would."""
    raise SystemExit


def test_a_soak_writes_its_record_again_and_again(server: Server, workspace: Workspace, fake: FakeVllm) -> None:
    seen: list[tuple[str, float]] = []
    made = soak(server, workspace, seen=lambda each: seen.append((on_record(workspace).state, each.load.seconds)))
    assert [state for state, _ in seen][-1] == "complete"
    assert [state for state, _ in seen][:2] == ["running", "running"]
    assert [seconds for _, seconds in seen] == sorted(seconds for _, seconds in seen)
    assert made.load.seconds >= 0.6
    assert len(made.load.spans) == 1
    assert made.load.requests == len(fake.ledger.requests) > 0
    assert on_record(workspace).load == made.load
    assert made.figures["host_rss_peak_mib"].value == 300


@pytest.mark.parametrize(("ending", "left"), [(interrupt, "interrupted"), (kill, "running")])
def test_an_ended_soak_keeps_what_it_has_and_goes_on(
    ending: Callable[[Soak], None], left: str, server: Server, workspace: Workspace
) -> None:
    calls: list[Soak] = []

    def seen(made: Soak) -> None:
        calls.append(made)
        if len(calls) == 1:
            ending(made)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        soak(server, workspace, hours=3 * HOURS, seen=seen)
    before = on_record(workspace)
    assert before.state == left
    assert before.load.seconds > 0
    after = soak(server, workspace, hours=before.load.seconds / S_PER_H + HOURS)
    assert after.state == "complete"
    assert after.load.spans[0] == before.load.spans[0]
    assert len(after.load.spans) == 2
    assert after.load.seconds >= before.load.seconds + 0.6
    assert after.load.requests > before.load.requests
    assert list(workspace.artifacts.glob("soak-*")) == []


def test_after_a_day_a_minute_costs_a_minutes_lines(server: Server, workspace: Workspace) -> None:
    path, day_s = workspace.root / "samples.jsonl", 24 * S_PER_H
    line = '{{"t": {at}.0, "processes": 2, "rss_mib": 300.0, "gpu_used_mib": [900.0]}}\n'
    path.write_text('{"t": -1.0, "gpu_used_mib": [100.0]}\n' + "".join(line.format(at=at) for at in range(day_s)), encoding="utf-8")
    watch = LaunchMemory(server.handle, workspace)

    def made(end_s: float) -> MemoryUse:
        return memory_use(Load(spans=[(0.0, end_s)], requests=9, preempted=0), budget_of(SETTINGS), 0, machine(gpu=True), server, watch)

    assert made(day_s - 1).figures["vram_steady_mib"].value == 800
    assert watch.samples.lines == day_s + 1
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line.format(at=at).replace("900", "1900") for at in range(day_s, day_s + 60)))
    later = made(day_s + 59)
    assert watch.samples.lines == day_s + 1 + 60
    assert (later.figures["vram_peak_mib"].value, later.samples) == (1800, day_s + 61)


def test_a_complete_soak_puts_no_load_on_again_unless_more_is_asked(server: Server, workspace: Workspace, fake: FakeVllm) -> None:
    first = soak(server, workspace)
    sent = len(fake.ledger.requests)
    assert soak(server, workspace).load.spans == first.load.spans
    assert len(fake.ledger.requests) == sent
    longer = soak(server, workspace, hours=2 * HOURS)
    assert longer.load.seconds >= 1.2
    assert longer.load.spans[0] == first.load.spans[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"launch": "another"}, "launch changed: a-launch → another"),
        ({"anew": True}, "asked to"),
        ({"spoilt": True}, "the old record is of another form"),
    ],
)
def test_a_soak_that_cannot_go_on_keeps_the_old_record_and_says_so(
    change: dict[str, Any], why: str, server: Server, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    first = soak(server, workspace)
    path = Store(workspace.artifacts).path(NOTE)
    if change.get("spoilt"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        del raw["data"]["load"]
        path.write_text(json.dumps(raw), encoding="utf-8")
    old = path.read_text(encoding="utf-8")
    other = server.model_copy(update={"handle": server.handle.model_copy(update={"launch_id": change.get("launch", "a-launch")})})
    again = soak(other, Workspace(workspace.root), anew=change.get("anew", False))
    (kept,) = workspace.artifacts.glob("soak-*.json")
    assert f"soak: starting anew ({why}); the old record is kept as artifacts/{kept.name}" in capsys.readouterr().err
    assert kept.read_text(encoding="utf-8") == old
    assert again.load.spans[0][0] >= first.load.spans[-1][1]
    assert len(again.load.spans) == 1


def test_two_old_records_of_one_second_are_both_kept(server: Server, workspace: Workspace) -> None:
    soak(server, workspace)
    path = Store(workspace.artifacts).path(NOTE)
    text = path.read_text(encoding="utf-8")
    for _ in range(2):
        path.write_text(text, encoding="utf-8")
        soaking.begun(SETTINGS, server, True, workspace)
    assert len(list(workspace.artifacts.glob("soak-*.json"))) == 2


def test_a_soak_whose_server_answers_no_more_fails_with_what_it_has(server: Server, workspace: Workspace, fake: FakeVllm) -> None:
    def seen(made: Soak) -> None:
        fake.script = Script(status=503)

    with pytest.raises(NothingAnsweredError, match=r"soak: no request of the last 0\.\d+ s succeeded: HTTP 503"):
        soak(server, workspace, hours=1, seen=seen)  # however slow the machine, it is not over by then
    assert on_record(workspace).state == "failed"


def test_a_last_slice_too_short_for_a_request_is_no_failure(server: Server) -> None:
    load = Load(spans=[(0.0, 1.0)], requests=21, preempted=0)
    target = Endpoint(server.handle.base_url)
    assert soaking.answered(load, target, server.model, 2, 0.0, lambda _: None).requests == load.requests


def test_a_soak_whose_server_died_says_why(server: Server, workspace: Workspace) -> None:
    (workspace.root / "server.log").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", encoding="utf-8")
    died = psutil.Popen(["true"])
    created = state.created_s(died.pid)
    died.wait()
    dead = server.model_copy(update={"handle": server.handle.model_copy(update={"pid": died.pid, "created": created})})
    with pytest.raises(ServerError, match="died while it was measured: the GPU ran out of memory"):
        soak(dead, workspace)


def test_a_soak_without_samples_is_none(server: Server, workspace: Workspace) -> None:
    (workspace.root / "samples.jsonl").unlink()
    with pytest.raises(MeasureError, match="memory: no samples"):
        soak(server, workspace)


def test_a_soaks_prompts_do_not_repeat_after_an_interruption(server: Server, workspace: Workspace, fake: FakeVllm) -> None:
    soak(server, workspace)
    soak(server, workspace, hours=2 * HOURS)
    prompts = [request["messages"][-1]["content"] for request in fake.ledger.requests]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("vram", "host", "simulated", "verdict", "code"),
    [
        ((100.0, 3600), (0.0, 3600), False, "PASS", 0),
        ((0.0, 3600), (100.0, 3600), False, "FAIL", 1),
        ((100.0, 299), (100.0, 299), False, "INCONCLUSIVE", 1),
        (None, (100.0, 3600), False, "PASS", 0),
        (None, None, False, "NOT_MEASURED", 2),
        (None, (100.0, 3600), True, "SIMULATED", 2),
    ],
)
def test_the_verdict_is_on_the_gpus_memory_or_else_on_the_hosts(
    vram: tuple[float, int] | None,
    host: tuple[float, int] | None,
    simulated: bool,
    verdict: str,
    code: int,
    server: Server,
    workspace: Workspace,
) -> None:
    def figure(stable: tuple[float, int] | None) -> Figure:
        return Figure(value=stable[0], unit="%", n=stable[1]) if stable else not_measured("%", "no samples")

    made = soak(server, workspace)
    peak = Figure(value=4000, unit="MiB", n=9) if vram else not_measured("MiB", "no GPU")
    figures = {**made.figures, "vram_peak_mib": peak, "vram_stable": figure(vram), "host_rss_stable": figure(host)}
    judged = made.model_copy(update={"figures": figures, "simulated": simulated})
    assert soaking.verdict(judged).verdict == verdict
    assert soaking.lines(judged)[-1].startswith(f"stable: {verdict}")
    assert soaking.code(judged) == code


@pytest.mark.parametrize("hours", ["0", "-1", "x", "", "nan", "inf"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ConfigError, match="--hours: expected a number above 0, got"):
        parse_hours(hours)


def test_ctrl_c_in_the_middle_of_the_load_ends_it_with_what_it_has(server: Server, workspace: Workspace) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sent: list[float] = []

    def seen(made: Soak) -> None:
        if not sent:
            sent.append(made.load.seconds)
            signal.setitimer(signal.ITIMER_REAL, 0.05)

    caught = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            soak(server, workspace, hours=1, seen=seen)
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGALRM, caught)
    left = on_record(workspace)
    assert left.state == "interrupted"
    assert left.load.seconds > sent[0]
    assert left.asked_h == 1


# The command.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProject]:
    """A project whose server a command started and another one finds."""
    made = FakeProject(tmp_path)
    settings = made.settings()
    values = {"profile": "cpu", "profiles": {"cpu": {}}, "serve": settings.model_dump(mode="json"), "vram": {"concurrency": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    store = Store(made.workspace.artifacts)
    store.write("check-gpu", {}, now(), 1.0, made.machine)
    store.write("serve", {}, now(), 1.0, made.serve(settings))
    monkeypatch.setattr(Pipeline, "ensure", lambda *_, **__: [])
    yield made
    made.close()


def test_the_command_measures_and_stops_what_it_started(project: FakeProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(soak_command(project.root, Options(), f"{1 / S_PER_H}")) in (1, 2), "a second is too short for more"
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("soak complete: ")
    assert " of 0.000277778 h of load, " in said[0]
    assert any(line.startswith("  host memory (RSS), peak: ") for line in said)
    assert any(re.match(r"stable: (INCONCLUSIVE \(n = \d+, at least 300 needed|NOT_MEASURED \(.* too short)", line) for line in said)
    assert state.read(project.workspace) is None
    assert on_record(project.workspace).figures["host_rss_peak_mib"].n > 1


def test_the_command_leaves_a_server_that_serve_left_running(project: FakeProject) -> None:
    state.write(project.workspace, project.launch().model_copy(update={"stays": True}))
    soak_command(project.root, Options(), f"{0.5 / S_PER_H}")
    assert state.is_running(project.launch())


def test_an_interrupted_command_leaves_the_server_for_the_next(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(soaking, "answered", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            soak_command(project.root, Options(), "1")
    launch = project.launch()
    assert f"the server (pid {launch.pid}) runs on, so that the same command can go on with it" in capsys.readouterr().out
    assert state.is_running(launch)


def test_a_command_that_fails_stops_what_it_started(project: FakeProject) -> None:
    project.play(Script(status=503))
    with pytest.raises(NothingAnsweredError):
        soak_command(project.root, Options(), f"{0.5 / S_PER_H}")
    assert state.read(project.workspace) is None
