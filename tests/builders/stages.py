"""Settings, a suite and small helpers for the measuring stages against the fake server."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.gates import Gate
from pipeline.config.layers import load_layers
from pipeline.config.schema import BenchConfig, DeterminismConfig, RouterConfig, VramConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Measurement
from pipeline.engine.workspace import Workspace
from pipeline.load import background
from pipeline.stages import bench as benching
from pipeline.stages import measure_vram as memory
from pipeline.stages import test_determinism as determinism
from pipeline.stages import test_router as router
from pipeline.stages.serve import Server
from tests.fakes.environment import machine

ROOT = Path(__file__).resolve().parents[2]
GOLD = {"route": "calendar", "calendar_intent": "create", "slots": {"title": "dentist"}, "tool_plan": ["calendar.create"]}
CASES = {
    "right": (GOLD, json.dumps(GOLD)),
    "wrong slot": (GOLD, json.dumps({**GOLD, "slots": {"title": "doctor"}})),
    "wrong route": (GOLD, json.dumps({**GOLD, "route": "smalltalk"})),
    "fenced": (GOLD, f"```json\n{json.dumps(GOLD)}\n```"),
    "not json": (GOLD, "Sure, I can do that."),
    "unknown value": (GOLD, json.dumps({**GOLD, "route": "weather"})),
    "echoed": (GOLD, json.dumps({**GOLD, "route": "calendar|smalltalk"})),
    "truncated": (GOLD, json.dumps({**GOLD, "slots": {"title": "x" * 400}})),
}
SCHEMA = {
    "type": "object",
    "required": ["route", "calendar_intent", "slots"],
    "additionalProperties": False,
    "properties": {
        "route": {"enum": ["calendar", "smalltalk", "unknown"]},
        "calendar_intent": {"enum": ["create", "none"]},
        "slots": {"type": "object"},
        "tool_plan": {"type": "array"},
    },
}
ROUTER = RouterConfig(suite="suite", cases=20, unary_cases=0, max_tokens=50, timeout_s=30)
BENCH = BenchConfig(
    ttft_requests=3,
    warmup_requests=1,
    decode_requests=3,
    output_tokens=8,
    concurrency=(1, 2),
    requests_per_level=4,
    open_requests=3,
    open_share=1,
    timeout_s=30,
)
LIMITS = RequestLimits(ttft_ms=5000, tpot_ms=1000)
DETERMINISM = DeterminismConfig(
    prompts="prompts.txt", runs=4, constrained=0, max_tokens=16, cache_runs=0, load=(), restart=False, timeout_s=30
)
VRAM = VramConfig(load_s=0.3, concurrency=2)


def bench(server: Server, workspace: Workspace, settings: BenchConfig = BENCH, limits: RequestLimits = LIMITS) -> benching.BenchResult:
    return benching.bench(settings, limits, server, workspace)


def forgive_the_machine(patch: pytest.MonkeyPatch) -> None:
    """Have the gauge read often, and let a loaded machine take its time: between two readings, and until the load is there again."""
    patch.setattr(background, "READ_EVERY_S", 0.002)
    patch.setattr(background, "APART_S", 60)
    patch.setattr(background, "FEWEST_READINGS", 0)
    patch.setattr(determinism, "LOADED_SHARE", 0.01)


ARMS = DETERMINISM.model_copy(update={"cache_runs": 2, "load": (2, 3), "load_runs": 1})


def write_samples(workspace: Workspace, **fields: Any) -> None:
    """Write a baseline and samples from a minute ago to a minute ahead, so that whatever moment is loaded has some."""
    began = time.monotonic() - 60
    baseline = {"t": began, **({"gpu_used_mib": [100.0], "gpu_tree_mib": [None]} if "gpu_used_mib" in fields else {})}
    lines = [baseline]
    for number in range(1, 2401):
        sample: dict[str, Any] = {"t": began + number * 0.05, "processes": 2, "rss_mib": 300.0 + number % 2}
        lines.append({**sample, **({"pss_mib": 250.0} if number % 2 == 0 else {}), **fields})
    lines[1]["rss_mib"] = 900.0  # a peak while it loads, long before the load
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"t": 1'
    (workspace.root / "samples.jsonl").write_text(text, encoding="utf-8")


def gates() -> dict[str, Gate]:
    return load_layers(ROOT / "config.yaml", {}).config("rtx4050-6gb").gates.root


STAGES: dict[str, Callable[[Server, Workspace], Measurement]] = {
    "test-router": lambda server, workspace: router.test_router(ROUTER, server, workspace),
    "test-determinism": lambda server, workspace: determinism.test_determinism(DETERMINISM, ROUTER, server, workspace),
    "bench": lambda server, workspace: bench(server, workspace),
    "measure-vram": lambda server, workspace: memory.measure_vram(VRAM, machine(), server, workspace),
}
