"""The survey of what fits: which device, which models with which settings, what is known of them, and what is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import planning
from pipeline.commands.plan import code, lines, total
from pipeline.config.layers import Layers, load_layers
from pipeline.config.schema import ModelConfig, ServeConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, HubSilentError, ModelError
from pipeline.model.shape import Shape
from pipeline.planning import Library, ModelFit, Survey, card, survey, target
from pipeline.terminal import Silent, plain
from pipeline.vllm.plan import LAPTOP, LAPTOP_MIB
from tests.builders.machines import gpu, machine

SHIPPED = Path(__file__).resolve().parents[3] / "config.yaml"


@pytest.fixture(autouse=True)
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No hub answers; return the models that it was asked for."""
    asked: list[str] = []

    def silent(repo: str, *_: object) -> tuple[Shape, int, str]:
        asked.append(repo)
        raise HubSilentError("the hub cannot be reached: no route", "check the network")

    monkeypatch.setattr(planning, "remote_weights", silent)
    return asked


def shipped(*sets: str, profile: str | None = None) -> Layers:
    return load_layers(SHIPPED, {}, sets, profile)


def surveyed(tmp_path: Path, layers: Layers, total_mib: float | None = None) -> Survey:
    return survey(layers, machine(), Workspace(tmp_path, Silent()), total_mib, ours=False)


def test_without_a_gpu_the_guides_card_is_planned_for_and_that_is_said(tmp_path: Path) -> None:
    found = surveyed(tmp_path, shipped())
    assert (found.card.name, found.card.total_mib, found.profile) == (LAPTOP, LAPTOP_MIB, "rtx4050-6gb")
    first = next(lines(found))
    assert first == f"planned for {LAPTOP} with 6141 MiB (the guide's card, because no driver)"


def test_the_first_gpu_here_is_planned_for_with_what_others_leave_of_it() -> None:
    seen = machine("580.1").model_copy(update={"gpus": [gpu(24564, "RTX 4090", 1), gpu(6141)]})
    assert card(seen, None, False, ServeConfig()).available_mib == 24464
    assert card(seen, None, True, ServeConfig()).available_mib == 24564, "our own server gives back what it holds"
    assert card(seen, 8192, False, ServeConfig()).total_mib == 8192


@pytest.mark.parametrize(
    ("settings", "name", "reason"),
    [
        ({}, "A", "check-gpu"),
        ({"tensor_parallel_size": 2}, "B", "check-gpu, the smallest of 2 that share the model"),
        ({"pipeline_parallel_size": 3}, "C", "check-gpu, the smallest of 3 that share the model"),
        ({"data_parallel_size": 2}, "B", "check-gpu, the smallest of 2 that share the model"),
        ({"tensor_parallel_size": 2, "nnodes": 2, "master_addr": "192.0.2.1"}, "A", "check-gpu"),
    ],
)
def test_of_unlike_gpus_the_smallest_that_the_settings_use_decides(settings: dict[str, Any], name: str, reason: str) -> None:
    seen = machine("580.1").model_copy(update={"gpus": [gpu(24564, "A"), gpu(12288, "B", 1), gpu(6141, "C", 2), gpu(4096, "D", 3)]})
    found = card(seen, None, False, ServeConfig.model_validate(settings))
    assert (found.name, found.reason) == (name, reason)


def test_a_gpu_that_others_use_is_said_to_be(tmp_path: Path) -> None:
    found = survey(shipped(), machine("580.1"), Workspace(tmp_path, Silent()), None, ours=False)
    assert next(lines(found)) == "planned for RTX 4050 with 6141 MiB, 6041 of them free (check-gpu)"


def test_every_model_of_the_guide_and_of_the_gpu_profiles_has_a_row(tmp_path: Path) -> None:
    layers = shipped()
    found = surveyed(tmp_path, layers)
    guide = [entry.model for entry in layers.config(None).alternatives.root]
    assert [row.name for row in found.rows if row.guide] == guide
    in_rows = [name for row in found.rows for name in row.profiles]
    random = [name for name in layers.profiles if layers.config(name).serve.load_format == "dummy"]
    assert sorted([*in_rows, *found.processor, *random]) == sorted(layers.profiles)
    assert found.processor == ("cpu", "quick", "cpu-full")
    words = plain(lines(found))
    assert all(any(line.startswith(row.name) for line in words) for row in found.rows)
    assert "left out, because they run on the processor: cpu, quick, cpu-full" in words


