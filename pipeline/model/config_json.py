"""The fields of config.json that memory depends on, and what vLLM and Transformers put in the place of those left out.

Source of the defaults: the configuration classes of Transformers 5.19, whose families vLLM 0.32 serves.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError

from pipeline.errors import ModelError
from pipeline.values import Lenient

NO_PLAN = "config.json tells no memory plan"
WRAPPED = ("text_config", "llm_config", "language_config")
OTHER_PARTS = ("vision_config", "audio_config", "vision_tower_config")
OUTER = ("model_type", "dtype", "torch_dtype", "quantization_config", "compression_config", "tie_word_embeddings", "architectures")
# Families that share the output layer with the embeddings where config.json does not say so.
TIED = {
    *("gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "cohere", "cohere2", "cohere2moe", "lfm2", "lfm2moe", "smollm3"),
    *("starcoder2", "falcon", "gpt2", "gptbigcode", "minicpm3", "zamba2", "opt", "mpt", "bloom"),
}
# Fields that published files of the family leave out, as gemma-3-4b-it does.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window_pattern": 2},
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "cohere2": {"sliding_window_pattern": 4},
    "olmo3": {"sliding_window_pattern": 4},
    "gptoss": {"sliding_window_pattern": 2, "attention_bias": True},
    "llama4": {"no_rope_layer_interval": 4, "attention_chunk_size": 8192},
    "qwen3next": {"full_attention_interval": 4, "shared_expert_intermediate_size": 512},
    "qwen35": {"full_attention_interval": 4},
    "qwen35moe": {"full_attention_interval": 4},
    "jamba": {"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
    "nemotronh": {"mamba_ssm_cache_dtype": "float32"},
}
# Fields of models whose cache has a form of its own, which no formula here describes.
OWN_FORMS = (
    *("index_topk", "compress_ratios", "linear_attn_config", "hybrid_layer_pattern", "swa_num_key_value_heads", "block_configs"),
    *("encoder_layers", "rswa_window", "cross_attention_layers", "num_mem_blocks", "block_types", "mamba_step", "ssm_cfg", "use_cla"),
    "attention_other_setting",
)
# Fields with a mark for each layer, so that a list of equal ones is no number.
OF_EACH_LAYER = ("no_rope_layers", "moe_layer_freq")

Size = Annotated[int, Field(gt=0, le=1 << 31)]
Count = Annotated[int, Field(ge=0, le=1 << 31)]


class RawWeights(Lenient):
    """The weights of a group in the compressed-tensors format."""

    num_bits: int | None = None
    group_size: int | None = None
    strategy: str | None = None
    block_structure: list[int] | None = None


class RawGroup(Lenient):
    """A group of layers with the same quantisation."""

    weights: RawWeights | None = None


class RawQuantization(Lenient):
    """The fields of quantization_config, which each method names in its own way."""

    quant_method: str = "a quantisation without a name"
    quant_algo: str | None = None
    bits: int | None = Field(None, validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int | None = Field(None, validation_alias=AliasChoices("group_size", "q_group_size"))
    weight_block_size: list[int] | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    config_groups: dict[str, RawGroup] = {}
    kv_cache_scheme: dict[str, Any] | str | None = None
    kv_cache_quant_algo: str | None = None
    left_out: list[str] = Field(
        [],
        validation_alias=AliasChoices("ignore", "modules_to_not_convert", "llm_int8_skip_modules", "exclude_modules", "ignored_layers"),
    )


class RawConfig(Lenient):
    """The fields of a decoder's config.json. None for what it does not state and its family does not set."""

    family: str = ""
    parts: tuple[str, ...] = ()  # what the repository holds beside the text model
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)] | None = None
    hidden_size: Size | None = None
    intermediate_size: Count | None = Field(None, validation_alias=AliasChoices("block_ff_dim", "intermediate_size"))
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = Field(None, validation_alias=AliasChoices("num_key_value_heads", "num_kv_heads"))
    head_dim: Count | None = None
    vocab_size: Size | None = None
    tie_word_embeddings: bool | None = Field(None, validation_alias=AliasChoices("tie_word_embeddings", "tie_embedding"))
    dtype: str = Field("bfloat16", validation_alias=AliasChoices("dtype", "torch_dtype"))
    max_position_embeddings: Count | None = None
    quantization_config: RawQuantization | None = Field(None, validation_alias=AliasChoices("quantization_config", "compression_config"))
    attention_bias: bool = False

    layer_types: list[str] | None = Field(None, validation_alias=AliasChoices("layer_types", "layers_block_type"))
    hybrid_override_pattern: str | None = None
    attn_layer_indices: list[int] | None = Field(None, validation_alias=AliasChoices("attn_layer_indices", "full_attn_idxs"))
    attn_layer_period: Count | None = None
    attn_layer_offset: Count = 0
    full_attention_interval: Count | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Count | None = None
    attention_chunk_size: Count | None = None
    sliding_window: Count | None = None
    sliding_window_pattern: Count | str | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Count | None = None
    num_kv_shared_layers: Count = 0
    global_head_dim: Count | None = None
    num_global_key_value_heads: Count | None = None
    attention_k_eq_v: bool = False

    kv_lora_rank: Count | None = None
    q_lora_rank: Count | None = None
    qk_rope_head_dim: Count | None = None
    qk_nope_head_dim: Count | None = None
    v_head_dim: Count | None = None

    experts: Count = Field(0, validation_alias=AliasChoices("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"))
    experts_per_token: Count = Field(
        1, validation_alias=AliasChoices("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k")
    )
    moe_intermediate_size: Count | None = None
    n_shared_experts: Count = Field(0, validation_alias=AliasChoices("n_shared_experts", "num_shared_experts"))
    shared_expert_intermediate_size: Count | None = Field(
        None, validation_alias=AliasChoices("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    )
    shared_intermediate_size: Count | None = None
    intermediate_size_mlp: Count | None = None
    moe_latent_size: Count | None = None
    first_k_dense_replace: Count = Field(0, validation_alias=AliasChoices("first_k_dense_replace", "num_dense_layers"))
    moe_layer_freq: Size | list[int] = 1
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] | None = None
    expert_layer_period: Size = 1
    expert_layer_offset: Count = 0
    interleave_moe_layer_step: Size = 1
    block_auto_adjust_ff_dim: bool = False
    block_multiple_of: Size = 256
    block_ffn_dim_multiplier: Annotated[float, Field(gt=0, le=1024)] = 1.0
    hidden_size_per_layer_input: Count | None = None
    enable_moe_block: bool = False

    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_value_head_dim: Size | None = None
    linear_conv_kernel_dim: Size | None = None
    mamba_heads: Size | None = Field(None, validation_alias=AliasChoices("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"))
    mamba_head_dim: Size | Literal["auto"] | None = Field(
        None, validation_alias=AliasChoices("mamba_head_dim", "mamba_d_head", "mamba_headdim")
    )
    mamba_groups: Size | None = Field(None, validation_alias=AliasChoices("mamba_n_groups", "mamba_ngroups", "n_groups"))
    mamba_states: Size | None = Field(None, validation_alias=AliasChoices("ssm_state_size", "mamba_d_state"))
    mamba_kernel: Size | None = Field(None, validation_alias=AliasChoices("conv_kernel", "mamba_d_conv"))
    mamba_expand: Annotated[float, Field(gt=0, le=1024)] | None = Field(None, validation_alias=AliasChoices("mamba_expand", "expand"))
    mamba_d_ssm: Count | None = None
    mamba_dt_rank: Size | Literal["auto"] | None = None
    mamba_ssm_dtype: str = Field("auto", validation_alias=AliasChoices("mamba_ssm_dtype", "mamba_ssm_cache_dtype"))
    conv_kernel_of_layers: Size | None = Field(None, validation_alias="conv_L_cache")
    conv_dim: Count | None = None

    @property
    def is_tied(self) -> bool | None:
        """Tell whether embeddings and output layer are one; None where neither the file nor its family says."""
        if self.tie_word_embeddings is not None:
            return self.tie_word_embeddings
        return self.family in TIED if self.family else None

    @property
    def size_of_head(self) -> int | None:
        """Return the values of a head: as stated, else hidden size / heads."""
        if self.head_dim:
            return self.head_dim
        return self.hidden_size // self.num_attention_heads if self.hidden_size and self.num_attention_heads else None

    @property
    def layers(self) -> int | None:
        """Return the number of layers: as the list or pattern of their kinds says, else as stated."""
        listed = self.layer_types or self.hybrid_override_pattern
        return len(listed) if listed else self.num_hidden_layers


def read_config(text: bytes | str) -> RawConfig:
    """Return the fields of the text model in a config.json; raise ModelError if they cannot be read or describe another cache."""
    try:
        fields, parts = text_fields(json.loads(text))
        family = family_of(fields)
        own_form = own_form_of(fields, family)
        if own_form:
            raise ModelError(f"{NO_PLAN}: a KV cache with {own_form} has a form that is not planned here")
        stated = {name: value if name in OF_EACH_LAYER else one_value(value) for name, value in without_nulls(fields).items()}
        return RawConfig.model_validate({**DEFAULTS.get(family, {}), **stated, "family": family, "parts": parts})
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"{NO_PLAN}: {where}: {error.errors()[0]['msg']}") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{NO_PLAN}: it is no JSON object ({str(error).splitlines()[0]})", "download the model again") from error


