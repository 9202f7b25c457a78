"""A start that cannot succeed is refused with the plan, before anything is started."""

import json

import pytest

from pipeline.config.schema import ServeConfig
from pipeline.errors import OutOfMemoryError
from pipeline.model.published import CONFIGS
from pipeline.vllm.demand import demand_on
from pipeline.vllm.ladder import HOPELESS, PLANNED
from tests.fakes.environment import FakeProject, installation, machine


@pytest.fixture
def laptop(project: FakeProject) -> FakeProject:
    """A project on a GPU of 6141 MiB whose model is the guide's, which does not fit it."""
    project.machine = machine(gpu=True)
    project.installation = installation().model_copy(update={"distribution": "vllm"})
    has(project, "Qwen/Qwen2.5-3B-Instruct")
    return project


def has(project: FakeProject, repo: str) -> None:
    (project.folder / "config.json").write_text(json.dumps(CONFIGS[repo]), encoding="utf-8")


def settings(project: FakeProject, **changes: object) -> ServeConfig:
    return project.settings().model_copy(update={"on_oom": "fail", "gpu_memory_utilization": 0.75, **changes})


def refused(project: FakeProject, **changes: object) -> OutOfMemoryError:
    with pytest.raises(OutOfMemoryError) as caught:
        project.serve(settings(project, **changes))
    assert project.processes() == []
    assert not project.workspace.launches.exists(), "nothing was started"
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_a_start_that_cannot_succeed_is_refused_with_the_plan(laptop: FakeProject) -> None:
    error = refused(laptop)
    assert error.message == (
        "not started: the plan leaves -1678 MiB (±700) for a KV cache that needs 144 for one request of 4096 tokens: "
        "4606 of 6141 MiB less 5886 of weights, 398 of activations"
    )
    assert error.hint == (
        "no share of this device and no context fits: take a smaller model (`./inv plan` shows which fit); "
        "or try all the same: --set serve.force_start=true"
    )
    assert (error.cause, error.kind, error.log) == (HOPELESS, "memory", None)


@pytest.mark.parametrize(
    ("changes", "cause", "hint"),
    [
        ({"gpu_memory_utilization": 0.3}, HOPELESS, "what would fit: serve.gpu_memory_utilization from 0.56 to 0.91"),
        (
            {"max_model_len": 131072, "gpu_memory_utilization": 0.8},
            PLANNED,
            "what would fit: serve.max_model_len up to 32768 with serve.gpu_memory_utilization 0.91",
        ),
    ],
)
def test_the_refusal_says_what_would_fit(laptop: FakeProject, changes: dict[str, object], cause: str, hint: str) -> None:
    has(laptop, "Qwen/Qwen2.5-1.5B-Instruct")
    error = refused(laptop, **changes)
    assert error.cause == cause
    assert error.hint.startswith(f"{hint}; or try all the same")


def test_what_no_smaller_flag_saves_is_not_tried_with_smaller_ones(laptop: FakeProject) -> None:
    assert "tried in vain" not in refused(laptop, on_oom="fallback").message


def test_a_context_that_cannot_fit_is_shortened_before_anything_is_started(laptop: FakeProject) -> None:
    has(laptop, "Qwen/Qwen2.5-1.5B-Instruct")
    server = laptop.serve(settings(laptop, on_oom="fallback", max_model_len=131072, gpu_memory_utilization=0.8))
    first, *_ = server.attempts
    assert first.cause.startswith("not started: the plan leaves ")
    assert (first.changed, first.log) == ("max_model_len 131072 → 65536", "")
    assert server.max_model_len == 65536
    assert server.plan is not None
    assert not server.plan.cannot_fit
    assert len(list(laptop.workspace.launches.iterdir())) == 1


def test_whoever_insists_gets_the_start(laptop: FakeProject) -> None:
    server = laptop.serve(settings(laptop, force_start=True))
    assert server.attempts == []
    assert server.plan is not None
    assert server.plan.cannot_fit


def test_what_the_plan_does_not_know_is_started(laptop: FakeProject) -> None:
    server = laptop.serve(settings(laptop, extra_args=("--tensor-parallel-size=1",)))
    assert (server.attempts, server.plan) == ([], None)


def test_a_server_on_the_processor_is_not_refused_for_a_gpu(laptop: FakeProject) -> None:
    cpu = installation().distribution
    assert demand_on(settings(laptop), laptop.machine.gpus, "vllm", laptop.folder) is not None
    assert demand_on(settings(laptop), laptop.machine.gpus, cpu, laptop.folder) is None
    assert demand_on(settings(laptop), machine().gpus, "vllm", laptop.folder) is None
