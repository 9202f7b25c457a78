"""Whose load measure-vram counts, and what it adds."""

import json
import shutil
import time

import pytest

from pipeline.config.schema import VramConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import NothingAnsweredError
from pipeline.server import state
from pipeline.server.loads import Loads, Notebook, read_loads
from pipeline.stages import measure_vram as memory
from pipeline.stages import test_determinism as determinism
from pipeline.stages import test_router as router
from pipeline.stages.serve import Server
from tests.builders.stages import ARMS, GOLD, ROUTER, bench, write_samples
from tests.fakes.environment import machine
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


def loads_of(workspace: Workspace) -> Loads:
    return read_loads(workspace.root / "loads.jsonl")


def noted(workspace: Workspace, *spans: tuple[str, float, float], preemptions: int | None = 0) -> float:
    """Note load of so many seconds ago to so many; return now."""
    at = time.monotonic()
    for who, begin, end in spans:
        Notebook(workspace.root / "loads.jsonl", who).span(at - begin, at - end)
        if preemptions is not None:
            Notebook(workspace.root / "loads.jsonl", who).preemptions(at - end, preemptions)
    return at


def test_router_determinism_and_bench_note_when_requests_were_in_flight(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=(json.dumps(GOLD),), first_token_s=0.01, preemptions=3)
    began = time.monotonic()
    router.test_router(ROUTER, server, workspace)
    determinism.test_determinism(ARMS, ROUTER, server, workspace)
    bench(server, workspace)
    found = loads_of(workspace)
    assert list(found.spans) == ["test-router", "test-determinism", "bench"]
    assert len(found.spans["test-router"]) == 4, "two arms, each with a first request"
    assert len(found.spans["test-determinism"]) == 8 + 1 + 8 + 6 + 6, "D1, one word more, D2, D3's two loads and their two prompts each, D5"
    assert len(found.spans["bench"]) == 10, "its loops and their warm-ups, and nothing of the client's calibration"
    assert [count for _, count in found.preemptions] == [3, 3, 3]
    times = [at for spans in found.spans.values() for span in spans for at in span]
    assert began - 0.001 <= min(times), "rounded to milliseconds"
    assert max(times) <= time.monotonic() + 0.001


def test_requests_that_fail_are_no_load(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(status=503)
    with pytest.raises(NothingAnsweredError):
        router.test_router(ROUTER, server, workspace)
    assert loads_of(workspace) == Loads()


def test_where_the_other_tests_put_enough_load_on_none_is_added(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    at = noted(workspace, ("test-router", 40, 30), ("test-determinism", 25, 15), ("bench", 12, 2))
    fake.script = Script(preemptions=2)
    result = memory.measure_vram(VramConfig(load_s=15, concurrency=2), machine(), server, workspace)
    assert fake.ledger.requests == []
    assert result.load.spans == [pytest.approx((at - 20, at - 15), abs=0.01), pytest.approx((at - 12, at - 2), abs=0.01)]
    assert result.load.seconds_by == {"test-determinism": 5, "bench": 10}
    assert (result.load.requests, result.load.preempted, result.preemptions) == (0, 2, 2)
    assert result.figures["host_rss_stable"].n == 15
    assert result.figures["kv_cache_peak"].reason == "it is read while load is added, and none was"


def test_only_the_load_that_is_missing_is_added(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    noted(workspace, ("test-router", 40, 30), ("bench", 12, 2))
    result = memory.measure_vram(VramConfig(load_s=20.4, concurrency=2), machine(), server, workspace)
    assert len(result.load.spans) == 3
    assert result.load.seconds == pytest.approx(20.4)
    assert result.load.seconds_by["bench"] == 10
    assert result.load.seconds_by["test-router"] <= 10
    assert result.load.seconds_by["measure-vram"] >= 0.4
    assert result.load.requests == len(fake.ledger.requests) > 0
    again = memory.measure_vram(VramConfig(load_s=20.4, concurrency=2), machine(), server, workspace)
    assert again.load.seconds_by["measure-vram"] >= 0.4, "its own load does not count the next time"


def test_what_an_earlier_test_allocated_first_is_before_the_load_that_counts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    path = workspace.root / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for sample in samples[1:800]:  # up to 20 s ago
        sample["rss_mib"] = 100.0
    path.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    noted(workspace, ("test-router", 50, 30), ("bench", 19, 2))
    one = memory.measure_vram(VramConfig(load_s=15, concurrency=2), machine(), server, workspace)
    assert one.figures["host_rss_range_mib"].value == 1
    more = memory.measure_vram(VramConfig(load_s=36, concurrency=2), machine(), server, workspace)
    assert more.figures["host_rss_range_mib"].value == 201, "also after its warm-up it was at another level"


def test_the_launch_before_a_restart_counts_and_the_restart_does_not(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    first = workspace.root / "first"
    first.mkdir()
    at = time.monotonic()
    levels = [{"t": at - 50 + number / 20, "processes": 2, "rss_mib": 700.0, "gpu_tree_mib": [3900.0]} for number in range(800)]
    (first / "samples.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in levels), encoding="utf-8")
    (first / "server.log").write_text(f"{ACTIVE}\n{WARNING.format('before')}\n{WARNING.format('_first')}\n", encoding="utf-8")
    notes = Notebook(first / "loads.jsonl", "test-determinism")
    notes.span(at - 48, at - 14)
    notes.preemptions(at - 14, 1)
    noted(workspace, ("bench", 8, 2), preemptions=4)
    (workspace.root / "server.log").write_text(f"{ACTIVE}\n{WARNING.format('_second')}\n{WARNING.format('_first')}\n", encoding="utf-8")
    log_start = len(f"{ACTIVE}\n{WARNING.format('before')}\n")
    earlier = state.Left(launch_id="first", log="first/server.log", log_start=log_start, samples="first/samples.jsonl")
    restarted = server.model_copy(update={"handle": server.handle.model_copy(update={"earlier": [earlier]})})
    fake.script = Script(preemptions=4)
    settings = VramConfig(load_s=40, concurrency=2)
    result = memory.measure_vram(settings, machine(gpu=True), restarted, workspace)
    assert fake.ledger.requests == []
    assert result.load.seconds_by == {"test-determinism": 34, "bench": 6}
    assert (result.figures["vram_peak_mib"].value, result.figures["vram_range_mib"].value) == (3900, 0)
    assert result.figures["host_rss_range_mib"].value == 1
    assert result.device_peaks_mib == {0: 3900}
    assert (result.load.preempted, result.preemptions) == (5, 4)
    assert result.samples == 801 + 2400
    assert result.compiled_kernels == ["_first", "_second"]
    shutil.rmtree(first)
    left = memory.measure_vram(VramConfig(load_s=6, concurrency=2), machine(gpu=True), restarted, workspace)
    assert left.load.seconds_by == {"bench": 6}
    assert left.compiled_kernels == ["_second", "_first"]


ACTIVE = "INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations follow."


WARNING = (
    "WARNING 11-27 15:21:00 [jit_monitor.py:141] Triton kernel JIT compilation during inference: {}. This causes a latency spike; extend."
)
