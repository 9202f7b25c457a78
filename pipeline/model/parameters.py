"""The number of a decoder's parameters by its config.json, in the parts that quantisation treats apart."""

from pipeline.model.config_json import RawConfig
from pipeline.model.layers import Kind, known, lacking_state_fields, mamba1_width, mamba2_width, state_fields
from pipeline.values import Frozen

# Families whose MLP has no gate: two matrices instead of three.
UNGATED = {"nemotronh", "nemotron", "starcoder2", "gpt2", "gptbigcode", "gptneox", "falcon", "phi", "opt", "mpt"}
GATED_QUERIES = {"qwen3next", "qwen35", "qwen35moe"}
BIASED_QUERIES = {"qwen2", "qwen2moe"}
NORMED_HEADS = {"qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gemma3", "gemma3n", "gemma4"}
NORMS = {"gemma2": 4, "gemma3": 4, "gemma4": 4, "nemotronh": 1}
# Their experts are as wide as intermediate_size.
WIDE_EXPERTS = {"mixtral", "gptoss", "llama4", "jamba", "granitemoe", "granitemoehybrid", "phimoe", "minimaxm2", "minimax"}


class Parameters(Frozen):
    """The parameters of a model: matrices outside and inside experts, embeddings with the output layer, and the rest, never packed."""

    matrices: int
    experts: int
    embeddings: int
    rest: int

    @property
    def total(self) -> int:
        """Return the number of all parameters."""
        return self.matrices + self.experts + self.embeddings + self.rest


def count(raw: RawConfig, kinds: list[Kind]) -> tuple[Parameters | None, str]:
    """Return (the parameters, the reason where config.json does not tell them)."""
    reason = uncounted(raw, kinds)
    if reason:
        return None, reason
    (hidden,) = known(raw.hidden_size)
    matrices = experts = rest = 0
    for layer, kind in enumerate(kinds):
        if kind in ("full", "window", "chunk", "both"):
            matrices += attention(raw, kind)
            rest += attention_rest(raw, kind)
        if kind in ("state", "both"):
            packed, small = mixer(raw)
            matrices, rest = matrices + packed, rest + small
        if is_sparse(raw, layer):
            routed, shared, router = sparse(raw)
            matrices, experts, rest = matrices + shared, experts + routed, rest + router
        elif has_mlp(raw, kind, layer):
            (width,) = known(dense_width(raw))
            matrices += faces(raw) * hidden * width
        rest += NORMS.get(raw.family, 2) * hidden
    (vocabulary,) = known(raw.vocab_size)
    return Parameters(
        matrices=matrices, experts=experts, embeddings=vocabulary * hidden * (1 if raw.is_tied else 2), rest=rest + hidden
    ), ""


def uncounted(raw: RawConfig, kinds: list[Kind]) -> str:
    """Return why config.json does not tell the number of parameters; empty where it does."""
    if raw.parts:
        return f"its {' and '.join(raw.parts)} part is not described by config.json in a form that is counted here"
    if raw.moe_latent_size or raw.hidden_size_per_layer_input or raw.enable_moe_block:
        return "its layers have a form that is not counted here"
    lacking = [name for name in ("hidden_size", "num_attention_heads", "vocab_size") if getattr(raw, name) is None]
    if raw.is_tied is None:
        lacking.append("tie_word_embeddings and model_type")
    if raw.kv_lora_rank:
        lacking += [name for name in ("qk_nope_head_dim", "v_head_dim") if getattr(raw, name) is None]
    if any(kind in ("state", "both") for kind in kinds):
        lacking += lacking_state_fields(raw)
    if raw.experts and expert_width(raw) is None:
        lacking.append("moe_intermediate_size")
    dense = any(has_mlp(raw, kind, layer) and not is_sparse(raw, layer) for layer, kind in enumerate(kinds))
    if dense and dense_width(raw) is None:
        lacking.append("intermediate_size")
    return f"config.json does not state {', '.join(lacking)}" if lacking else ""


def attention(raw: RawConfig, kind: Kind) -> int:
    """Return the parameters of an attention layer's matrices."""
    hidden, heads = known(raw.hidden_size, raw.num_attention_heads)
    if raw.kv_lora_rank:
        rope, nope, value = known(raw.qk_rope_head_dim, raw.qk_nope_head_dim, raw.v_head_dim)
        queries = heads * (nope + rope)
        asked = (hidden + queries) * raw.q_lora_rank if raw.q_lora_rank else hidden * queries
        return asked + hidden * (raw.kv_lora_rank + rope) + raw.kv_lora_rank * heads * (nope + value) + heads * value * hidden
    kv_heads, size = raw.num_key_value_heads or heads, raw.size_of_head or 0
    copies = 2
    if kind == "full" and raw.global_head_dim:
        kv_heads, size = raw.num_global_key_value_heads or kv_heads, raw.global_head_dim
        copies = 1 if raw.attention_k_eq_v else 2
    queries = 3 if raw.family in GATED_QUERIES else 2  # queries, outputs and the outputs' gate
    return hidden * size * (queries * heads + copies * kv_heads)


