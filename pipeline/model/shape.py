"""A decoder's shape from its config.json: what its memory depends on. No tensor is read."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ModelError
from pipeline.model.config_json import read_config
from pipeline.model.layers import AttentionLayers, StateLayers, attention_layers, kinds_of, state_layers
from pipeline.model.parameters import Parameters, count, dense_width, expert_width, has_mlp, is_sparse
from pipeline.model.quantization import Quantization, quantization_of

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}


class Shape(BaseModel):
    """The numbers that memory depends on, in elements; None or a reason for what config.json does not tell."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    layers: int
    hidden: int | None
    heads: int | None
    vocabulary: int | None
    tied: bool | None
    dtype: str
    context: int | None = None
    dense: int | None = None  # columns of a dense MLP; None where no layer has one
    expert: int | None = None  # columns of an expert
    experts_per_token: int = 1
    attention: tuple[AttentionLayers, ...]
    latent: bool = False  # MLA: one vector per token for all heads
    states: StateLayers | None = None
    states_unknown: str = ""  # the fields that config.json lacks for the state of a request
    parameters: Parameters | None = None
    uncounted: str = ""
    quantization: Quantization | None = None

    def served_dtype(self, dtype: str) -> str:
        """Return the dtype that vLLM computes in: `dtype`, or for `auto` the model's own, but bfloat16 instead of float32."""
        if dtype != "auto":
            return dtype
        return "bfloat16" if self.dtype == "float32" else self.dtype

    @property
    def mlp_values(self) -> int:
        """Return the values of one token inside an MLP at once: gate, up and product; of experts, those of each that it asks."""
        width, hidden = self.expert or 0, self.hidden or 0
        # Two buffers of fused experts (vllm/model_executor/layers/fused_moe, 0.32): max(hidden, gate and up), and their product.
        sparse = self.experts_per_token * (max(hidden, 2 * width) + width) if width else 0
        return max(3 * (self.dense or 0), sparse)


def read_shape(folder: Path) -> Shape:
    """Return the shape by the folder's config.json; raise ModelError if it tells none."""
    try:
        return shape_of((folder / "config.json").read_bytes())
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}", "name a folder with a Hugging Face model in it") from error


def shape_of(config: bytes | str) -> Shape:
    """Return the shape by the text of a config.json; raise ModelError if it tells none."""
    raw = read_config(config)
    kinds = kinds_of(raw)
    states, lacking = state_layers(raw, kinds)
    parameters, uncounted = count(raw, kinds)
    sparse = [is_sparse(raw, layer) for layer in range(len(kinds))]
    dense = any(has_mlp(raw, kind, layer) and not sparse[layer] for layer, kind in enumerate(kinds))
    return Shape(
        layers=len(kinds),
        hidden=raw.hidden_size,
        heads=raw.num_attention_heads,
        vocabulary=raw.vocab_size,
        tied=raw.is_tied,
        dtype=raw.dtype,
        context=raw.max_position_embeddings,
        dense=dense_width(raw) if dense else None,
        expert=expert_width(raw) if any(sparse) else None,
        experts_per_token=raw.experts_per_token,
        attention=attention_layers(raw, kinds),
        latent=bool(raw.kv_lora_rank),
        states=states,
        states_unknown=lacking,
        parameters=parameters,
        uncounted=uncounted,
        quantization=quantization_of(raw.quantization_config) if raw.quantization_config else None,
    )


def kv_bytes_per_token(shape: Shape, width: int) -> int:
    """Return the bytes by which the KV cache grows with each token, of `width` bytes per value.

    Without windows, chunks and states, which hold a fixed number of tokens: the sum over layers of KV heads × 2 × head size.
    """
    return sum(layers.count * layers.bytes_per_token(width) for layers in shape.attention if layers.kind == "full")
