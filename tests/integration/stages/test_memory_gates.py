"""measure-vram's gates, its readings under load, and what spoils them."""

import json

import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.config.layers import load_layers
from pipeline.config.schema import VramConfig
from pipeline.engine.record import Measurement, Outcome
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError
from pipeline.report.gates import judge_all
from pipeline.stages import measure_vram as memory
from pipeline.stages.serve import Server
from pipeline.vllm import meter
from tests.builders.house import outcomes_of
from tests.builders.stages import ROOT, VRAM, write_samples
from tests.fakes.environment import machine
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


def judged_memory(result: Measurement, profile: str = "cpu") -> dict[str, str]:
    """Return the verdicts of the shipped gates on memory, as on a real server."""
    real = result.model_copy(update={"simulated": False})
    judged = judge_all(
        load_layers(ROOT / "config.yaml", {}).config(profile).gates.root, outcomes_of({"measure-vram": Outcome("measure-vram", real, None)})
    )
    return {row.id: row.judgement.verdict for row in judged if row.gate.metric.startswith("measure-vram.")}


def test_memory_gates_of_a_short_load_on_the_processor(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    assert judged_memory(memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(), server, workspace)) == {
        "vram_usage": "NOT_MEASURED",
        "vram_stable": "NOT_MEASURED",
        "host_memory": "PASS",
        "host_memory_steady": "PASS",
        "host_memory_stable": "NOT_MEASURED",
    }


def test_memory_gates_fail_on_a_host_that_grows(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    path = workspace.root / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for number, sample in enumerate(samples):
        sample["rss_mib"] = 10.0 * number
    path.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    result = memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(gpu=True), server, workspace)
    verdicts = judged_memory(result, "rtx4050-6gb")
    assert (verdicts["host_memory_steady"], verdicts["host_memory_stable"]) == ("FAIL", "FAIL")
    assert (verdicts["vram_usage"], verdicts["vram_stable"]) == ("PASS", "NOT_MEASURED")


def test_memory_reads_kv_cache_and_preemptions_while_it_loads(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "metered", lambda target: meter.metered(target, 0.05))
    write_samples(workspace)
    fake.script = Script(kv_usage=0.375, preemptions=7, inter_token_s=0.01)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    kv = result.figures["kv_cache_peak"]
    assert (kv.value, kv.unit) == (37.5, "%")
    assert kv.n > 1
    assert (result.preemptions, result.load.preempted) == (7, 0)
    assert result.figures["preemptions"].value == 0


def test_preemptions_under_load_are_those_since_its_begin(fake: FakeVllm) -> None:
    fake.script = Script(preemptions=7)
    with meter.metered(Endpoint(fake.base_url)) as readings:
        fake.script = Script(preemptions=9)
    assert (readings.preemptions, readings.preempted) == (9, 2)


def test_memory_of_a_server_without_metrics_says_so_and_is_not_stable(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    fake.script = Script(metrics_status=500)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert (result.preemptions, result.load.preempted, result.load.kv_readings) == (None, None, 0)
    assert result.figures["kv_cache_peak"].reason == "the server's metrics do not tell"
    assert result.figures["preemptions"].reason == "the server does not count preemptions"


def test_memory_tells_the_gpus_state_and_why_it_has_no_more_of_it(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    hot = {"util_percent": 97, "temperature_c": 88, "power_w": 60.5, "sm_clock_mhz": 1200, "throttle": ["hw_thermal_slowdown"]}
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0], devices=[hot])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.figures["gpu_temperature_c"].value == 88
    assert result.figures["gpu_throttled"].value == 100
    assert result.throttled == {"hw_thermal_slowdown": result.figures["gpu_throttled"].n}
    write_samples(workspace, gpu_error="GpuIsLost")
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.gpu_errors == {"GpuIsLost": 2400}
    assert result.figures["vram_peak_mib"].reason == "the driver failed: GpuIsLost in 2400 samples"


def test_a_spoilt_line_of_the_samples_is_left_out(workspace: Workspace) -> None:
    (workspace.root / "samples.jsonl").write_text('{"t": 1.0}\n\0\0\0\n[]\n{"t": "x"}\n{"t": 2.0}\n{"t": 3', encoding="utf-8")
    assert [sample["t"] for sample in memory.read_samples(workspace.root / "samples.jsonl")] == [1.0, 2.0]


def test_gaps_of_the_samples_are_on_record(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    path = workspace.root / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:100], *lines[200:]]), encoding="utf-8")
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert result.gaps.count == 1
    assert result.gaps.longest_s == pytest.approx(5.05)


def test_a_load_in_slices_counts_on_and_repeats_no_prompt(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SLICE_S", 0.1)
    write_samples(workspace)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert len(result.load.spans) == 1
    assert result.load.requests == len(fake.ledger.requests)
    prompts = [request["messages"][-1]["content"] for request in fake.ledger.requests]
    assert len(set(prompts)) == len(prompts)


def test_memory_without_answers_samples_or_a_loaded_sample_is_not_measured(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    with pytest.raises(MeasureError, match="no samples"):
        memory.measure_vram(VRAM, machine(), server, workspace)
    (workspace.root / "samples.jsonl").write_text('{"t": 1.0}\n', encoding="utf-8")
    with pytest.raises(MeasureError, match="nothing during the load"):
        memory.measure_vram(VRAM, machine(), server, workspace)
    fake.script = Script(status=503)
    with pytest.raises(MeasureError, match="no request of the load succeeded: HTTP 503"):
        memory.measure_vram(VRAM, machine(), server, workspace)
