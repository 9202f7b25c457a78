"""Checks, before vLLM is started, that a model can be spread over devices and hosts as the settings ask."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config.schema import ServeConfig
from pipeline.config.section import Positive
from pipeline.errors import ModelError, ServerError
from pipeline.model.config_json import text_fields
from pipeline.model.quantization import Quantization
from pipeline.model.shape import Shape, read_shape


class ModelParts(BaseModel):
    """The parts of a model that are split or distributed, from its config.json; None where it does not have them."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    num_hidden_layers: Positive | None = None
    intermediate_size: Positive | None = None
    moe_intermediate_size: Positive | None = None
    head_dim: Positive | None = None
    state_heads: tuple[int, ...] = ()  # heads of layers with a state
    quantization: Quantization | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    n_routed_experts: int | None = None

    @property
    def dense(self) -> bool:
        """Tell whether the model has no experts, whose work replicas could share."""
        return not (self.num_experts or self.num_local_experts or self.n_routed_experts)

    def divides(self, ways: int) -> str:
        """Return the part that cannot be split `ways` ways; empty where all can.

        vLLM splits query heads and the MLP evenly; KV heads too, or it copies each to the same number of devices
        (vllm/config/model.py, verify_with_parallel_config; model_executor/layers/linear.py, QKVParallelLinear).
        """
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if heads is not None and heads % ways:
            return f"{heads} attention heads"
        if kv_heads is not None and kv_heads % ways and ways % kv_heads:
            return f"{kv_heads} KV heads"
        if self.intermediate_size is not None and self.intermediate_size % ways:
            return f"{self.intermediate_size} columns of the MLP"
        if self.moe_intermediate_size is not None and self.moe_intermediate_size % ways:
            return f"{self.moe_intermediate_size} columns of an expert"
        uneven = next((count for count in self.state_heads if count % ways), None)
        if uneven is not None:
            return f"{uneven} heads of the layers with a state"
        return self.breaks_up(ways) if ways > 1 else ""

    def breaks_up(self, ways: int) -> str:
        """Return the part whose share is no whole number of quantisation groups or blocks; empty where all are.

        A group is along a matrix's input, of which outputs of attention and MLP are split; an FP8 block has both sides, and
        every matrix of queries, keys, values, gate and up is a multiple of its rows (0.32: distributed/utils.py,
        verify_group_size_divides_partition; layers/quantization/utils/fp8_utils.py, validate_fp8_block_shape).
        """
        packing, queries = self.quantization, (self.num_attention_heads or 0) * (self.head_dim or 0)
        if packing is None:
            return ""
        rows, columns = packing.block or (1, packing.group or 1)
        widths = {"columns of the MLP": self.intermediate_size, "columns of an expert": self.moe_intermediate_size}
        if not packing.only_experts:
            widths["values of attention"] = queries
        elif packing.method == "mxfp4":  # vLLM pads the experts' columns
            return ""
        for name, width in widths.items():
            if width and any(size > 1 and width // ways % size for size in (rows, columns)):
                return f"{width} {name} into whole quantisation {'blocks' if packing.block else 'groups'} of {max(rows, columns)}"
        return ""


def parts_of(shape: Shape) -> ModelParts:
    """Return the parts of a model of known shape. MLA keeps one latent vector on every device, so it has no KV heads to split."""
    attention = shape.attention[0] if shape.attention and not shape.latent else None
    return ModelParts(
        num_attention_heads=shape.heads,
        num_key_value_heads=attention.heads if attention else None,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.dense or None,
        moe_intermediate_size=shape.expert or None,
        head_dim=attention.values // 2 if attention else None,
        state_heads=shape.states.heads if shape.states else (),
        quantization=shape.quantization,
        num_experts=1 if shape.expert else None,
    )


def tensor_parallel_sizes(shape: Shape) -> tuple[int, ...]:
    """Return the sizes, in powers of two up to 8, over which tensor parallelism can split the model; none where that is unknown."""
    if shape.heads is None:
        return ()
    parts = parts_of(shape)
    return tuple(ways for ways in (1, 2, 4, 8) if not parts.divides(ways))


def read_model_parts(folder: Path) -> ModelParts:
    """Return the parts in the folder's config.json; ModelError where it cannot be read."""
    try:
        return parts_of(read_shape(folder))
    except ModelError:  # it does not tell its memory, or cannot be read
        pass
    try:
        return ModelParts.model_validate(text_fields(json.loads((folder / "config.json").read_bytes()))[0])
    except (OSError, ValidationError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder.name}/config.json cannot be read ({str(error).splitlines()[0]})", "download the model again") from error


def check_parts(settings: ServeConfig, parts: ModelParts, devices: int | None) -> None:
    """Raise ServerError for a spread that cannot work; `devices` is the number on this host, None where it does not matter."""
    tensor, pipeline, data = settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.data_parallel_size
    indivisible = parts.divides(tensor)
    if indivisible:
        sizes = [str(ways) for ways in range(1, 65) if not parts.divides(ways)]
        raise ServerError(
            f"serve.tensor_parallel_size {tensor} does not divide the model's {indivisible}", f"sizes that do: {', '.join(sizes)}"
        )
    if parts.num_hidden_layers is not None and pipeline > parts.num_hidden_layers:
        raise ServerError(
            f"serve.pipeline_parallel_size {pipeline} is more than the model's {parts.num_hidden_layers} layers", "take a smaller one"
        )
    if data > 1 and settings.nnodes > 1 and parts.dense:
        raise ServerError(
            f"serve.data_parallel_size {data} over {settings.nnodes} hosts: the replicas of a dense model have nothing to share",
            "start one server per host (serve.nnodes 1), and measure them together with --attach and attach.replicas",
        )
    devices_needed = settings.world_size * data // settings.nnodes
    if devices is not None and settings.distributed_executor_backend != "ray" and devices_needed > devices:
        product = f"{tensor} tensor × {pipeline} pipeline × {data} data parallel"
        spread = f" over {settings.nnodes} nodes" if settings.nnodes > 1 else ""
        raise ServerError(
            f"{product}{spread} needs {devices_needed} devices here, and this host has {devices}",
            "take smaller sizes, more hosts (serve.nnodes), or Ray's cluster (serve.distributed_executor_backend ray)",
        )
