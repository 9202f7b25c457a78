"""One model over several devices and hosts: what is refused before vLLM is started, and the flags of what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.schema import ServeConfig
from pipeline.errors import ModelError, ServerError
from pipeline.vllm.command import headless_command, parallel_words, server_command
from pipeline.vllm.parallel import ModelParts, check_parts, read_model_parts

QWEN_3B = ModelParts(num_attention_heads=16, num_key_value_heads=2, num_hidden_layers=36, intermediate_size=11008)
SMOLLM = ModelParts(num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=30, intermediate_size=1536)
EXPERTS = QWEN_3B.model_copy(update={"num_experts": 64})
TWO_HOSTS: dict[str, Any] = {"nnodes": 2, "master_addr": "10.0.0.1"}


@pytest.mark.parametrize(
    ("settings", "parts", "devices", "message", "hint"),
    [
        ({"tensor_parallel_size": 2}, SMOLLM, 2, "serve.tensor_parallel_size 2 does not divide the model's 9 attention heads", "1, 3"),
        (
            {"tensor_parallel_size": 3},
            ModelParts(num_attention_heads=12, num_key_value_heads=2),
            4,
            "serve.tensor_parallel_size 3 does not divide the model's 2 KV heads",
            "1, 2, 4, 6, 12",
        ),
        (
            {"tensor_parallel_size": 8},
            ModelParts(num_attention_heads=16, intermediate_size=100),
            8,
            "serve.tensor_parallel_size 8 does not divide the model's 100 columns of the MLP",
            "1, 2, 4",
        ),
        ({"pipeline_parallel_size": 31}, SMOLLM, 31, "serve.pipeline_parallel_size 31 is more than the model's 30 layers", "smaller"),
        (
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            QWEN_3B,
            2,
            "2 tensor × 2 pipeline × 1 data parallel needs 4 devices here, and this host has 2",
            "Ray's cluster",
        ),
        (
            {"tensor_parallel_size": 4, **TWO_HOSTS},
            QWEN_3B,
            1,
            "4 tensor × 1 pipeline × 1 data parallel over 2 nodes needs 2 devices here, and this host has 1",
            "more hosts",
        ),
        (
            {"data_parallel_size": 2, **TWO_HOSTS},
            QWEN_3B,
            8,
            "serve.data_parallel_size 2 over 2 hosts: the replicas of a dense model have nothing to share",
            "attach.replicas",
        ),
    ],
)
def test_what_cannot_be_spread_is_refused_with_what_can(
    settings: dict[str, Any], parts: ModelParts, devices: int, message: str, hint: str
) -> None:
    with pytest.raises(ServerError) as error:
        check_parts(ServeConfig(**settings), parts, devices)
    assert error.value.message == message
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("settings", "parts", "devices"),
    [
        ({"tensor_parallel_size": 2}, QWEN_3B, 2),
        ({"tensor_parallel_size": 4}, QWEN_3B, 4),  # two KV heads, each on two devices
        ({"tensor_parallel_size": 4, **TWO_HOSTS}, QWEN_3B, 2),
        ({"pipeline_parallel_size": 3}, QWEN_3B, 3),
        ({"data_parallel_size": 2}, QWEN_3B, 2),
        ({"data_parallel_size": 2, **TWO_HOSTS}, EXPERTS, 1),
        ({"tensor_parallel_size": 8, "distributed_executor_backend": "ray"}, QWEN_3B, 1),  # Ray knows of more than this host
        ({"tensor_parallel_size": 3}, SMOLLM, None),  # a processor's cores are not counted
        ({"tensor_parallel_size": 7}, ModelParts(), 7),  # a config.json that tells nothing
    ],
)
def test_what_can_be_spread_is_not(settings: dict[str, Any], parts: ModelParts, devices: int | None) -> None:
    check_parts(ServeConfig(**settings), parts, devices)


@given(heads=st.integers(1, 64), copies=st.integers(1, 8), ways=st.integers(1, 64))
def test_a_split_that_is_allowed_gives_each_device_whole_heads(heads: int, copies: int, ways: int) -> None:
    parts = ModelParts(num_attention_heads=heads * copies, num_key_value_heads=heads)
    if not parts.divides(ways):
        assert heads * copies % ways == 0
        assert heads % ways == 0 or ways % heads == 0
    assert not parts.divides(1)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "uni"}, "uni is one process for one device, not 2; take mp or ray"),
        ({"node_rank": 1}, "node_rank 1 needs nnodes of 2 or more"),
        ({"nnodes": 2, "tensor_parallel_size": 2}, "nnodes above 1 needs master_addr"),
        ({**TWO_HOSTS, "tensor_parallel_size": 2, "node_rank": 2}, "node_rank 2 is not below nnodes 2: nodes count from 0"),
        ({**TWO_HOSTS, "tensor_parallel_size": 3}, "3 devices (tensor × pipeline × data parallel) do not divide into 2 nodes"),
        ({**TWO_HOSTS, "distributed_executor_backend": "ray"}, "nnodes needs distributed_executor_backend mp, not ray"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError) as error:
        ServeConfig(**settings)
    assert wrong in str(error.value)


def test_one_device_needs_no_flags() -> None:
    assert parallel_words(ServeConfig()) == []


def test_each_size_has_its_flag() -> None:
    sizes: dict[str, Any] = {"tensor_parallel_size": 2, "pipeline_parallel_size": 4, "data_parallel_size": 3}
    assert parallel_words(ServeConfig(**sizes)) == [
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "4", "--data-parallel-size", "3"),
    ]


def test_hosts_are_told_of_each_other() -> None:
    settings = ServeConfig(**TWO_HOSTS, pipeline_parallel_size=2, node_rank=1, distributed_executor_backend="mp")
    assert parallel_words(settings) == [
        *("--pipeline-parallel-size", "2", "--distributed-executor-backend", "mp"),
        *("--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29501"),
    ]


def test_a_host_that_joins_answers_no_requests() -> None:
    words = headless_command(server_command(ServeConfig(), Path("python"), Path("model"), "name", "vllm-cpu"))
    assert words[:5] == ["python", "-m", "pipeline.vllm.headless", "--model", "model"]
    assert words[-1] == "--headless"


def test_the_parts_are_config_jsons(tmp_path: Path) -> None:
    config = {"num_attention_heads": 16, "num_key_value_heads": 2, "num_hidden_layers": 36, "intermediate_size": 11008, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_model_parts(tmp_path) == QWEN_3B
    assert QWEN_3B.dense
    assert not EXPERTS.dense


@pytest.mark.parametrize("text", [None, "{", '{"num_attention_heads": 0}'])
def test_a_config_json_that_cannot_be_read_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_model_parts(tmp_path)
