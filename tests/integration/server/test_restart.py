"""A restart keeps the identity, and its answers are compared."""

import shutil
from dataclasses import replace
from typing import Any

import psutil
import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.client.tokens import Asker
from pipeline.config.schema import DeterminismConfig, VramConfig
from pipeline.engine.record import Store
from pipeline.errors import MeasureError, ServerError
from pipeline.server.identity import runs_python
from pipeline.server.stop import stop_server
from pipeline.stages import test_determinism
from pipeline.stages.measure_vram import measure_vram
from pipeline.stages.serve import Server, restart, server_present
from pipeline.stages.test_determinism import Arm, Determinism
from tests.builders.servers import assert_nothing_left, served_and_recorded
from tests.builders.stages import ROUTER
from tests.fakes.environment import MODEL_NAME, FakeProject, add_command
from tests.fakes.script import Script

DETERMINISM = DeterminismConfig(prompts="prompts.txt", runs=2, constrained=0, max_tokens=8, cache_runs=0, load=(), timeout_s=30)


def test_a_restart_keeps_identity_and_reason_and_puts_the_new_handle_on_record(project: FakeProject) -> None:
    first = served_and_recorded(project)
    second = restart(first, project.workspace)
    assert second.identity() == first.identity()
    assert (second.handle.launch_id, second.handle.pid) != (first.handle.launch_id, first.handle.pid)
    assert second.real
    assert [left.launch_id for left in second.handle.launches] == [first.handle.launch_id, second.handle.launch_id]
    assert second.handle.earlier == first.handle.launches
    outcome = Store(project.workspace.artifacts).outcome("serve", Server)
    assert outcome.data == second
    assert outcome.envelope is not None
    assert outcome.envelope.because == {"why": "a test"}
    assert server_present(second, project.workspace)
    assert not server_present(first, project.workspace)
    assert not psutil.pid_exists(first.handle.pid or 0)


def with_command(project: FakeProject) -> None:
    """Make the environment one of vLLM itself, which has the command `vllm`, and not of the build for processors."""
    add_command(project.workspace.server_environment)
    project.installation = project.installation.model_copy(update={"distribution": "vllm"})


def test_the_command_vllm_is_proven_restarted_and_warmed_up_like_the_module(project: FakeProject) -> None:
    with_command(project)
    project.play(Script(log=("INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations",)))
    first = served_and_recorded(project)
    assert first.command[:4] == ["venv-vllm/bin/python", "venv-vllm/bin/vllm", "serve", f"models/{MODEL_NAME}"]
    assert first.real, first.proofs
    second = restart(first, project.workspace)
    assert second.real
    assert second.identity() == first.identity()


def test_a_program_beside_vllms_own_is_no_proof(project: FakeProject) -> None:
    with_command(project)
    script = project.workspace.server_python.with_name("vllm")
    server = project.serve(project.settings())
    launch = project.launch()
    other = project.root / "other" / "python"
    assert runs_python(launch).holds
    assert not runs_python(launch.model_copy(update={"command": [str(other), *launch.command[1:]]})).holds
    assert server.command[1] == project.workspace.relative(script)


def test_a_server_that_is_not_on_record_is_not_restarted(project: FakeProject) -> None:
    server = served_and_recorded(project)
    stranger = server.model_copy(update={"handle": server.handle.model_copy(update={"launch_id": "another"})})
    with pytest.raises(ServerError, match="not the one on record"):
        restart(stranger, project.workspace)
    assert server_present(server, project.workspace)


def restart_arm(result: Determinism) -> Arm:
    return next(arm for arm in result.arms if arm.arm == "D4")


def test_answers_are_compared_across_a_real_restart(project: FakeProject) -> None:
    server = served_and_recorded(project)
    result = test_determinism.test_determinism(DETERMINISM, ROUTER, server, project.workspace)
    arm = restart_arm(result)
    assert (arm.reason, arm.runs, arm.agreeing) == ("", 1, 1)
    assert arm.evidence == f"launch {server.handle.launch_id}, then {project.launch().id}"
    assert result.launch_id == server.handle.launch_id != project.launch().id


@pytest.mark.parametrize(
    ("change", "agreeing", "says"),
    [
        ({"texts": ("Hello there, this has changed.",)}, 0, ""),
        ({"prompt_prefix": "<s>"}, 0, "the prompt's own token ids changed: 'Merhaba'"),
    ],
)
def test_what_a_restart_changes_is_noticed(project: FakeProject, change: dict[str, Any], agreeing: int, says: str) -> None:
    server = served_and_recorded(project)
    series = test_determinism.repeat(Asker(Endpoint(server.handle.base_url), server.model, DETERMINISM), ["Merhaba"], project.workspace)
    project.play(Script(**change))
    (arm,) = test_determinism.restart_arms([series], server, project.workspace)
    assert (arm.reason, arm.agreeing) == (says, agreeing)


def test_prompts_of_other_token_ids_after_a_restart_leave_the_other_prompts(project: FakeProject) -> None:
    server = served_and_recorded(project)
    free = test_determinism.repeat(Asker(Endpoint(server.handle.base_url), server.model, DETERMINISM), ["Merhaba"], project.workspace)
    other = {prompt: [replace(answer, prompt_ids=(0,)) for answer in answers] for prompt, answers in free.answers.items()}
    series = [free, replace(free, answers=other, constrained=True)]
    arms = test_determinism.restart_arms(series, server, project.workspace)
    told = [(arm.constrained, arm.reason, arm.agreeing) for arm in arms]
    assert told == [(False, "", 1), (True, "the prompt's own token ids changed: 'Merhaba'", 0)]


def test_a_server_that_does_not_come_back_leaves_the_other_arms(project: FakeProject) -> None:
    server = served_and_recorded(project)
    project.play(Script(exit_code=1, log=("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",)))
    result = test_determinism.test_determinism(DETERMINISM, ROUTER, server, project.workspace)
    assert "the server did not come back: the server did not start" in restart_arm(result).reason
    assert result.figures["identical"].value == 100
    assert result.figures["d4_identical"].value is None


def test_a_sampler_that_dies_costs_the_samples_and_not_the_server(project: FakeProject) -> None:
    shared = (project.root / "pipeline").resolve()  # by all tests of this process
    (project.root / "pipeline").unlink()
    shutil.copytree(shared, project.root / "pipeline", symlinks=True)
    (project.root / "pipeline" / "gpu" / "sampler.py").write_text("raise RuntimeError('no driver')\n", encoding="utf-8")
    settings = project.settings()
    server = project.serve(settings)
    assert server_present(server, project.workspace)
    assert "no driver" in (project.root / server.handle.samples).with_name("sampler.log").read_text(encoding="utf-8")
    with pytest.raises(MeasureError, match="memory: no samples"):
        measure_vram(VramConfig(load_s=0.1, concurrency=1), project.machine, server, project.workspace)
    stop_server(project.launch(), project.workspace)
    assert_nothing_left(project, settings.port)
