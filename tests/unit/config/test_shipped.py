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