def attention_rest(raw: RawConfig, kind: Kind) -> int:
    """Return the parameters of an attention layer's biases and norms."""
    heads, size = raw.num_attention_heads or 0, raw.size_of_head or 0
    kv_heads = raw.num_key_value_heads or heads
    biases = (heads + 2 * kv_heads) * size if raw.attention_bias or raw.family in BIASED_QUERIES else 0
    outputs = (raw.hidden_size or 0) if raw.attention_bias else 0
    sinks = heads if raw.family == "gptoss" and kind != "none" else 0
    return biases + outputs + sinks + (2 * size if raw.family in NORMED_HEADS else 0)


def mixer(raw: RawConfig) -> tuple[int, int]:
    """Return the parameters of (the matrices, the rest) of a layer with a state."""
    (hidden,) = known(raw.hidden_size)
    fields = state_fields(raw)
    if "linear_num_value_heads" in fields:
        keys, values, key_size, value_size, kernel = known(*(getattr(raw, name) for name in fields))
        outer, inner = keys * key_size, values * value_size
        return hidden * (2 * outer + 3 * inner + 2 * values), kernel * (2 * outer + inner) + 2 * values + value_size
    if "conv_kernel_of_layers" in fields:
        return 4 * hidden * hidden, hidden * (raw.conv_kernel_of_layers or 0)
    if raw.family == "jamba":
        states, kernel = known(raw.mamba_states, raw.mamba_kernel)
        inner = mamba1_width(raw)
        rank = raw.mamba_dt_rank if isinstance(raw.mamba_dt_rank, int) else -(-hidden // 16)
        return inner * (3 * hidden + 2 * rank + 2 * states), inner * (kernel + 3 + states) + rank + 2 * states
    heads, groups, states, kernel = known(raw.mamba_heads, raw.mamba_groups, raw.mamba_states, raw.mamba_kernel)
    inner = mamba2_width(raw)
    channels = inner + 2 * groups * states
    return hidden * (2 * inner + channels + heads), (kernel + 1) * channels + 3 * heads + inner


def faces(raw: RawConfig) -> int:
    """Return the number of matrices of an MLP."""
    return 2 if raw.family in UNGATED else 3


def has_mlp(raw: RawConfig, kind: Kind, layer: int) -> bool:
    """Tell whether the layer has an MLP; where the pattern lists MLPs as layers, the others have none."""
    if raw.hybrid_override_pattern:
        return raw.hybrid_override_pattern[layer] in "-E"
    listed = raw.layer_types or []
    return listed[layer] in ("mlp", "moe") if {"mlp", "moe"} & set(listed) else kind != "none"


def is_sparse(raw: RawConfig, layer: int) -> bool:
    """Tell whether the layer's MLP is made of experts."""
    if not raw.experts:
        return False
    if raw.hybrid_override_pattern:
        return raw.hybrid_override_pattern[layer] == "E"
    if {"mlp", "moe"} & set(raw.layer_types or []):
        return (raw.layer_types or [])[layer] == "moe"
    if layer < raw.first_k_dense_replace or layer in (raw.mlp_only_layers or []):
        return False
    if isinstance(raw.moe_layer_freq, list):
        return bool(raw.moe_layer_freq[layer])
    if raw.family == "jamba" or raw.expert_layer_period > 1:
        return layer % raw.expert_layer_period == raw.expert_layer_offset
    if raw.interleave_moe_layer_step > 1:
        return (layer + 1) % raw.interleave_moe_layer_step == 0
    return layer % raw.moe_layer_freq == 0 and (layer + 1) % raw.decoder_sparse_step == 0


def dense_width(raw: RawConfig) -> int | None:
    """Return the columns of a dense MLP."""
    if raw.family == "granitemoehybrid" and raw.shared_intermediate_size:
        return raw.shared_intermediate_size
    width = raw.intermediate_size_mlp or raw.intermediate_size
    if width is None or not raw.block_auto_adjust_ff_dim:
        return width
    adjusted = int(raw.block_ffn_dim_multiplier * int(2 * width / 3))  # transformers/models/lfm2
    return -(-adjusted // raw.block_multiple_of) * raw.block_multiple_of


def expert_width(raw: RawConfig) -> int | None:
    """Return the columns of an expert."""
    if raw.moe_intermediate_size:
        return raw.moe_intermediate_size
    return raw.intermediate_size if raw.family in WIDE_EXPERTS else None


def sparse(raw: RawConfig) -> tuple[int, int, int]:
    """Return the parameters of (all experts, the shared ones, the router) of a layer."""
    hidden, width = known(raw.hidden_size, expert_width(raw))
    one_column = faces(raw) * hidden
    shared = raw.shared_expert_intermediate_size or raw.shared_intermediate_size or raw.n_shared_experts * width
    if raw.family == "llama4":
        shared = width
    gate = hidden if raw.family in ("qwen2moe", "qwen3next", "qwen35moe") else 0
    biases = raw.experts * (2 * width + hidden + 1) if raw.family == "gptoss" else 0
    return raw.experts * one_column * width, one_column * shared, hidden * raw.experts + gate + biases
