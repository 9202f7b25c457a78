"""A server that others can reach wants its key, and one that someone else runs is measured as what its endpoint shows."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.config.attach import AttachConfig
from pipeline.config.requests import RequestsConfig
from pipeline.config.schema import BenchConfig, DeterminismConfig, ModelConfig, VramConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Store, now
from pipeline.errors import MeaninglessError, MeasureError, ServerError
from pipeline.load.spread import Processes, loop
from pipeline.server.keys import key_file
from pipeline.server.stop import stop_server
from pipeline.stages import test_determinism as determinism
from pipeline.stages.bench import bench
from pipeline.stages.measure_vram import measure_vram
from pipeline.stages.serve import Server, attach_server, server_present
from tests.builders.stages import ROUTER
from tests.fakes.environment import FakeProject, free_port, machine
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import VERSION, Script

BENCH = BenchConfig(ttft_requests=2, warmup_requests=1, decode_requests=2, output_tokens=4, concurrency=(1, 2), requests_per_level=2)
DETERMINISM = DeterminismConfig(prompts="prompts.txt", count=1, runs=2, constrained=0, cache_runs=0, load=(), max_tokens=8)
KEY = "a-key-of-somebody-else"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProject]:
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = FakeProject(tmp_path)
    (made.root / "prompts.txt").write_text("Merhaba\n", encoding="utf-8")
    yield made
    made.close()


# Open.


def test_an_open_server_wants_the_key_that_stands_nowhere_but_in_its_file(project: FakeProject, capfd: pytest.CaptureFixture[str]) -> None:
    server = project.serve(project.settings(host="0.0.0.0"))
    key = key_file(project.workspace).read_text(encoding="utf-8").strip()
    assert server.handle.base_url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.handle.base_url}/v1/models", timeout=10)
    assert bench(BENCH, RequestLimits(), server, project.workspace).figures["answered"].value == 100
    assert determinism.test_determinism(DETERMINISM, ROUTER, server, project.workspace).figures["identical"].value == 100
    assert server_present(server, project.workspace)
    Store(project.workspace.artifacts).write("serve", {}, now(), 1.0, server)
    assert not any(key in word for process in project.processes() for word in process.cmdline())
    assert any(process.environ().get("VLLM_API_KEY") == key for process in project.processes())
    stop_server(project.launch(), project.workspace)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in project.workspace.artifacts.rglob("*") if path.is_file()]
    assert len(texts) > 3
    assert not any(key in text for text in texts)
    assert key not in "".join(capfd.readouterr())


def test_a_server_on_loopback_wants_no_key(project: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
    server = project.serve(project.settings())
    assert not server.handle.keyed
    assert not key_file(project.workspace).exists()
    with urllib.request.urlopen(f"{server.handle.base_url}/v1/models", timeout=10) as answer:
        assert answer.status == 200


def test_an_address_in_ipv6_is_called_in_brackets(project: FakeProject) -> None:
    server = project.serve(project.settings(host="::1"))
    assert server.handle.base_url == f"http://[::1]:{project.launch().port}"
    assert bench(BENCH, RequestLimits(), server, project.workspace).figures["answered"].value == 100


# Attached.


def attach(project: FakeProject, fake: FakeVllm, name: str = "fake-model") -> Server:
    return attach_server(AttachConfig(url=fake.base_url), RequestsConfig(), ModelConfig(name=name), project.workspace)


def test_a_server_of_somebody_else_is_measured_and_left_alone(project: FakeProject) -> None:
    with FakeVllm() as fake:
        server = attach(project, fake)
        assert (server.attached, server.model, server.vllm, server.max_model_len) == (fake.base_url, "fake-model", VERSION, 4096)
        assert server.real
        assert server_present(server, project.workspace)
        result = bench(BENCH, RequestLimits(), server, project.workspace)
        assert result.figures["answered"].value == 100
        assert not result.simulated
        arms = determinism.test_determinism(DETERMINISM, ROUTER, server, project.workspace).arms
        assert f"the server at {fake.base_url} is not ours to restart" in [arm.reason for arm in arms if arm.arm == "D4"]
        with pytest.raises(MeaninglessError, match=f"the memory of the server at {fake.base_url} is not ours to measure"):
            measure_vram(VramConfig(load_s=0.1, concurrency=1), machine(), server, project.workspace)
        assert psutil.Process().is_running()
    assert project.processes() == []
    assert not server_present(server, project.workspace)


def test_a_server_of_somebody_else_is_warmed_up_with_the_kinds_that_the_tests_send(project: FakeProject) -> None:
    with FakeVllm() as fake:
        server = attach(project, fake)
        sent = fake.ledger.requests
        assert server.warm_ups == len(sent) - 3 > 100, "two prove that it is a vLLM, one asks for a system role"
        assert {"logprobs", "response_format", "seed"} <= {name for payload in sent for name in payload}
        assert "warm_ups" not in server.identity()
        sent.clear()
        cold = attach_server(
            AttachConfig(url=fake.base_url, warm_up=False), RequestsConfig(), ModelConfig(name="fake-model"), project.workspace
        )
        assert (cold.warm_ups, len(sent)) == (0, 3)
    with FakeVllm() as first, FakeVllm() as second:
        settings = AttachConfig(url=first.base_url, replicas=(second.base_url,))
        assert attach_server(settings, RequestsConfig(), ModelConfig(name="fake-model"), project.workspace).warm_ups == 2 * server.warm_ups


@pytest.mark.parametrize(
    "lie",
    [Script(owned_by="a mock"), Script(version="mock"), Script(counting=0), Script(metrics=False)],
    ids=["owner", "version", "count", "metrics"],
)
def test_what_only_looks_like_vllm_gives_figures_that_are_simulated(project: FakeProject, lie: Script) -> None:
    with FakeVllm(lie) as fake:
        server = attach(project, fake)
        assert not server.real
        assert bench(BENCH, RequestLimits(), server, project.workspace).simulated


def test_other_clients_may_be_served_meanwhile(project: FakeProject) -> None:
    with FakeVllm(Script(counting=3)) as fake:
        assert attach(project, fake).real


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script(texts=("!!!!!!!!",)), "says nothing"),
        (Script(bodies={"/v1/models": "[]"}), "not a JSON object"),
        (Script(bodies={"/v1/models": '{"data": []}'}), "the server serves no model"),
        (Script(bodies={"/v1/models": '{"data": [{"id": "a"}, {"id": "b"}]}'}), "the server serves a, b"),
        (Script(metrics_status=404), "/metrics"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(project: FakeProject, script: Script, says: str) -> None:
    with FakeVllm(script) as fake, pytest.raises(ServerError, match=says) as caught:
        attach(project, fake)
    assert caught.value.hint


def test_nobody_at_the_address_is_one_line(project: FakeProject) -> None:
    with pytest.raises(ServerError, match="ConnectionError") as caught:
        attach_server(AttachConfig(url=f"http://127.0.0.1:{free_port()}"), RequestsConfig(), ModelConfig(), project.workspace)
    assert "is it a vLLM server, and up?" in caught.value.hint


def test_the_only_model_is_taken_whatever_its_name(project: FakeProject) -> None:
    with FakeVllm(model="theirs") as fake:
        assert attach(project, fake, name="ours").model == "theirs"


def test_a_server_that_wants_a_key_gets_the_one_in_the_environment(project: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeVllm(api_key=KEY) as fake:
        with pytest.raises(ServerError, match="HTTP 401") as caught:
            attach(project, fake)
        assert "VLLM_API_KEY" in caught.value.hint
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        server = attach(project, fake)
        assert bench(BENCH, RequestLimits(), server, project.workspace).figures["answered"].value == 100
    assert KEY not in server.model_dump_json()


def test_a_server_that_goes_away_fails_the_measurement(project: FakeProject) -> None:
    with FakeVllm() as fake:
        server = attach(project, fake)
    with pytest.raises(ServerError, match="no longer answers"):
        bench(BENCH, RequestLimits(), server, project.workspace)


# Replicas.


def attach_all(project: FakeProject, first: FakeVllm, *others: FakeVllm) -> Server:
    settings = AttachConfig(url=first.base_url, replicas=tuple(other.base_url for other in others))
    return attach_server(settings, RequestsConfig(), ModelConfig(name="fake-model"), project.workspace)


def test_replicas_share_the_load_and_their_counters_are_summed(project: FakeProject) -> None:
    with FakeVllm() as first, FakeVllm() as second:
        server = attach_all(project, first, second)
        assert server.real
        assert server.device == f"the server at {first.base_url} and 1 replica"
        before = [len(fake.ledger.requests) for fake in (first, second)]
        settings = BENCH.model_copy(update={"requests_per_level": 8, "concurrency": (1, 4), "open_loop": ("constant",)})
        result = bench(settings, RequestLimits(), server, project.workspace)
        shares = [len(fake.ledger.requests) - earlier for fake, earlier in zip((first, second), before, strict=True)]
        assert result.figures["answered"].value == 100
        assert {count.name: count.client for count in result.ledger}["requests answered"] == sum(shares)
        assert all(count.agrees for count in result.ledger)
        assert min(shares) > sum(shares) / 3


def test_replicas_are_there_only_while_each_of_them_is(project: FakeProject) -> None:
    with FakeVllm() as first:
        with FakeVllm() as second:
            server = attach_all(project, first, second)
            assert server_present(server, project.workspace)
            second.script = Script(version="0.1.0")
            assert not server_present(server, project.workspace), "another version"
            second.script = Script()
            assert server_present(server, project.workspace)
        assert not server_present(server, project.workspace), "gone"


def test_processes_of_the_client_take_turns_of_their_own_among_replicas() -> None:
    with FakeVllm() as first, FakeVllm() as second:
        target = Endpoint(first.base_url, replicas=(second.base_url,))
        payloads = [streamed("fake-model", [{"role": "user", "content": str(number)}], 2) for number in range(8)]
        answers = loop(target, payloads, 4, 60, Processes(2)).answers
        assert [answer.ok for answer in answers] == [True] * 8
        assert [len(fake.ledger.requests) for fake in (first, second)] == [4, 4]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"model": "another"}, "it serves another with vLLM"),
        ({"script": Script(version="0.1.0")}, "it serves fake-model with vLLM 0.1.0, not fake-model with"),
    ],
    ids=["model", "version"],
)
def test_a_server_of_another_kind_is_no_replica(project: FakeProject, kind: dict[str, Any], says: str) -> None:
    with FakeVllm() as first, FakeVllm(**kind) as other, pytest.raises(ServerError, match=says) as caught:
        attach_all(project, first, other)
    assert caught.value.message.startswith(f"{other.base_url} is no replica of {first.base_url}: ")
    assert "attach.replicas" in caught.value.hint


def test_one_replica_that_only_looks_like_vllm_makes_all_figures_simulated(project: FakeProject) -> None:
    with FakeVllm() as first, FakeVllm(Script(counting=0)) as second:
        server = attach_all(project, first, second)
        assert not server.real
        assert next(proof.claim for proof in server.proofs if not proof.holds).endswith(f"({second.base_url})")
        assert bench(BENCH, RequestLimits(), server, project.workspace).simulated


def test_a_replica_that_went_away_is_named(project: FakeProject) -> None:
    with FakeVllm() as first:
        with FakeVllm() as second:
            server = attach_all(project, first, second)
        with pytest.raises(MeasureError, match=second.base_url):
            bench(BENCH, RequestLimits(), server, project.workspace)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"replicas": ["http://a:1"]}, "attach.url names the first of them"),
        ({"url": "http://a:1", "replicas": ["http://a:1/v1"]}, "the same server twice would count twice"),
        ({"url": "http://a:1", "replicas": ["a:1"]}, "expected http://host:port"),
    ],
)
def test_replicas_that_cannot_be_meant_are_refused(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError) as error:
        AttachConfig(**settings)
    assert wrong in str(error.value)
