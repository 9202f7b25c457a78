"""What a machine lacks for a start is said before it, in one line with what to do: `serve` beside the stand-ins for NVML and vLLM."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.forkserver import start
from tests.fakes.nvml import ROOT, RTX_4050, SYSTEM, FakeNvml

QWEN_1_5B = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
# check-gpu's own reading, then serve on it, in a process that finds the stand-in for the driver's library.
SERVE = """
import json, os, sys
from pathlib import Path
from pipeline.config.schema import GpuConfig
from pipeline.contexts import VisibleDevices
from pipeline.errors import PipelineError
from pipeline.stages.check_gpu import check_gpu
from tests.fakes.environment import FakeProject, installation
root, model, chosen, changes = sys.argv[1], *map(json.loads, sys.argv[2:])
project = FakeProject(Path(root))
(project.folder / "config.json").write_text(json.dumps(model))
project.installation = installation().model_copy(update={"set": chosen, "distribution": "vllm"})
project.machine = check_gpu(GpuConfig(), VisibleDevices())
told = {}
try:
    server = project.serve(project.settings().model_copy(update=changes))
    told["attempts"] = [attempt.changed for attempt in server.attempts]
    visible = server.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        told["visible"] = visible
except PipelineError as error:
    told.update(message=error.message, hint=error.hint, kind=error.kind)
finally:
    launches = project.workspace.launches
    told["launches"] = len(list(launches.iterdir())) if launches.exists() else 0
    project.close()