def own_form_of(fields: dict[str, Any], family: str) -> str:
    """Return the field by which a model's cache has a form of its own; empty for the planned forms."""
    if family == "minicpm3" and fields.get("kv_lora_rank"):
        return "kv_lora_rank of minicpm3"
    if 0 in (fields.get("attn_type_list") or ()):
        return "attn_type_list"
    return next((name for name in OWN_FORMS if fields.get(name)), "")


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without those that are null, which mean the same as left out."""
    stated = {name: value for name, value in fields.items() if value is not None}
    return {name: without_nulls(value) if isinstance(value, dict) else value for name, value in stated.items()}


def one_value(value: object) -> object:
    """Return the number that a list repeats for each layer, as Gemma 3n's intermediate_size; anything else as it is."""
    if isinstance(value, list) and len(value) > 1 and all(type(each) is int and each == value[0] for each in value):
        return value[0]
    return value


def text_fields(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (the fields of the text model, the other parts) of a model that may wrap its text model."""
    parts = tuple(name.partition("_")[0] for name in OTHER_PARTS if config.get(name) is not None)
    inner = next((config[name] for name in WRAPPED if isinstance(config.get(name), dict)), None)
    if inner is None:
        return config, parts
    outer = {name: config[name] for name in OUTER if config.get(name) is not None}
    return {**outer, **without_nulls(inner)}, parts


def family_of(fields: dict[str, Any]) -> str:
    """Return the family by model_type, else by architectures, else by fields that only one family has; empty if none tells."""
    named = str(fields.get("model_type") or "")
    if not named:
        named = re.sub(r"(?:For[A-Z]\w*|Model|LMHead\w*)$", "", str((fields.get("architectures") or [""])[0]))
    if named:
        return re.sub(r"text$", "", re.sub(r"[_\W]", "", named.lower()))
    vocabulary = fields.get("vocab_size")
    marks = {
        "nemotronh": "hybrid_override_pattern" in fields,
        "bamba": "attn_layer_indices" in fields,
        "jamba": "attn_layer_period" in fields,
        "falconh1": "mamba_d_ssm" in fields,
        "qwen3next": "linear_num_value_heads" in fields and fields.get("num_experts"),
        "qwen35": "linear_num_value_heads" in fields,
        "gemma4": "global_head_dim" in fields,
        "gemma3": "sliding_window_pattern" in fields and vocabulary in (262144, 262145, 262208),
        "cohere2": vocabulary == 256000 and fields.get("sliding_window") and "sliding_window_pattern" in fields,
        "gemma2": fields.get("attn_logit_softcapping") or (vocabulary == 256000 and fields.get("sliding_window")),
        "gptoss": (fields.get("quantization_config") or {}).get("quant_method") == "mxfp4" and "num_local_experts" in fields,
        "llama4": vocabulary == 202048 or bool({"no_rope_layers", "interleave_moe_layer_step"} & fields.keys()),
        "granitemoehybrid": "shared_intermediate_size" in fields,
        "lfm2": "conv_L_cache" in fields,
        "qwen3moe": vocabulary == 151936 and fields.get("num_experts"),
        "qwen3": vocabulary == 151936 and "head_dim" in fields,
        "qwen2": vocabulary in (151936, 152064) and "head_dim" not in fields,
        "mixtral": "num_local_experts" in fields and "moe_intermediate_size" not in fields,
    }
    return next((family for family, marked in marks.items() if marked), "")
