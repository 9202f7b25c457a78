"""measure-vram against the fake server: figures, method and gates."""

from typing import Any

import pytest

from pipeline.config.schema import VramConfig
from pipeline.engine.workspace import Workspace
from pipeline.stages import measure_vram as memory
from pipeline.stages.serve import Server
from pipeline.vllm.plan import Plan
from tests.builders.stages import VRAM, write_samples
from tests.fakes.environment import machine
from tests.fakes.fake_vllm import FakeVllm


def test_memory_of_a_machine_without_gpu_is_the_hosts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    result = memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(), server, workspace)
    assert result.figures["vram_peak_mib"].value is None
    assert "no NVIDIA driver" in result.figures["vram_peak_mib"].reason
    assert result.figures["host_rss_peak_mib"].value == 900
    assert result.figures["host_rss_range_mib"].value == 1, "the peak was long before the load"
    assert result.figures["host_pss_steady_mib"].value == 250
    assert result.baseline_gpu_mib is None
    assert result.load.requests == len(fake.ledger.requests)
    assert (result.load.failed, result.load.preempted, result.preemptions) == (0, 0, 0)
    assert result.load.seconds >= 1.5
    assert result.simulated
    assert fake.ledger.max_in_flight == 2


def test_memory_of_a_device_without_process_figures_is_used_minus_baseline(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[None])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.baseline_gpu_mib == 100
    assert "baseline" in result.method
    assert result.figures["vram_peak_mib"].value == 4000
    assert result.figures["vram_steady_mib"].value == 4000
    assert result.figures["vram_range_mib"].value == 0


def test_memory_is_the_trees_own_where_the_driver_tells(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert "processes" in result.method
    assert result.figures["vram_peak_mib"].value == 3500


def test_of_several_devices_each_has_its_peak_and_the_largest_meets_the_plan(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0, 4300.0], gpu_tree_mib=[3500.0, 4000.0])
    sizes: dict[str, Any] = dict.fromkeys(("weights_mib", "activations_mib", "kv_cache_mib", "total_mib", "error_mib"), 1.0)
    counts = {"kv_bytes_per_token": 1, "kv_tokens": 1, "max_model_len": 1}
    made = Plan(**sizes, **counts, budget_mib=3900, graphs_mib=50, context_mib=500, weights_from="a test")
    result = memory.measure_vram(VRAM, machine(gpu=True), server.model_copy(update={"plan": made}), workspace)
    assert result.device_peaks_mib == {0: 3500, 1: 4000}
    assert result.figures["vram_peak_mib"].value == 7500
    assert result.figures["plan_error"].value == pytest.approx(100 * (4450 / 4000 - 1))
