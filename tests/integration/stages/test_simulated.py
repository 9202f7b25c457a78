"""All measuring stages: simulated figures, a death in mid-measurement, the shipped suites."""

import json
import shutil

import psutil
import pytest

from pipeline.config.schema import RouterConfig, VramConfig
from pipeline.engine.record import Measurement, Outcome
from pipeline.engine.workspace import Workspace
from pipeline.errors import PipelineError, ServerError
from pipeline.measure.verdicts import exit_code
from pipeline.report.gates import judge_all
from pipeline.server import state
from pipeline.stages import measure_vram as memory
from pipeline.stages import test_determinism as determinism
from pipeline.stages import test_router as router
from pipeline.stages.serve import Server
from tests.builders.house import outcomes_of
from tests.builders.stages import ARMS, DETERMINISM, GOLD, ROOT, ROUTER, STAGES, bench, forgive_the_machine, gates, write_samples
from tests.fakes.environment import machine, until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.fakes.tokens import split


def measure_all(server: Server, workspace: Workspace) -> dict[str, Measurement]:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    return {
        "test-router": router.test_router(ROUTER, server, workspace),
        "test-determinism": determinism.test_determinism(ARMS.model_copy(update={"constrained": 1}), ROUTER, server, workspace),
        "bench": bench(server, workspace),
        "measure-vram": memory.measure_vram(VramConfig(load_s=0.8, concurrency=2), machine(gpu=True), server, workspace),
    }


def test_no_gate_passes_on_a_simulated_server(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgive_the_machine(monkeypatch)

    class Read(Script):
        """Amid D3's load an answer waits for readings of the gauge."""

        def for_request(self, number: int, prompt: str) -> Script:
            read = fake.ledger.readings
            if prompt in ("steady", "shaky", "right") and fake.ledger.in_flight > 1:
                until(lambda: fake.ledger.readings > read + 10, "readings of the gauge")
            return super().for_request(number, prompt)

    fake.script = Read(texts=(json.dumps(GOLD),), inter_token_s=0.001, by_prompt={"subject number": {"first_token_s": 0.2}})
    measured = measure_all(server, workspace)
    assert all(result.simulated for result in measured.values())
    outcomes = {stage: Outcome(stage, result, None) for stage, result in measured.items()}
    judged = judge_all(gates(), outcomes_of(outcomes))
    too_short = {"vram_stable", "host_memory_stable"}  # 0.3 s of load give no figure to simulate
    assert {gate.judgement.verdict for gate in judged if gate.id not in too_short} == {"SIMULATED"}
    assert {gate.judgement.verdict for gate in judged if gate.id in too_short} == {"NOT_MEASURED"}
    assert exit_code((gate.judgement, gate.gate.required) for gate in judged) == 2


def test_the_same_figures_would_pass_on_a_real_one(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    """Or else the test above could not fail."""
    fake.script = Script(texts=(json.dumps(GOLD),), inter_token_s=0.001)
    real = server.model_copy(update={"real": True})
    (workspace.root / "prompts.txt").write_text("\n".join(f"prompt {number}" for number in range(20)), encoding="utf-8")
    result = determinism.test_determinism(DETERMINISM, ROUTER, real, workspace)
    judged = {
        gate.id: gate.judgement.verdict
        for gate in judge_all(gates(), outcomes_of({"test-determinism": Outcome("test-determinism", result, None)}))
    }
    assert judged["deterministic_output"] == "PASS"
    assert judged["throughput"] == "NOT_MEASURED"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("script", [Script(), Script(status=500)], ids=["answers", "errors"])
def test_a_server_that_died_meanwhile_is_the_failure_with_its_own_cause(
    stage: str, script: Script, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    write_samples(workspace)
    (workspace.root / "server.log").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", encoding="utf-8")
    died = psutil.Popen(["true"])
    created = state.created_s(died.pid)
    died.wait()
    dead = server.model_copy(update={"handle": server.handle.model_copy(update={"pid": died.pid, "created": created})})
    with pytest.raises(ServerError, match="died while it was measured: the GPU ran out of memory") as caught:
        STAGES[stage](dead, workspace)
    assert isinstance(caught.value, PipelineError)
    assert caught.value.log == workspace.root / "server.log"


def test_the_shipped_suites_run(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    shutil.copytree(ROOT / "suites", workspace.root / "suites")
    fake.script = Script(texts=('{"route": "unknown"}',))
    for name in ("router-en", "router-tr"):
        result = router.test_router(RouterConfig(suite=f"suites/{name}", cases=3, max_tokens=32), server, workspace)
        assert result.suite == name
        assert result.failures["constrained"] == {"missing key": 3}


def test_the_fakes_tokens_are_what_the_tests_above_take_them_for() -> None:
    assert split("aaaabbbbc") == ["aaaa", "bbbb", "c"]
