"""The config.yaml that is shipped: its profiles, files and gates."""

from pathlib import Path

import pytest

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.client.tokens import Asker
from pipeline.config.layers import load_layers
from pipeline.dag import STAGES
from pipeline.load.spread import Batch
from pipeline.measure.memory import SERIES, Budget, series_figures
from pipeline.stages import bench, test_determinism, test_router

ROOT = Path(__file__).resolve().parents[3]
BUDGET = Budget(mib=224, horizon_h=24)
SHIPPED = load_layers(ROOT / "config.yaml", {})


@pytest.mark.parametrize("profile", [None, *SHIPPED.profiles])
def test_every_shipped_profile_validates(profile: str | None) -> None:
    assert SHIPPED.config(profile).profile.root == (profile or "auto")


def test_some_profiles_are_shipped() -> None:
    assert "cpu" in SHIPPED.profiles
    assert len(SHIPPED.profiles) > 1


def test_profiles_of_the_alternatives_exist() -> None:
    named = {entry.profile for entry in SHIPPED.config(None).alternatives.root if entry.profile}
    assert named
    assert named <= set(SHIPPED.profiles)


def test_profiles_of_gpu_auto_exist() -> None:
    named = {entry.profile for entry in SHIPPED.config(None).gpu.auto}
    assert named
    assert named <= set(SHIPPED.profiles)


def test_shipped_suites_and_templates_exist() -> None:
    for profile in (None, *SHIPPED.profiles):
        config = SHIPPED.config(profile)
        assert all((ROOT / path).exists() for path in (*config.router.files(), *config.determinism.files(), *config.report.files())), (
            profile
        )


def made_figures() -> dict[str, set[str]]:
    """Return the names of the figures that each measuring stage makes."""
    alone = Batch([Answer(0, 1, 2, [1, 2], "x", "stop", tokens=2)], 1, 0)
    asker = Asker(Endpoint(""), "", SHIPPED.config(None).determinism)
    no_series = [test_determinism.Series(asker, {}, constrained) for constrained in (False, True)]
    arm = [*test_router.router_figures([]), "ttft_ms_p50", "route_gain_points"]
    return {
        "bench": set(bench.lone_figures(alone, alone, [], [])),
        "test-router": {f"{name}_{figure}" for name in ("prompt_only", "constrained") for figure in arm},
        "test-determinism": {name for series in no_series for name in test_determinism.series_figures(series, [], [])},
        "measure-vram": {name for series in SERIES for name in series_figures(series, [], [], [], BUDGET, "")},
    }


@pytest.mark.parametrize("profile", [None, *SHIPPED.profiles])
def test_every_gate_names_a_figure_that_a_stage_makes(profile: str | None) -> None:
    gates = SHIPPED.config(profile).gates.root
    stages = {stage.name for stage in STAGES}
    made = made_figures()
    assert gates
    for gate in gates.values():
        stage, _, figure = gate.metric.partition(".")
        assert stage in stages
        assert figure in made[stage]


def test_the_full_profile_for_processors_requires_every_gate_that_it_can_pass_with_samples_that_are_large_enough() -> None:
    config = SHIPPED.config("cpu-full")
    gates = config.gates.root
    assert {name for name, gate in gates.items() if not gate.required} == {"vram_usage", "vram_stable", "router_accuracy", "router_gain"}
    assert config.determinism.runs >= 10
    assert config.determinism.max_tokens >= 96
    n = {
        "bench.ttft_ms_p95": config.bench.ttft_requests,
        "bench.decode_tok_s_p50": config.bench.decode_requests,
        "bench.answered": config.bench.ttft_requests,
        **{gate.metric: config.router.cases for gate in gates.values() if gate.metric.startswith("test-router.")},
        **{gate.metric: config.determinism.count for gate in gates.values() if gate.metric.startswith("test-determinism.")},
        **{
            gate.metric: config.determinism.constrained
            for gate in gates.values()
            if ".constrained_" in gate.metric and "determ" in gate.metric
        },
        **{gate.metric: int(config.vram.load_s) for gate in gates.values() if gate.metric.startswith("measure-vram.")},
    }
    assert {name: n[gate.metric] for name, gate in gates.items() if n[gate.metric] < gate.min_n} == {}
