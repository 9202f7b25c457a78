"""What the layers of a model keep for a request: keys and values per token, or a state of fixed size."""

from collections.abc import Iterator
from math import prod
from typing import Literal

from pipeline.errors import ModelError
from pipeline.model.config_json import NO_PLAN, RawConfig
from pipeline.values import Frozen

# Where config.json states no context: a window of this size or more never fills.
LONG_CONTEXT = 131072
Kind = Literal["full", "window", "chunk", "state", "both", "none"]
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("full_attention", "attention", "global_attention", "*"), "full"),
    **dict.fromkeys(("sliding_attention", "local_attention", "sliding_window"), "window"),
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "conv", "M"), "state"),
    **dict.fromkeys(("mlp", "moe", "-", "E"), "none"),
    "chunked_attention": "chunk",
    "hybrid": "both",
}


class AttentionLayers(Frozen):
    """Alike attention layers: `values` per token and KV head, of tokens within `limit` (a window or chunk), of all where None."""

    kind: Literal["full", "window", "chunk"]
    count: int
    heads: int
    values: int
    limit: int | None = None

    def bytes_per_token(self, width: int) -> int:
        """Return the bytes of one token in one layer."""
        return self.heads * self.values * width


class StateLayers(Frozen):
    """Layers with a state of fixed size per request: values of a convolution, with those of each group apart, and of a recurrence."""

    count: int
    convolution: int
    groups: int
    group_values: int
    recurrence: int
    dtype: str  # of the recurrence; "auto" for the model's own
    heads: tuple[int, ...] = ()  # which tensor parallelism splits


def kinds_of(raw: RawConfig) -> list[Kind]:
    """Return the kind of each layer; raise ModelError for a kind that is not planned."""
    count = raw.layers
    if count is None:
        raise ModelError(f"{NO_PLAN}: num_hidden_layers: Field required")
    listed = raw.layer_types or raw.hybrid_override_pattern
    freq = raw.moe_layer_freq if isinstance(raw.moe_layer_freq, list) else None
    lists = {"hybrid_override_pattern": raw.hybrid_override_pattern, "no_rope_layers": raw.no_rope_layers, "moe_layer_freq": freq}
    short = next((name for name, each in lists.items() if each and len(each) < count), None)
    if short:
        raise ModelError(f"{NO_PLAN}: {short} names fewer than its {count} layers")
    if listed:
        unknown = sorted(set(listed) - KINDS.keys())
        if unknown:
            raise ModelError(f"{NO_PLAN}: layers of {unknown[0]} keep no KV cache of a form that is planned here")
        kinds = [KINDS[name] for name in listed]
    else:
        kinds = [kind_of(raw, layer) for layer in range(count)]
    full: Kind = "full"
    unlimited = {"window": "window" in kinds and not fills(raw), "chunk": not raw.attention_chunk_size}
    return [full if unlimited.get(kind) else kind for kind in kinds]


def kind_of(raw: RawConfig, layer: int) -> Kind:
    """Return the kind of a layer that no list names."""
    if raw.attn_layer_indices is not None:
        return "full" if layer in raw.attn_layer_indices else "state"
    if raw.attn_layer_period:
        return "full" if layer % raw.attn_layer_period == raw.attn_layer_offset else "state"
    if raw.full_attention_interval:
        return "state" if (layer + 1) % raw.full_attention_interval else "full"
    if raw.mamba_d_ssm is not None or raw.family == "falconh1":
        return "both"
    if raw.no_rope_layers or raw.no_rope_layer_interval:
        chunked = raw.no_rope_layers[layer] if raw.no_rope_layers else (layer + 1) % (raw.no_rope_layer_interval or 1)
        return "chunk" if chunked else "full"
    return "window" if has_window(raw, layer) else "full"


def has_window(raw: RawConfig, layer: int) -> bool:
    """Tell whether a layer sees a window only; models of Qwen's kind do only where use_sliding_window says so."""
    optional = raw.family.startswith("qwen") or raw.max_window_layers is not None
    if not raw.sliding_window or raw.use_sliding_window is False or (optional and not raw.use_sliding_window):
        return False
    if optional:
        return raw.max_window_layers is None or layer >= raw.max_window_layers
    pattern = raw.sliding_window_pattern
    if isinstance(pattern, str):
        return pattern[layer % len(pattern)] == "L" if pattern else True
    return bool((layer + 1) % pattern) if pattern else True


def fills(raw: RawConfig) -> bool:
    """Tell whether a request can be longer than the window; raise ModelError where the window has no size."""
    if raw.sliding_window is None:
        raise ModelError(f"{NO_PLAN}: sliding_window: Field required")
    return 0 < raw.sliding_window < (raw.max_position_embeddings or LONG_CONTEXT)


def attention_layers(raw: RawConfig, kinds: list[Kind]) -> tuple[AttentionLayers, ...]:
    """Return the attention layers by kind; layers that share the keys and values of an earlier one keep none."""
    keeping = kinds[: len(kinds) - raw.num_kv_shared_layers]
    found = []
    for kind in ("full", "window", "chunk"):
        count = sum(each == kind or (each == "both" and kind == "full") for each in keeping)
        if count:
            limit = {"window": raw.sliding_window, "chunk": raw.attention_chunk_size}.get(kind)
            heads, values = heads_and_values(raw, kind)
            found.append(AttentionLayers.model_validate({"kind": kind, "count": count, "heads": heads, "values": values, "limit": limit}))
    return tuple(found)