def test_what_is_not_on_disk_is_planned_by_what_is_published_when_no_hub_answers(tmp_path: Path, silent_hub: list[str]) -> None:
    found = surveyed(tmp_path, shipped())
    assert len(silent_hub) == 1, "a hub that does not answer is asked once"
    said = list(lines(found))
    assert said[1] == "the hub cannot be reached: no route; models that are not on disk are planned by their published config.json"
    assert "fit within the target: Qwen2.5-1.5B-Instruct, Qwen2.5-3B-Instruct-AWQ, SmolLM2-135M-Instruct" in said


def test_a_model_that_nothing_tells_of_is_unknown_with_the_reason(tmp_path: Path) -> None:
    layers = shipped("model.source=hub", "model.repo=somebody/else", "model.name=else", profile="qwen2.5-1.5b")
    found = surveyed(tmp_path, layers)
    reason = "the hub cannot be reached: no route, and somebody/else is not among the models known here"
    assert f"else: unknown: {reason}" in list(lines(found))
    assert list(lines(found))[-1] == "profile qwen2.5-1.5b (--profile): unknown, see above"
    assert code(found) == 2


def test_a_path_that_is_not_there_is_unknown_and_named_from_the_project(tmp_path: Path) -> None:
    assert not [row for row in surveyed(tmp_path, shipped()).rows if row.name == "Qwen2.5-3B-shape"], "it is no model to choose"
    (found,) = (row for row in surveyed(tmp_path, shipped(profile="qwen2.5-3b-shape")).rows if row.name == "Qwen2.5-3B-shape")
    assert found.reason == "models/qwen2.5-3b-shape: No such file or directory"


def test_a_flag_that_changes_the_plan_makes_it_unknown(tmp_path: Path) -> None:
    found = surveyed(tmp_path, shipped("serve.extra_args=[--tensor-parallel-size=2]"))
    assert {row.reason for row in found.rows} == {"--tensor-parallel-size in serve.extra_args changes what is planned here"}


def test_a_hub_that_refuses_a_model_leaves_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(repo: str, *_: object) -> tuple[Shape, int, str]:
        raise ModelError(f"{repo} is gated")

    monkeypatch.setattr(planning, "remote_weights", gated)
    library = Library(machine(), Workspace(tmp_path, Silent()))
    known = ModelConfig(source="hub", repo="meta-llama/Llama-3.2-3B-Instruct")
    assert library.weights(known, "auto")[2] == "published config.json"
    with pytest.raises(ModelError, match="somebody/else is gated"):
        library.weights(ModelConfig(source="hub", repo="somebody/else"), "auto")
    assert library.trouble == "", "the hub did answer"


def test_the_profile_in_force_is_judged_as_it_stands(tmp_path: Path) -> None:
    fits = surveyed(tmp_path, shipped())
    *_, stands, best = plain(lines(fits))
    assert stands.startswith("profile rtx4050-6gb (auto: what 6141 MiB take) as it stands, with utilisation 0.65: fits with 46216 tokens")
    assert stands.endswith("peak 4528 of 6141 MiB, target 4768")
    assert "2992 × 16 (0.66)" in best
    assert code(fits) == 0
    large = surveyed(tmp_path, shipped(profile="qwen2.5-7b"))
    assert "as it stands, with utilisation 0.9: cannot fit with 0 tokens" in plain(lines(large))[-1]
    assert code(large) == 1
    close = surveyed(tmp_path, shipped("serve.gpu_memory_utilization=0.55", profile="qwen2.5-1.5b"))
    assert "with utilisation 0.55: does not fit, unless the estimate is off" in plain(lines(close))[-2]
    bare = surveyed(tmp_path, shipped("serve.gpu_memory_utilization=null", profile="gpu-8gb"))
    assert "with utilisation vLLM's default: fits" in plain(lines(bare))[-2]
    assert "fit the device: " in "\n".join(plain(lines(bare)))


