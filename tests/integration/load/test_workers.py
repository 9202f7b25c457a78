"""Load clients on a real Ray cluster of several nodes on this machine, one of which is killed in mid-measurement."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.workspace import Workspace
from pipeline.errors import MachineError, MeasureError, PipelineError
from pipeline.load import workers as placing
from pipeline.load.calibration import Hurried, calibrate
from pipeline.load.generator import TARGET_GONE
from pipeline.load.spread import loop
from pipeline.load.workers import Workers, crew_of, refuse_unreachable
from pipeline.stages.bench import bench
from pipeline.terminal import Silent
from tests.fakes.cluster import Cluster, in_the_background
from tests.fakes.environment import dead, simulated_server, until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.integration.load.test_spread import NUMBERS, TIMEOUT_S, payloads

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def crew(cluster: Cluster) -> Iterator[Workers]:
    with Workers(cluster.ray.address, 2, (), lambda _: None) as made:
        yield made


def processes() -> list[psutil.Process]:
    """Return the load clients of our cluster that live."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if "pipeline.load.spread" in process.cmdline() else []
    return found


def test_clients_on_nodes_merge_their_stamps_by_one_clock(crew: Workers) -> None:
    assert (crew.count, crew.nodes) == (2, 2)
    with FakeVllm(Script(by_prompt={prompt: {"texts": [prompt]} for prompt in NUMBERS}, rendezvous=3), api_key="a-key") as fake:
        target = Endpoint(fake.base_url, api_key="a-key")
        made = loop(target, payloads(), 3, TIMEOUT_S, crew)
        assert fake.ledger.max_in_flight == 3, "together so many as were asked for"
        due_s = [0.02 * number for number in range(len(NUMBERS))]
        fake.script = replace(fake.script, rendezvous=0)
        opened = loop(target, payloads(), 1, TIMEOUT_S, crew, pace=due_s)
    assert [answer.text for answer in made.answers] == [answer.text for answer in opened.answers] == NUMBERS
    assert made.wall_s > 0
    assert made.cpu_s > 0
    # Both nodes are this machine, whose clock is ours: what was measured of it is off by no more than its bound.
    assert 0 < made.clock_ms < 1000
    apart = [answer.scheduled_ns - opened.answers[0].scheduled_ns for answer in opened.answers]
    assert all(abs(one / 1e9 - due) <= opened.clock_ms / 1e3 for one, due in zip(apart, due_s, strict=True))
    assert processes() == []


def test_a_dead_target_ends_the_clients_and_their_requests_count_as_failed(crew: Workers) -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        made = loop(Endpoint(fake.base_url, lambda: len(fake.ledger.requests) < 2), payloads(), 2, TIMEOUT_S, crew)
    assert [answer.error for answer in made.answers] == [TARGET_GONE] * 7
    assert processes() == []


def test_a_client_that_dies_fails_the_measurement(crew: Workers) -> None:
    def kill_one() -> bool:
        until(lambda: fake.ledger.in_flight == 2, "two requests in flight")
        for process in processes()[:1]:
            process.kill()
        return True

    with FakeVllm(Script(first_token_s=20)) as fake, pytest.raises(MeasureError, match="ended in mid-measurement: exit code -9") as caught:
        loop(Endpoint(fake.base_url, kill_one), payloads(), 2, TIMEOUT_S, crew)
    assert caught.value.hint


def test_each_client_is_calibrated_beside_itself(crew: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone, together), ceiling = calibrate([1, 3], 1e6, crew)
    assert (alone.processes, alone.nodes) == (1, 0)
    assert (together.processes, together.nodes) == (2, 2)
    assert together.chunks == (2 * 2 + 2 + 1 * 2 + 2) * 32
    assert together.delay_ms_p50 > 0
    assert ceiling > 0
    monkeypatch.setattr(Hurried, "__reduce__", lambda _: (int, ("no task",)))
    with pytest.raises(MeasureError, match=r"the load client on .* did not start: ValueError: invalid literal") as caught:
        crew.run([Hurried(1)], lambda: True)
    assert "same Python" in caught.value.hint


SMALL = BenchConfig(
    ttft_requests=2,
    warmup_requests=1,
    decode_requests=2,
    output_tokens=4,
    open_requests=4,
    concurrency=(2,),
    requests_per_level=4,
    timeout_s=TIMEOUT_S,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Silent())
    made.artifacts.mkdir()
    return made


