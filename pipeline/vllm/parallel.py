"""Checks, before vLLM is started, that a model can be spread over devices and hosts as the settings ask."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config.schema import ServeConfig
from pipeline.config.section import Positive
from pipeline.errors import ModelError, ServerError


class ModelParts(BaseModel):
    """The parts of a model that are split or distributed, from its config.json; None where it does not have them."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    num_hidden_layers: Positive | None = None
    intermediate_size: Positive | None = None
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
        return ""


def read_model_parts(folder: Path) -> ModelParts:
    """Return the parts in the folder's config.json; ModelError where it cannot be read."""
    try:
        return ModelParts.model_validate(json.loads((folder / "config.json").read_bytes()))
    except (OSError, ValidationError, ValueError) as error:
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
