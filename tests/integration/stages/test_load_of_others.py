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
    assert (result.figures["preemptions"].value, result.figures["preemptions"].n) == (2, 15)
    assert result.figures["host_rss_stable"].reason.startswith("the load was too short to say so"), "a step of 1 MiB, each 0.1 s"
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


def test_a_launch_gets_the_load_that_it_takes_to_tell_whether_memory_is_stable(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    """Ten seconds before a restart tell nothing of the launch after it."""
    write_samples(workspace)
    first = workspace.root / "first"
    first.mkdir()
    at = time.monotonic()
    Notebook(first / "loads.jsonl", "test-determinism").span(at - 40, at - 30)
    earlier = state.Left(launch_id="first", log="first/server.log", log_start=0, samples="first/samples.jsonl")
    restarted = server.model_copy(update={"handle": server.handle.model_copy(update={"earlier": [earlier]})})
    noted(workspace, ("bench", 3, 2))
    enough = VramConfig(load_s=3, concurrency=2, drift_budget_mib=8640, horizon_h=24)  # 0.1 MiB a second, of steps of 0.1 MiB
    told = memory.measure_vram(enough, machine(), restarted, workspace)
    assert told.load.seconds_by.get("measure-vram", 0) >= 0.2, "1.02 s and a fifth for the warm-up"
    fake.ledger.requests.clear()
    too_little = memory.measure_vram(enough.model_copy(update={"drift_budget_mib": 1000}), machine(), restarted, workspace)
    assert (too_little.load.requests, fake.ledger.requests) == (0, []), "11 s would tell, and 3 are allowed"


def test_what_filling_the_cache_preempts_is_not_the_loads(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    (workspace.root / "server.log").write_text("INFO GPU KV cache size: 4,000 tokens\n", encoding="utf-8")
    noted(workspace, ("bench", 12, 2), preemptions=0)
    settings = VramConfig(load_s=10, concurrency=2, fill_s=60)
    fake.script = Script(kv_usage=0.95, inter_token_s=0.02, preemptions=0)
    calm = memory.measure_vram(settings, machine(), server, workspace)
    assert calm.fill is not None
    assert (calm.figures["kv_filled_percent"].value, calm.fill.preempted, calm.load.preempted) == (95, 0, 0)
    assert calm.figures["kv_filled_percent"].n == calm.fill.readings > 0
    assert calm.load.seconds_by == {"bench": 10}, "to fill the cache is no load"
    fake.script = Script(kv_usage=0.95, inter_token_s=0.02, preemptions=0, preempts=5)
    fake.ledger.requests.clear()
    full = memory.measure_vram(settings, machine(), server, workspace)
    assert full.fill is not None
    assert (full.fill.preempted, full.load.preempted, full.preemptions) == (5, 0, 5)


def test_a_cache_of_unknown_size_is_not_filled_and_none_is_where_no_time_is_given(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    write_samples(workspace)
    noted(workspace, ("bench", 12, 2))
    for settings, why in ((0, "vram.fill_s is 0"), (60, "neither the server's log nor the plan tells the size of the KV cache")):
        result = memory.measure_vram(VramConfig(load_s=10, concurrency=2, fill_s=settings), machine(), server, workspace)
        assert result.figures["kv_filled_percent"].reason == why
        assert fake.ledger.requests == []


ACTIVE = "INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations follow."


WARNING = (
    "WARNING 11-27 15:21:00 [jit_monitor.py:141] Triton kernel JIT compilation during inference: {}. This causes a latency spike; extend."
)
