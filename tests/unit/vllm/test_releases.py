"""The rows of the table of releases: each is a difference between the two pinned sets, and each has its effect."""

from collections.abc import Callable

import pytest

from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.gpu.host import Host
from pipeline.vllm import numbers, releases
from pipeline.vllm.breakdown import breakdown
from pipeline.vllm.kernels import compiles_on_demand, is_monitored
from pipeline.vllm.phases import Phases
from pipeline.vllm.plan import DEFAULT_UTILIZATION, ERROR_MIB
from pipeline.vllm.releases import Difference
from pipeline.vllm.sets import ON_GPU
from pipeline.vllm.settle import quick_start, settle
from tests.builders.machines import gpu, host

NEWER, OLDER = (vllm_set.vllm for vllm_set in ON_GPU)
# Lines of each release's log on a GPU, by its source; the first three of 0.19.1 were printed by its engine without a device.
LOGS = {
    OLDER: (
        "(APIServer pid=1) INFO 11-28 04:09:11 [utils.py:233] non-default args: {'model': 'm'}",
        f"(EngineCore pid=2) INFO 11-28 04:09:32 [core.py:105] Initializing a V1 LLM engine (v{OLDER}) with config: device_config=cuda",
        "(EngineCore pid=2) INFO 11-28 04:09:32 [kv_cache_utils.py:1319] GPU KV cache size: 46,592 tokens",
        "(EngineCore pid=2) INFO 11-28 04:09:33 [gpu_model_runner.py:4736] Starting to load model m...",
        "(EngineCore pid=2) INFO 11-28 04:09:35 [gpu_model_runner.py:4821] Model loading took 0.25 GiB memory and 1.204000 seconds",
        "(EngineCore pid=2) INFO 11-28 04:09:36 [gpu_worker.py:437] Available KV cache memory: 38.25 GiB",
        "(EngineCore pid=2) INFO 11-28 04:09:40 [gpu_model_runner.py:6047] Graph capturing finished in 2 secs, took 0.50 GiB",
    ),
    NEWER: (
        "(APIServer pid=1) INFO 11-27 15:20:01 [utils.py:233] non-default args: {'model': 'm'}",
        f"(EngineCore pid=2) INFO 11-27 15:20:05 [core.py:105] Initializing a V1 LLM engine (v{NEWER}) with config: device_config=cuda",
        "(EngineCore pid=2) INFO 11-27 15:20:08 [model_runner.py:270] Loading model from scratch...",
        "(EngineCore pid=2) INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations follow.",
    ),
}


def settled(version: str, wsl: bool = False, **settings: object) -> ServeConfig:
    here: Host = host().model_copy(update={"wsl": wsl})
    return settle(ServeConfig.model_validate(settings), here, "vllm", {"vllm": version})


def phases_of(version: str) -> dict[str, float]:
    phases = Phases()
    for second, line in enumerate(LOGS[version], 1):
        phases.see(line, float(second))
    return phases.durations(99)


def devices_for(version: str) -> str | None:
    settings = ServeConfig(env={CUDA_DEVICES: "GPU-1,GPU-0"})
    return numbers.by_number(settings, {}, [gpu(index=1), gpu(index=0)], version).env[CUDA_DEVICES]


def test_default_share() -> None:
    assert settled(OLDER).gpu_memory_utilization == DEFAULT_UTILIZATION, "asked for, as this release would take less"
    assert settled(NEWER).gpu_memory_utilization is None
    assert settled(OLDER, gpu_memory_utilization=0.5).gpu_memory_utilization == 0.5


def test_graphs_in_share() -> None:
    graphs = breakdown("\n".join(LOGS[OLDER])).graphs_mib
    assert graphs == 512, "read from the older release's log too"
    assert graphs < ERROR_MIB


def test_sampler() -> None:
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in settled(OLDER).env
    assert settled(NEWER).env["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_second_runner() -> None:
    for version in (OLDER, NEWER):
        assert "weights" in phases_of(version), version


def test_uuids() -> None:
    assert devices_for(OLDER) == "1,0"
    assert devices_for(NEWER) == "GPU-1,GPU-0"


def test_kernel_monitor() -> None:
    older, newer = ("\n".join(LOGS[version]) for version in (OLDER, NEWER))
    assert not is_monitored(older)
    assert is_monitored(newer)
    assert compiles_on_demand(older), "it compiles kernels when a request needs them, and says nothing"
    assert compiles_on_demand(newer)
    assert not compiles_on_demand(older.replace("device_config=cuda", "device_config=cpu"))


def test_startup_plan() -> None:
    assert "VLLM_ENABLE_STARTUP_PLAN" not in settled(OLDER).env
    assert "VLLM_ENABLE_STARTUP_PLAN" not in quick_start({"vllm": OLDER}), "nor at the rehearsal after an install"
    assert settled(NEWER).env["VLLM_ENABLE_STARTUP_PLAN"] == "1"


def test_unpinned() -> None:
    for version, value in ((OLDER, "0"), ("0.24.0", "0"), ("0.29.0", "0"), ("0.30.0", None), (NEWER, None)):
        assert settled(version, wsl=True).env.get("VLLM_USE_V2_MODEL_RUNNER") == value, version
        assert "VLLM_USE_V2_MODEL_RUNNER" not in settled(version).env, "only under WSL2"
    asked = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    assert settled("0.24.0", wsl=True, env=asked).env.items() >= asked.items(), "what the user asks for stands"


def words(version: str, capability: str, *extra_args: str) -> tuple[str, ...]:
    device = gpu().model_copy(update={"compute_capability": capability})
    return settle(ServeConfig(extra_args=extra_args), host(), "vllm", {"vllm": version}, [device]).extra_args


def test_flashinfer() -> None:
    for capability in ("7.5", "10.0", "10.3"):
        assert words(OLDER, capability) == ("--attention-backend=TRITON_ATTN",), capability
        assert words(NEWER, capability) == (), capability
    for capability in ("7.0", "8.9", "9.0", "12.0"):
        assert words(OLDER, capability) == (), capability
    assert words(OLDER, "7.5", "--attention-backend", "FLEX_ATTENTION") == ("--attention-backend", "FLEX_ATTENTION")


DIFFERENCES = {name: value for name, value in vars(releases).items() if isinstance(value, Difference)}
ROW_TESTS: dict[str, Callable[[], None]] = {name: globals()[f"test_{name.lower()}"] for name in DIFFERENCES}


def test_every_row_differs_between_the_sets_and_has_its_test() -> None:
    assert ROW_TESTS
    for row in DIFFERENCES.values():
        assert row.holds_in(NEWER), row.what
        assert not row.holds_in(OLDER), row.what


@pytest.mark.parametrize(
    ("version", "holds"),
    [("0.23.9", False), ("0.24.0", True), ("0.24", True), ("0.24.0rc1+cu129", True), ("1.0", True), ("", True), ("dev", True)],
)
def test_a_version_that_cannot_be_read_counts_as_the_newest(version: str, holds: bool) -> None:
    assert releases.UUIDS.holds_in(version) is holds