def heads_and_values(raw: RawConfig, kind: str) -> tuple[int, int]:
    """Return (KV heads, values per token and head) of a layer; an MLA layer keeps one latent vector for all heads."""
    if raw.kv_lora_rank:
        if raw.qk_rope_head_dim is None:
            raise ModelError(f"{NO_PLAN}: qk_rope_head_dim: Field required")
        return 1, raw.kv_lora_rank + raw.qk_rope_head_dim
    heads, size = raw.num_key_value_heads or raw.num_attention_heads, raw.size_of_head
    if kind == "full":
        heads, size = raw.num_global_key_value_heads or heads, raw.global_head_dim or size
    if not heads or not size:
        raise ModelError(f"{NO_PLAN}: num_attention_heads: Field required")
    return heads, 2 * size


def state_layers(raw: RawConfig, kinds: list[Kind]) -> tuple[StateLayers | None, str]:
    """Return (the layers with a state, the fields that config.json lacks for it); no layers without any or with fields lacking.

    The shapes are those of vllm/model_executor/layers/mamba/mamba_utils.py (0.32).
    """
    count = sum(kind in ("state", "both") for kind in kinds)
    if not count:
        return None, ""
    lacking = lacking_state_fields(raw)
    if lacking:
        return None, ", ".join(lacking)
    state = STATES[state_fields(raw)[0]]
    convolution, groups, group_values, recurrence = state(raw)
    heads = tuple(size for size in (raw.linear_num_key_heads, raw.linear_num_value_heads, raw.mamba_heads) if size)
    sizes = {"convolution": convolution, "groups": groups, "group_values": group_values, "recurrence": recurrence, "heads": heads}
    return StateLayers.model_validate({"count": count, "dtype": raw.mamba_ssm_dtype, **sizes}), ""


def state_fields(raw: RawConfig) -> tuple[str, ...]:
    """Return the fields that describe a layer with a state."""
    if raw.linear_num_value_heads is not None or raw.family.startswith("qwen3"):
        return ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim")
    if raw.conv_kernel_of_layers is not None or "conv" in (raw.layer_types or ()):
        return ("conv_kernel_of_layers", "hidden_size")
    if raw.family == "jamba":
        return ("mamba_expand", "mamba_states", "mamba_kernel", "hidden_size")
    return ("mamba_heads", "mamba_head_dim", "mamba_groups", "mamba_states", "mamba_kernel")


def lacking_state_fields(raw: RawConfig) -> list[str]:
    """Return those of them that config.json does not state, as it spells them."""
    return [SPELLINGS.get(name, name) for name in state_fields(raw) if getattr(raw, name) is None]


def known(*sizes: int | float | str | None) -> Iterator[int]:
    """Yield sizes that the caller has found to be stated."""
    for size in sizes:
        assert isinstance(size, (int, float))
        yield int(size)


def gated_delta_state(raw: RawConfig) -> tuple[int, int, int, int]:
    """Return (convolution, groups, values per group, recurrence) of a gated delta net (Qwen3-Next, Qwen3.5)."""
    keys, values, key_size, value_size, kernel = known(
        *(raw.linear_num_key_heads, raw.linear_num_value_heads, raw.linear_key_head_dim, raw.linear_value_head_dim),
        raw.linear_conv_kernel_dim,
    )
    return (kernel - 1) * (2 * keys * key_size + values * value_size), 0, 0, values * value_size * key_size


def convolution_state(raw: RawConfig) -> tuple[int, int, int, int]:
    """Return the same of a short convolution (LFM2)."""
    kernel, hidden = known(raw.conv_kernel_of_layers, raw.conv_dim or raw.hidden_size)
    return (kernel - 1) * hidden, 0, 0, 0


def mamba1_state(raw: RawConfig) -> tuple[int, int, int, int]:
    """Return the same of a Mamba-1 layer (Jamba)."""
    states, kernel = known(raw.mamba_states, raw.mamba_kernel)
    inner = mamba1_width(raw)
    return (kernel - 1) * inner, 0, 0, inner * states


def mamba1_width(raw: RawConfig) -> int:
    """Return the expanded hidden size."""
    return int((raw.mamba_expand or 2) * (raw.hidden_size or 0))


def mamba2_state(raw: RawConfig) -> tuple[int, int, int, int]:
    """Return the same of a Mamba-2 layer (Nemotron-H, Granite 4, Bamba, Falcon-H1)."""
    groups, states, kernel = known(raw.mamba_groups, raw.mamba_states, raw.mamba_kernel)
    inner = mamba2_width(raw)
    return (kernel - 1) * inner, groups, (kernel - 1) * 2 * states, inner * states


def mamba2_width(raw: RawConfig) -> int:
    """Return heads × size of a head; "auto" divides the expanded hidden size."""
    if raw.mamba_d_ssm:
        return raw.mamba_d_ssm
    if raw.mamba_head_dim == "auto":
        return mamba1_width(raw)
    return prod(known(raw.mamba_heads, raw.mamba_head_dim))


SPELLINGS = {
    "conv_kernel_of_layers": "conv_L_cache",
    "mamba_heads": "mamba_num_heads",
    "mamba_groups": "n_groups",
    "mamba_states": "ssm_state_size",
    "mamba_kernel": "conv_kernel",
}
STATES = {
    "linear_num_key_heads": gated_delta_state,
    "conv_kernel_of_layers": convolution_state,
    "mamba_expand": mamba1_state,
    "mamba_heads": mamba2_state,
}