def test_bench_counts_what_clients_on_nodes_sent(cluster: Cluster, workspace: Workspace) -> None:
    with FakeVllm() as fake:
        made = bench(
            SMALL.model_copy(update={"ray_address": cluster.ray.address}), RequestLimits(), simulated_server(fake, workspace), workspace
        )
    assert [(level.requests, level.failed, level.clock_ms > 0) for level in made.levels] == [(2, 0, False), (4, 0, True)]
    assert [(level.requests, level.failed) for level in made.open_levels] == [(4, 0), (4, 0)]
    assert all(count.agrees for count in made.ledger)


def test_bench_with_a_node_lost_in_mid_measurement_measures_nothing(cluster: Cluster, workspace: Workspace) -> None:
    lost: list[int] = []
    folders: list[str] = []  # a machine that loses its power cannot tidy up
    last = range(9, 13)  # the prompts of the loop at concurrency 2

    def lose() -> None:
        until(lambda: [request for request in fake.ledger.requests if "number 10," in str(request)], "the last loop")
        until(lambda: fake.ledger.in_flight == 2, "two clients at work")
        lost.extend(process.pid for process in processes())
        folders.extend(process.cwd() for process in processes())
        cluster.kill(next(iter(cluster.ray.worker_nodes)).node_id)

    with FakeVllm(Script(by_prompt={f"number {number},": {"first_token_s": 60.0} for number in last})) as fake:
        killer = in_the_background(lose)
        try:
            with pytest.raises(MeasureError, match=r"the load client on .* was lost: ") as caught:
                bench(
                    SMALL.model_copy(update={"ray_address": cluster.ray.address}),
                    RequestLimits(),
                    simulated_server(fake, workspace),
                    workspace,
                )
        finally:
            killer.join(60)
            cluster.add()
    assert "another load" in caught.value.hint
    assert len(lost) == 2
    until(lambda: dead(lost), "the end of both clients")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def refused(cluster: Cluster, clients: int, urls: tuple[str, ...] = ()) -> PipelineError:
    with (
        pytest.raises(PipelineError) as caught,
        crew_of(BenchConfig(ray_address=cluster.ray.address, ray_clients=clients), urls, lambda _: None),
    ):
        pass
    assert caught.value.hint
    return caught.value


def test_no_cluster_no_room_no_ray_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    assert "has 4 CPUs, and bench.ray_clients asks for 5 load clients, a CPU each" in refused(cluster, 5).message
    monkeypatch.setattr(placing, "PLACED_S", 0.0)
    assert "has room for 0 of 2 load clients now" in refused(cluster, 2).message
    with pytest.raises(MachineError, match=r"bench\.ray_address 127\.0\.0\.1:1: no Ray cluster answers there"):
        Workers("127.0.0.1:1", 2, (), print)
    assert not ray.is_initialized()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match="Ray is not installed") as caught:
        Workers("auto", 2, (), print)
    assert "pipeline.packages requirements/ray.txt" in caught.value.hint
    assert (Path(__file__).resolve().parents[3] / "requirements" / "ray.txt").is_file()


def test_a_server_that_only_this_machine_reaches_is_told() -> None:
    refuse_unreachable(("http://127.0.0.1:8000",), ())
    refuse_unreachable(("http://10.0.0.1:8000",), ("gpu-2",))
    with pytest.raises(MeasureError, match=r"http://127\.0\.0\.1:8000 is this machine's own address, .* on gpu-2, gpu-3$") as caught:
        refuse_unreachable(("http://10.0.0.1:8000", "http://127.0.0.1:8000"), ("gpu-3", "gpu-2", "gpu-2"))
    assert "--attach" in caught.value.hint


def test_clients_that_run_behind_other_work_are_told(cluster: Cluster) -> None:
    said: list[str] = []
    with Workers(cluster.ray.address, 1, (), said.append):
        pass
    assert said[0].startswith("bench: 1 load client on 1 node: ")
    behind = os.getpriority(os.PRIO_PROCESS, 0) < 15  # what Ray gives its workers, unless told otherwise
    assert (len(said) == 2 and said[1].endswith("start Ray there with RAY_worker_niceness=0")) is behind
