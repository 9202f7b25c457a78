"""`calibrate-noise` with the fake in vLLM's place: the spread on record, the user's server, records and stamps as before."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands.experiments import calibrate_noise
from pipeline.commands.session import Options
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Store, write_atomic
from pipeline.errors import ConfigError, ServerError
from pipeline.experiments import noise
from pipeline.report.noise import NOISE_NOTE, RunNoise
from pipeline.server import state
from tests.fakes.environment import code_of
from tests.fakes.script import VERSION, Script
from tests.integration.experiments.test_remedy import NO_START, Project

ROOT = Path(__file__).resolve().parents[3]
BENCH = {"ttft_requests": 4, "warmup_requests": 1, "decode_requests": 2, "output_tokens": 4, "concurrency": [1], "requests_per_level": 2}
SMALL = {**BENCH, "open_loop": [], "client_delay_ms": 1000}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    made = Project(tmp_path)
    (tmp_path / "suites").symlink_to(ROOT / "suites")
    made.configure(bench=SMALL, router={"suite": "suites/router-en", "cases": 2})
    made.play(Script(texts=('{"route": "chat"}',), cached_tokens=None, inter_token_s=0.002))
    monkeypatch.setattr(Pipeline, "ensure", lambda *_, **__: [])
    yield made
    made.close()


def measured(project: Project) -> RunNoise:
    found = project.store.outcome(NOISE_NOTE, RunNoise).data
    assert found is not None
    return found


def test_each_start_is_measured_and_nothing_else_changes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = project.left_running()
    raw = project.workspace.artifacts / "raw" / "bench.jsonl.gz"
    write_atomic(raw, b"the user's stamps")
    records = {path.name: path.read_bytes() for path in project.workspace.artifacts.glob("[a-z]*.json")}
    assert code_of(calibrate_noise(project.root, Options(), "3")) == 0
    made = measured(project)
    assert (made.model, made.vllm, made.starts, made.simulated) == ("fake-model", VERSION, 3, False)
    assert {"bench.ttft_ms_p50", "bench.decode_tok_s_p50", "test-router.constrained_latency_ms_p50"} <= set(made.figures)
    assert {name for name, entry in made.figures.items() if entry.unit == "%"} <= {"bench.goodput_c1"}, "shares that rest on time"
    assert not any("constraint_" in name for name in made.figures)
    for entry in made.figures.values():
        assert (entry.n, len(entry.values)) == (3, 3)
        assert entry.relative_range == pytest.approx((max(entry.values) - min(entry.values)) / sorted(entry.values)[1])
    assert raw.read_bytes() == b"the user's stamps"
    assert [path.name for path in raw.parent.iterdir()] == [raw.name]
    after = {path.name: path.read_bytes() for path in project.workspace.artifacts.glob("[a-z]*.json")}
    assert set(after) - set(records) == {"noise.json", "stop.json"} - set(records)
    assert {name for name in records if after[name] != records[name]} <= {"launch.json", "serve.json", "stop.json"}
    again = project.launch()
    assert state.is_running(again)
    assert (again.stays, again.command, again.settings) == (True, before.command, before.settings)
    assert project.server().handle.launch_id == again.id
    said = capsys.readouterr().out
    assert said.startswith("run-to-run noise of 3 starts: fake-model on ")
    assert re.search(r"\nbench\.ttft_ms_p50 +\S+ to \S+ ms, range \d+\.\d %, coefficient of variation \d+\.\d %\n", said)


def test_a_server_that_was_not_up_is_not_left_up(project: Project) -> None:
    assert code_of(calibrate_noise(project.root, Options(), "2")) == 0
    assert project.processes() == []
    assert not project.store.path("serve").exists()


def test_a_start_that_fails_leaves_the_last_noise_and_nothing_running(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(calibrate_noise(project.root, Options(), "2")) == 0
    kept = project.store.path(NOISE_NOTE).read_bytes()
    taking = noise.measured

    def and_break(*arguments: object) -> object:
        try:
            return taking(*arguments)  # type: ignore[arg-type]
        finally:
            project.play(Script(**NO_START))

    monkeypatch.setattr(noise, "measured", and_break)
    with pytest.raises(ServerError, match="its disk broke"):
        calibrate_noise(project.root, Options(), "2")
    assert project.store.path(NOISE_NOTE).read_bytes() == kept
    assert project.processes() == []


@pytest.mark.parametrize("starts", ["1", "0", "-2", "many", "2.5", ""])
def test_fewer_than_two_starts_are_refused(project: Project, starts: str) -> None:
    with pytest.raises(ConfigError, match="--starts: expected a number from 2 on, got "):
        calibrate_noise(project.root, Options(), starts)
    assert not project.workspace.launches.exists()


def test_a_server_of_somebody_else_is_refused(project: Project) -> None:
    with pytest.raises(ServerError, match=r"^the server at http://elsewhere:8000 is not ours to start again and again$"):
        calibrate_noise(project.root, Options(sets=("attach.url=http://elsewhere:8000",)), "2")


def test_without_an_environment_or_a_model_nothing_is_measured(project: Project) -> None:
    Store(project.workspace.artifacts).remove("install")
    assert code_of(calibrate_noise(project.root, Options(), "2")) == 2
    assert not project.workspace.launches.exists()