@pytest.mark.parametrize(("profile", "total_mib"), [("cpu", None), (None, 4000.0)])
def test_a_profile_for_the_processor_takes_no_gpu(tmp_path: Path, profile: str | None, total_mib: float | None) -> None:
    found = surveyed(tmp_path, shipped(profile=profile), total_mib)
    origin = "--profile" if profile else "auto: what 4000 MiB take"
    assert list(lines(found))[-1] == f"profile cpu ({origin}): takes no memory of a GPU"
    assert code(found) == 0


def test_what_the_licence_forbids_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    words = plain(lines(surveyed(tmp_path, shipped())))
    assert "licence forbids commercial use: Qwen2.5-3B-Instruct, Qwen2.5-3B-Instruct-AWQ" in words
    mine = surveyed(tmp_path, shipped("model.source=wheel", "model.name=mine"))
    assert not any(row.non_commercial for row in mine.rows if not row.guide)


@pytest.mark.parametrize(("total_mib", "profile"), [(8188, "gpu-8gb"), (24564, "gpu-24gb"), (81559, "gpu-80gb")])
def test_on_a_larger_card_the_plan_itself_is_the_target(tmp_path: Path, total_mib: float, profile: str) -> None:
    found = surveyed(tmp_path, shipped(), total_mib)
    assert (found.profile, found.target_mib, code(found)) == (profile, None, 0)
    words = plain(lines(found))
    assert any(line.startswith("fit the device: ") for line in words)
    assert words[-2].endswith(f" of {total_mib} MiB")


def test_the_target_is_the_strictest_gate_of_the_peak() -> None:
    assert target(shipped().config("rtx4050-6gb")) == 4768
    assert target(shipped().config(None)) is None
    stricter = "gates.mine={label: mine, metric: measure-vram.vram_peak_mib, comparator: '<=', target: 4000}"
    assert target(shipped(stricter).config(None)) == 4000
    assert target(shipped("gates.vram_usage.metric=bench.other", "gates.vram_usage.target=1").config(None)) is None


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--total-mib {text}: expected the device's memory in MiB"):
        total(text)
    assert (total(None), total("24564")) == (None, 24564)


HYBRID = {
    "architectures": ["NemotronHForCausalLM"],
    "num_hidden_layers": 14,
    "hybrid_override_pattern": "M-M-M*-M-M*-M-",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "tie_word_embeddings": False,
    "mamba_num_heads": 16,
    "mamba_head_dim": 64,
    "n_groups": 4,
    "ssm_state_size": 64,
    "conv_kernel": 4,
}


def row_of(tmp_path: Path, config: dict[str, Any]) -> tuple[ModelFit, list[str]]:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    sets = ("model.source=path", "model.path=mine", "model.name=mine", "serve.max_model_len=4096")
    found = surveyed(tmp_path, shipped(*sets, profile="qwen2.5-1.5b"), 24564)
    return next(row for row in found.rows if row.name == "mine"), plain(lines(found))


def test_a_row_says_what_a_request_takes_for_each_token_and_beside(tmp_path: Path) -> None:
    row, words = row_of(tmp_path, HYBRID)
    assert (row.kv_bytes_per_token, row.tensor_parallel_sizes) == (2 * 2 * 2 * 64 * 2, (1, 2, 4, 8))
    assert row.asked is not None
    assert row.fixed_bytes_per_request == row.asked.request_bytes - 4096 * 1024
    assert any(line.startswith("mine ") and f"1 + {row.fixed_bytes_per_request / 2**20:.0f} MiB" in line for line in words)
    assert any(line.startswith("KV per token, + MiB: what a request") for line in words)


def test_a_row_of_unknown_weights_still_has_its_cache(tmp_path: Path) -> None:
    row, words = row_of(tmp_path, {**HYBRID, "ssm_state_size": None})
    assert (row.kv_bytes_per_token, row.judged, row.parameters) == (1024, None, None)
    assert "mine: unknown: the size of the weights is unknown: config.json does not state ssm_state_size" in words
