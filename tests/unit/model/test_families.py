"""The families of models: what config.json tells of their cache, parameters and tensor-parallel sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AliasChoices

from pipeline.config.schema import ServeConfig
from pipeline.errors import ModelError
from pipeline.measure.units import GIB, MIB
from pipeline.model.config_json import RawConfig, read_config
from pipeline.model.shape import Shape, kv_bytes_per_token, shape_of
from pipeline.model.weights import UnknownSizeError, estimated_bytes, is_loaded
from pipeline.vllm.demand import demand, kv_bytes
from pipeline.vllm.fit import fit_of, hopeless, longest_context
from pipeline.vllm.parallel import parts_of, tensor_parallel_sizes

CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "model-shapes.jsonl").read_text(encoding="utf-8").splitlines()]


def known(config: dict[str, Any]) -> Shape:
    return shape_of(json.dumps(config))


def per_token(shape: Shape) -> int:
    width = kv_bytes(ServeConfig(), shape.served_dtype("auto"), shape)
    assert width is not None
    return kv_bytes_per_token(shape, width)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["model"]))
def test_published_shapes_have_their_numbers_or_a_reason(case: dict[str, Any]) -> None:
    shape = known(case["config"])
    if case["kv_bytes_per_token"] is not None:
        assert per_token(shape) == case["kv_bytes_per_token"]
    if case["parameters"] is not None and shape.parameters is not None:
        assert shape.parameters.total == case["parameters"]
    assert (shape.parameters is None) == bool(shape.uncounted)
    if case["tensor_parallel_sizes"] is not None:
        assert list(tensor_parallel_sizes(shape)) == case["tensor_parallel_sizes"]


GEMMA_2_9B = {
    "model_type": "gemma2",
    "num_hidden_layers": 42,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
}
JAMBA_MINI = {
    "model_type": "jamba",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "tie_word_embeddings": False,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": 256,
    "mamba_expand": 2,
    "max_position_embeddings": 262144,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "tie_word_embeddings": False,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
NEMOTRON_NANO_9B = {
    **next(case["config"] for case in CASES if case["model"] == "Nemotron-Nano-9B-v2"),
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
}
QWEN35 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "vision_config": {"depth": 27},
    "text_config": {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 248320,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
    },
}
# KiB per token by hand: 2 × 2 bytes × layers that grow × KV heads × head size; MLA: 2 bytes × layers × (512 + 64).
BY_HAND = [
    (GEMMA_2_9B, 168),
    ({key: value for key, value in GEMMA_2_9B.items() if key != "model_type"}, 168),  # told by its vocabulary
    (JAMBA_MINI, 16),
    (DEEPSEEK_V3, 68.625),
    (NEMOTRON_NANO_9B, 16),
    (QWEN35, 32),
]


@pytest.mark.parametrize(("config", "kib"), BY_HAND)
def test_families_grow_by_their_growing_layers_only(config: dict[str, Any], kib: float) -> None:
    assert per_token(known(config)) == kib * 1024


@pytest.mark.parametrize(
    ("config", "billions"),
    [(GEMMA_2_9B, 9.24), (JAMBA_MINI, 51.57), (DEEPSEEK_V3, 671.03), (NEMOTRON_NANO_9B, 8.888)],
)
def test_parameters_are_the_published_number(config: dict[str, Any], billions: float) -> None:
    found = known(config).parameters
    assert found is not None
    assert found.total / 1e9 == pytest.approx(billions, rel=0.001)


def test_a_hybrid_that_fits_is_not_refused_nor_its_context_cut() -> None:
    """Nemotron-Nano-9B-v2 with 131072 tokens on 24 GB: four layers grow, 27 keep two states of 5.1 MiB each."""
    shape, settings = known(NEMOTRON_NANO_9B), ServeConfig(max_model_len=131072, max_num_seqs=8)
    need = demand(settings, shape, estimated_bytes(shape), "shape", 24564)
    assert need.request_bytes / MIB == pytest.approx(2188, rel=0.08)
    one_state = demand(ServeConfig(max_model_len=131072, extra_args=("--no-enable-prefix-caching",)), shape, 1, "shape", 24564)
    assert one_state.request_bytes / MIB == pytest.approx(2188, rel=0.01)
    assert hopeless(need, 0.92) is None
    judged = fit_of(need, 24564, None)
    assert (judged.verdict, judged.alone) == ("fits", 131072)


def test_marks_of_layers_that_are_all_alike_are_no_number() -> None:
    for marks in ({"no_rope_layers": [1] * 32}, {"no_rope_layers": [0] * 32}, {"moe_layer_freq": [0] * 32, "num_experts": 8}):
        assert known({**LLAMA_8B, **marks}).attention == known(LLAMA_8B).attention
    assert read_config(json.dumps({**LLAMA_8B, "intermediate_size": [14336] * 32})).intermediate_size == 14336


def test_a_context_that_ends_inside_a_step_is_given_where_it_fits() -> None:
    shape = known({**LLAMA_8B, "max_position_embeddings": 1000})
    need = demand(ServeConfig(), shape, 1, "shape", 24564)
    per_token = kv_bytes_per_token(shape, 2)

    def longest(tokens: int) -> int:
        return longest_context(need.at(None).model_copy(update={"kv_cache_mib": tokens * per_token / MIB}), need, 1)

    assert [longest(tokens) for tokens in (15, 992, 1007, 1008, 4096)] == [0, 992, 992, 1000, 1000]


def test_a_window_caps_what_a_request_takes() -> None:
    found = known({**GEMMA_2_9B, "max_position_embeddings": 131072})

    def mib(length: int) -> float:
        need = demand(ServeConfig(max_model_len=length), found, 1, "shape", 24564)
        return need.request_bytes / MIB

    assert mib(65536) - mib(32768) == pytest.approx(32768 * 168 / 1024, rel=0.001)
    assert mib(4096) == pytest.approx(4096 * 336 / 1024, rel=0.01), "within the window every layer keeps every token"


def test_fields_of_zero_are_as_left_out() -> None:
    granite = next(case["config"] for case in CASES if case["model"] == "Granite-4.0-micro")
    zeros = {"num_local_experts": 0, "num_experts_per_tok": 0, "head_dim": 0, "sliding_window": 0, "shared_expert_intermediate_size": 0}
    assert known({**granite, **zeros}) == known(granite).model_copy(update={"experts_per_token": 0})


def test_a_window_that_never_fills_is_none() -> None:
    mistral = {**GEMMA_2_9B, "model_type": "mistral", "sliding_window": 8192}
    assert per_token(known(mistral)) == 336 * 1024
    assert per_token(known({**mistral, "sliding_window": 8191})) == 0
    qwen = {**GEMMA_2_9B, "model_type": "qwen2", "use_sliding_window": False}
    assert per_token(known(qwen)) == 336 * 1024
    assert per_token(known({**qwen, "use_sliding_window": True, "max_window_layers": 21})) == 168 * 1024


def test_layers_that_share_keys_and_values_keep_none() -> None:
    assert per_token(known({**GEMMA_2_9B, "model_type": "llama", "sliding_window": None, "num_kv_shared_layers": 21})) == 168 * 1024


def test_an_fp8_cache_is_the_checkpoints_or_the_settings() -> None:
    fp8 = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    assert per_token(known({**GEMMA_2_9B, "quantization_config": fp8})) == 84 * 1024
    assert kv_bytes(ServeConfig(extra_args=("--kv-cache-dtype=fp8",)), "bfloat16", known(GEMMA_2_9B)) == 1
    assert (
        kv_bytes(ServeConfig(extra_args=("--kv-cache-dtype=bfloat16",)), "bfloat16", known({**GEMMA_2_9B, "quantization_config": fp8})) == 2
    )
    nvfp4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}
    strange = known({**GEMMA_2_9B, "quantization_config": nvfp4})
    with pytest.raises(ModelError, match="a KV cache of a form that is not planned here"):
        demand(ServeConfig(), strange, 1, "shape", 24564)


LLAMA_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
GROUP = {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}}}
# GiB: 6.979 billion packed weights, 1.051 billion in bfloat16.
PACKED = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8.46),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": None}, 5.33),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 5.33),
    ({"quant_method": "compressed-tensors", "config_groups": GROUP, "ignore": ["lm_head"]}, 5.61),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, 5.61),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}, 5.61),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.46),
]


@pytest.mark.parametrize(("quantization", "gib"), PACKED)
def test_packed_weights_have_their_bits_and_scales(quantization: dict[str, Any], gib: float) -> None:
    assert estimated_bytes(known({**LLAMA_8B, "quantization_config": quantization})) / GIB == pytest.approx(gib, abs=0.01)


def test_experts_are_all_counted_and_mxfp4_packs_only_them() -> None:
    case = next(case for case in CASES if case["model"] == "gpt-oss-20b")
    assert estimated_bytes(known(case["config"])) / GIB == pytest.approx(12.8, abs=0.1)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {**LLAMA_8B, "quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0.mlp"]}},
            "only in the weights",
        ),
        (QWEN35, "its vision part is not described by config.json"),
        ({**LLAMA_8B, "model_type": None}, "does not state tie_word_embeddings and model_type"),
        ({**LLAMA_8B, "num_experts": 8}, "does not state moe_intermediate_size"),
        ({**DEEPSEEK_V3, "v_head_dim": None}, "does not state v_head_dim"),
    ],
)
def test_weights_of_unknown_size_say_why_and_keep_their_shape(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownSizeError, match=says) as caught:
        estimated_bytes(known(config))
    assert caught.value.shape.layers > 0


def test_a_state_of_unknown_size_makes_the_demand_unknown() -> None:
    bamba = next(case["config"] for case in CASES if case["model"] == "Bamba-9B")
    with pytest.raises(ModelError, match="does not state mamba_head_dim, n_groups, ssm_state_size, conv_kernel, which decide the state"):
        demand(ServeConfig(), known(bamba), 1, "headers", 24564)


def test_what_predicts_several_tokens_is_not_loaded() -> None:
    shape = known(DEEPSEEK_V3)
    assert is_loaded("model.layers.60.mlp.gate.weight", shape)
    assert not is_loaded("model.layers.61.mlp.gate.weight", shape)
    assert not is_loaded("mtp.layers.0.mlp.gate.weight", shape)
    tied = known({**LLAMA_8B, "tie_word_embeddings": True})
    assert not is_loaded("language_model.lm_head.weight", tied)
    assert is_loaded("lm_head.weight", shape)


FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QWEN_30B = next(case["config"] for case in CASES if case["model"] == "Qwen3-30B-A3B")


@pytest.mark.parametrize(
    ("config", "ways", "part"),
    [
        ({**QWEN_30B, "quantization_config": FP8_BLOCKS}, 4, "768 columns of an expert into whole quantisation blocks of 128"),
        ({**QWEN_30B, "quantization_config": FP8_BLOCKS}, 2, ""),
        (
            {**LLAMA_8B, "intermediate_size": 29568, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            2,
            "29568 columns of the MLP into whole quantisation groups of 128",
        ),
        ({**LLAMA_8B, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1}}, 8, ""),
        (NEMOTRON_NANO_9B, 16, "40 attention heads"),
        ({**NEMOTRON_NANO_9B, "mamba_num_heads": 12}, 8, "12 heads of the layers with a state"),
        (DEEPSEEK_V3, 8, ""),
    ],
)
def test_quantisation_and_states_limit_the_split(config: dict[str, Any], ways: int, part: str) -> None:
    assert parts_of(known(config)).divides(ways) == part


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({"model_type": "qwen3_5_moe_text"}, "qwen35moe"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}, "gemma3"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "gemma3"),
        ({"architectures": ["GraniteMoeHybridForCausalLM"]}, "granitemoehybrid"),
        ({"num_hidden_layers": 2}, ""),
        ({"num_local_experts": 8}, "mixtral"),
        ({"vocab_size": 256000, "sliding_window": 4096, "sliding_window_pattern": 4}, "cohere2"),
        ({"attn_type_list": [1, 1]}, ""),
    ],
)
def test_the_family_is_told_by_type_or_architecture(fields: dict[str, Any], family: str) -> None:
    assert read_config(json.dumps(fields)).family == family


@pytest.mark.parametrize(
    "field", [{"attn_type_list": [0, 1]}, {"index_topk": 2048}, {"num_mem_blocks": 2}, {"linear_attn_config": {"kda_layers": [1]}}]
)
def test_a_cache_of_its_own_form_is_told_by_its_field(field: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"a KV cache with {next(iter(field))} has a form that is not planned here"):
        known({**LLAMA_8B, **field})


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "null", '{"num_attention_heads": 0}', "[" * 100_000])
def test_a_config_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json tells no memory plan") as caught:
        read_config(text)
    assert "\n" not in caught.value.message


ALIASES = [field.validation_alias for field in RawConfig.model_fields.values()]
CHOICES = [name for alias in ALIASES if isinstance(alias, AliasChoices) for name in alias.choices]
FIELDS = sorted({*RawConfig.model_fields, *map(str, CHOICES)} - {"quantization_config", "compression_config"})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.sampled_from([2**40, "", "M*", "auto", [], [0], ["mamba"], {}, {"a": 1}, 0.5])
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BY_HAND), st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=4))
def test_an_odd_config_is_planned_or_told_but_no_traceback(known_case: tuple[dict[str, Any], float], odd: dict[str, Any]) -> None:
    message = ""
    try:
        shape = known({**known_case[0], **odd})
        need = demand(ServeConfig(tensor_parallel_size=2), shape, 10**9, "headers", 24564)
        assert need.request_bytes >= 0
        assert fit_of(need, 24564, None).words
        assert set(tensor_parallel_sizes(shape)) <= {1, 2, 4, 8}
    except ModelError as error:
        message = error.message
    assert "\n" not in message
