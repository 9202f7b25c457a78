"""Plan before you pay: what the hub tells without a download, the command, and a start that is refused."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from pipeline.config.schema import ServeConfig
from pipeline.errors import HubSilentError, ModelError, OutOfMemoryError
from pipeline.model.published import CONFIGS, QWEN_3B
from pipeline.model.remote import HEADERS, remote_weights
from pipeline.model.shape import INDEX
from pipeline.vllm.demand import demand_on
from pipeline.vllm.ladder import HOPELESS, PLANNED
from tests.builders.hub import point_at
from tests.fakes import fake_hub
from tests.fakes.environment import FakeProject, free_port, installation, machine
from tests.fakes.fake_hub import FakeHub, HubFile
from tests.integration.commands.test_cli import Project

TINY = {**QWEN_3B, "num_hidden_layers": 2, "vocab_size": 100}
CONFIG = HubFile(json.dumps(TINY).encode())


def safetensors(padding: int = 0, **tensors: tuple[str, int]) -> HubFile:
    """Return a file with tensors of (dtype, bytes), and a header of at least `padding` bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "padding": " " * padding}}
    end = 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return HubFile(struct.pack("<Q", len(text)) + text + bytes(end), lfs=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        point_at(fake.endpoint, tmp_path, monkeypatch)
        yield fake
        close_session()


def weights(repo: str = "tests/tiny", dtype: str = "auto") -> tuple[int, str]:
    _, size, source = remote_weights(repo, "main", dtype, 5)
    return size, source


# The hub.


def test_a_model_is_known_by_its_header_alone(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({"config.json": CONFIG, "model.safetensors": safetensors(embed=("BF16", 500_000), norm=("F32", 400), q=("I32", 1000))})
    assert weights() == (500_000 + 200 + 1000, HEADERS)
    assert weights(dtype="float32")[0] == 1_000_000 + 400 + 1000
    ranges = {request.range for request in hub.gets("model.safetensors")}
    assert ranges == {"bytes=0-100000"}, "100 kB of half a megabyte"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing is kept"


def test_a_long_header_is_read_to_its_end(hub: FakeHub) -> None:
    hub.commit({"config.json": CONFIG, "model.safetensors": safetensors(padding=150_000, embed=("BF16", 1000))})
    assert weights()[0] == 1000
    assert len(hub.gets("model.safetensors")) == 2


def test_the_shards_of_an_index_are_added_up_and_others_left_out(hub: FakeHub) -> None:
    index = HubFile(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}).encode()
    )
    shards = {"model-1.safetensors": safetensors(a=("F16", 10), c=("F16", 20)), "model-2.safetensors": safetensors(b=("F16", 30))}
    hub.commit({"config.json": CONFIG, INDEX: index, "consolidated.safetensors": safetensors(a=("F16", 60)), **shards})
    assert weights()[0] == 60
    assert hub.gets("consolidated.safetensors") == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"model.safetensors": safetensors(a=("F16", 10))}, "tests/tiny has no config.json"),
        ({"config.json": CONFIG}, "tests/tiny has no safetensors weights that can be read"),
        ({"config.json": CONFIG, "model.safetensors": HubFile(b"12345678 no header", lfs=True)}, "no safetensors weights that can be read"),
        ({"config.json": CONFIG, INDEX: HubFile(b"[]")}, "is no index of weights"),
        ({"config.json": HubFile(b"{}")}, "config.json tells no memory plan"),
    ],
)
def test_a_repository_that_tells_no_size_is_told(hub: FakeHub, files: dict[str, HubFile], says: str) -> None:
    hub.commit(files)
    with pytest.raises(ModelError, match=says) as caught:
        weights()
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_gated_and_an_unknown_repository_are_told(hub: FakeHub) -> None:
    hub.commit({"config.json": CONFIG})
    with pytest.raises(ModelError, match="the hub knows no model tests/other"):
        weights("tests/other")
    hub.refusals["resolve"] = fake_hub.GATED
    with pytest.raises(ModelError, match="tests/tiny is gated"):
        weights()


def test_a_hub_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(f"http://127.0.0.1:{free_port()}", tmp_path, monkeypatch)
    with pytest.raises(HubSilentError, match="the hub cannot be reached"):
        weights()
    close_session()


# The command.


def test_plan_says_what_fits_without_a_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    before = time.monotonic()
    said = project.says("plan", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - before < 30
    assert said[0].startswith("planned for NVIDIA GeForce RTX 4050 Laptop GPU with 6141 MiB (the guide's card, because ")
    assert said[1].startswith("the hub cannot be reached: ")
    assert any(line.startswith("Qwen2.5-3B-Instruct *") and "does not fit: takes " in line for line in said)
    assert "fit within the target: Qwen2.5-1.5B-Instruct, Qwen2.5-3B-Instruct-AWQ, SmolLM2-135M-Instruct" in said
    assert not (project.root / "artifacts").exists()
    assert not (project.root / "models").exists()


def test_plan_asks_the_hub_for_headers_and_its_exit_code_is_the_profiles(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    large = safetensors(a=("BF16", 10))
    with FakeHub() as hub:
        hub.commit({"config.json": CONFIG, "model.safetensors": large})
        words = ("plan", "--profile", "qwen2.5-1.5b", "--set", "model.name=tiny", "--set", f"model.repo={hub.repo}")
        said = project.says(*words, "--total-mib", "24564", HF_ENDPOINT=hub.endpoint)
        assert said[0] == "planned for a GPU with 24564 MiB (--total-mib)"
        assert any(line.startswith("tiny ") and " hub " in line and line.endswith(" fits") for line in said)
        done = project.invoke(*words, "--total-mib", "400", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 1
    assert "as it stands, with utilisation 0.65: does not fit, unless the estimate is off" in done.stdout


def test_plan_refuses_a_size_that_is_none(tmp_path: Path) -> None:
    said = Project(tmp_path / "project").refuses("plan", "--total-mib", "24GB")
    assert said == ["error: --total-mib 24GB: expected the device's memory in MiB", "  → for example --total-mib 24564"]


# The refusal.


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