print(json.dumps(told))
"""


@dataclass(frozen=True)
class House:
    """Where a server is started, and with which library in the driver's place."""

    root: Path
    nvml: FakeNvml

    def serve(
        self, script: str, visible: str | None = None, chosen: str = "vllm-cuda13", env: dict[str, str] | None = None, **changes: object
    ) -> dict[str, Any]:
        """Return what came of it, where nothing falls back to less by itself."""
        self.nvml.play(script)
        settings = {"on_oom": "fail", "gpu_memory_utilization": 0.75, **changes}
        words = [str(self.root), json.dumps(QWEN_1_5B), json.dumps(chosen), json.dumps(settings)]
        environment = {**self.nvml.environment(visible), **(env or {})}
        process = start(["-c", SERVE, *words], ROOT, environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told

    def refused(self, script: str, visible: str | None = None, **more: Any) -> tuple[str, str]:
        """Return message and hint of a start that was refused before anything was started."""
        told = self.serve(script, visible, **more)
        assert told["launches"] == 0, told
        assert "\n" not in told["message"] + told["hint"]
        assert told["hint"].endswith("; or try all the same: --set serve.force_start=true")
        return told["message"], told["hint"]


@pytest.fixture
def house(tmp_path: Path, nvml: FakeNvml) -> House:
    return House(tmp_path / "project", nvml)


FREE = f"{SYSTEM}{RTX_4050}"
FULL = FREE.replace("used=100", "used=1700") + "process pid=1 used=1500\n"


def test_a_machine_that_lacks_nothing_gets_its_start(house: House) -> None:
    assert house.serve(FREE) == {"attempts": [], "launches": 1}


def test_a_card_that_others_fill_is_told_with_who_and_how_much(house: House) -> None:
    message, hint = house.refused(FULL)
    assert message.startswith(
        "not started: 4141 of 5841 MiB are free on GPU 0 (RTX 4050), and serve.gpu_memory_utilization 0.75 asks for 4381; held by pid 1 ("
    )
    assert message.endswith(") 1500")
    assert hint.startswith("close what you do not need on the GPU (`./inv check-gpu` lists it), or set ")
    assert ", or set serve.gpu_memory_utilization=0.62 or less; " in hint


def test_a_card_that_others_fill_wholly_leaves_no_share_to_take(house: House) -> None:
    _, hint = house.refused(FULL.replace("used=1700", "used=5500"))
    assert "gpu_memory_utilization=" not in hint


def test_where_less_is_allowed_a_share_that_fits_is_taken_before_anything_is_started(house: House) -> None:
    assert house.serve(FULL, on_oom="fallback", max_model_len=1024) == {"attempts": ["gpu_memory_utilization 0.75 → 0.62"], "launches": 1}


def test_who_insists_gets_a_full_card(house: House) -> None:
    assert house.serve(FULL, force_start=True)["launches"] == 1


def test_a_share_in_the_extra_arguments_is_vllms_to_judge(house: House) -> None:
    assert house.serve(FULL, extra_args=["--gpu-memory-utilization=0.3"])["launches"] == 1


def test_a_driver_that_is_too_old_is_told(house: House) -> None:
    message, hint = house.refused(FREE.replace("580.65.06", "535.183.01").replace("13000", "12020"))
    assert message == "not started: the NVIDIA driver 535.183.01 is too old for vllm-cuda13, which needs 580"
    assert hint.startswith("leave install.set at auto, or update the driver to 580 or newer;")


def test_the_same_driver_is_new_enough_for_the_older_set(house: House) -> None:
    assert house.serve(FREE.replace("580.65.06", "535.183.01"), chosen="vllm-cuda12")["launches"] == 1


MIG = (
    f"{SYSTEM}device uuid=GPU-a100 name=A100 total=40960 used=99 cc=8.0 mig=1\n"
    "instance uuid=MIG-11 name=A100_MIG_1g total=9856 used=13 reserved=4\n"
    "instance uuid=MIG-22 name=A100_MIG_2g total=9856 used=26 reserved=4\n"
)


def test_an_instance_is_named_by_its_gpu_because_vllm_takes_its_number_for_a_gpus(house: House) -> None:
    assert house.serve(MIG, "MIG-11")["visible"] == "0"


def test_where_no_instance_is_chosen_nothing_is_set(house: House) -> None:
    assert "visible" not in house.serve(MIG)


def test_an_instance_that_vllm_cannot_find_is_told(house: House) -> None:
    told = house.serve(MIG, "MIG-22")
    assert told["launches"] == 0
    assert told["message"] == "vLLM finds only the first instance of GPU 0, MIG-11, and CUDA_VISIBLE_DEVICES names MIG-22"
    assert told["hint"] == "choose the first one, or show a container only this one: `docker run --gpus device=UUID`"


@pytest.mark.parametrize(
    ("visible", "reason"),
    [
        ("7", "CUDA_VISIBLE_DEVICES=7: 7 is no device here"),
        ("GPU-ffff", "CUDA_VISIBLE_DEVICES=GPU-ffff: GPU-ffff is no device here"),
        ("", "CUDA_VISIBLE_DEVICES='' hides every device"),
    ],
)
def test_a_device_that_does_not_exist_is_told(house: House, visible: str, reason: str) -> None:
    message, hint = house.refused(FREE, visible)
    assert message.startswith(f"not started: vllm-cuda13 needs a GPU: {reason}")
    assert hint.startswith("`nvidia-smi -L` lists the devices; unset CUDA_VISIBLE_DEVICES to use all; without a GPU use --profile cpu;")


def test_a_model_that_does_not_fit_is_told(house: House) -> None:
    message, hint = house.refused(FREE, gpu_memory_utilization=0.3)
    assert message.startswith("not started: the plan leaves ")
    assert hint.startswith("what would fit: serve.gpu_memory_utilization from ")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"CC": "", "PATH": "/nowhere"}, "there is no C compiler, which Triton needs (no gcc or clang on the PATH)"),
        ({"CC": "/nowhere/gcc"}, "there is no C compiler, which Triton needs (CC=/nowhere/gcc is not there)"),
    ],
)
def test_a_missing_compiler_is_told(house: House, env: dict[str, str], says: str) -> None:
    message, hint = house.refused(FREE, env=env)
    assert message == f"not started: {says}"
    assert hint.startswith("Debian, Ubuntu: sudo apt install gcc python3-dev; Fedora: sudo dnf install gcc python3-devel;")


def test_check_gpu_tells_a_missing_compiler_and_the_commands(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/gcc")
    (caution,) = nvml.check_gpu(FREE).cautions
    assert caution.fact == "there is no C compiler, which Triton needs (CC=/nowhere/gcc is not there)"
    assert caution.fix == "Debian, Ubuntu: sudo apt install gcc python3-dev; Fedora: sudo dnf install gcc python3-devel"
    assert nvml.check_gpu(SYSTEM).cautions == [], "no GPU, no need of it"
