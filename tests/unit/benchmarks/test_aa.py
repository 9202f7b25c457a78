"""The simulation of benchmarks/aa.py, seeded and few: two runs of the same thing are hardly ever worse, a server at half speed always."""

import random
from pathlib import Path

import pytest

from benchmarks import aa
from pipeline.measure.comparison import Noise
from pipeline.runs.compare import compare


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_of_two_runs_of_the_same_thing_the_second_is_worse_in_a_twentieth_at_most(deviation: float) -> None:
    found = aa.worse(4, (deviation, deviation), 1.0)
    assert set(found) == {"noise assumed", f"noise of {aa.STARTS} starts"}
    assert max(found.values()) == 0


def test_without_the_noise_between_starts_equal_runs_would_be_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "p", lambda *_: 0.0)
    assert min(aa.worse(4, (0.1, 0.1), 1.0).values()) >= 2


def test_a_server_that_takes_twice_as_long_is_worse_whether_its_noise_was_measured_or_not() -> None:
    assert set(aa.worse(2, (0.02, 0.03), 2.0).values()) == {2}


def test_the_stamps_and_cases_of_the_simulated_runs_are_used(tmp_path: Path) -> None:
    source = random.Random(1)
    a, b = (aa.kept(aa.started(source, aa.Deviations(0.05, 0.05, 0.05)), name, tmp_path, aa.gates()) for name in "ab")
    made = {row.metric: row for row in compare(a, b, None, anyway=False).rows}
    methods = {metric: row.compared.estimate.method.partition(" ")[0] for metric, row in made.items() if row.compared.estimate}
    assert methods["bench.ttft_ms_p95"] == "bootstrap"
    assert methods["bench.decode_tok_s_p50"] == methods["test-router.constrained_latency_ms_p50"] == "bootstrap;"
    assert methods["test-router.constrained_schema_valid"] == "McNemar"
    assert {metric for metric, row in made.items() if row.decides} == {
        gate.gate.metric for gate in aa.gates() if not gate.gate.metric.endswith(("_stable", "_gain_points"))
    }
