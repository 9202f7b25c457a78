"""The memory that a start demands of each device, from its settings and the extra arguments for vLLM."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.schema import ServeConfig
from pipeline.errors import ModelError
from pipeline.gpu.nvml import Gpu
from pipeline.model.shape import DTYPE_BYTES, Shape, read_shape, weight_bytes
from pipeline.vllm.plan import Demand, Plan
from pipeline.vllm.sets import CPU_SET

KV_DTYPE, COMPILATION = "--kv-cache-dtype", "--compilation-config"
# vLLM arguments whose effect these formulas do not model; --quantization, for example, may pack the weights while loading.
UNPLANNED = (
    *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "--cpu-offload-gb"),
    *("--quantization", "-q", "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--hf-overrides", "--enable-lora"),
    *("--speculative-config", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"),
    *("--model", "--dtype", "--enforce-eager", "--config", "--offload-group-size"),
)


def arguments(words: tuple[str, ...]) -> dict[str, str]:
    """Return vLLM's arguments with their values, written as `--name=value` or `--name value`, with dashes or underscores."""
    values: dict[str, str] = {}
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            values[name.replace("_", "-")] = value if equals else ("" if following.startswith("-") else following)
    return values


def graph_size_count(settings: ServeConfig) -> int | None:
    """Return the number of graph batch sizes that the compilation config lists; None where vLLM chooses them."""
    try:
        return len(json.loads(arguments(settings.extra_args).get(COMPILATION, ""))["cudagraph_capture_sizes"])
    except (ValueError, KeyError, TypeError):
        return None


def kv_bytes(settings: ServeConfig, dtype: str) -> int | None:
    """Return the bytes per element of the KV cache; None for an unknown dtype."""
    kind = arguments(settings.extra_args).get(KV_DTYPE, "auto")
    return 1 if kind.startswith("fp8") else DTYPE_BYTES.get(dtype if kind == "auto" else kind)


def unplanned(settings: ServeConfig) -> str | None:
    """Return the first argument whose effect on memory is not modelled; None where there is none."""
    values = arguments(settings.extra_args)
    if kv_bytes(settings, "bfloat16") is None:
        return f"{KV_DTYPE} {values[KV_DTYPE]}"
    return next((name for name in UNPLANNED if name in values), None)


def devices(gpus: Sequence[Gpu], settings: ServeConfig) -> list[Gpu]:
    """Return the devices that a server with these settings uses on this host: as many of the first visible ones as it needs."""
    return list(gpus[: max(1, settings.world_size * settings.data_parallel_size // settings.nnodes)])


def smallest_device(gpus: Sequence[Gpu], settings: ServeConfig) -> Gpu | None:
    """Return the smallest of the devices that share the model, which decides what fits; None without any."""
    return min(devices(gpus, settings), key=lambda gpu: gpu.total_mib, default=None)


def share_of_shape(shape: Shape, settings: ServeConfig) -> Shape:
    """Return the shape of one device's share: heads and MLP are split by tensor, layers by pipeline parallelism."""
    tensor, pipeline = settings.tensor_parallel_size, settings.pipeline_parallel_size
    return shape.model_copy(
        update={
            "layers": math.ceil(shape.layers / pipeline),
            "kv_heads": math.ceil(shape.kv_heads / tensor),
            "intermediate": math.ceil(shape.intermediate / tensor),
        }
    )


def demand(settings: ServeConfig, shape: Shape, weights_bytes: int, weights_from: str, total_mib: float) -> Demand:
    """Return the demand of a start on each device, of `total_mib`; weights spread over devices count in equal shares."""
    dtype = shape.served_dtype(settings.dtype)
    return Demand(
        shape=share_of_shape(shape, settings).model_copy(update={"dtype": dtype}),
        weights_bytes=math.ceil(weights_bytes / settings.world_size),
        weights_from=weights_from,
        total_mib=total_mib,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        captured=0 if settings.enforce_eager is True else graph_size_count(settings),
        kv_dtype_bytes=kv_bytes(settings, dtype) or 2,
    )


def demand_on(settings: ServeConfig, gpus: Sequence[Gpu], distribution: str, folder: Path) -> Demand | None:
    """Return the start's demand on the smallest device; None without a GPU, or for a model or flags that are not modelled."""
    device = smallest_device(gpus, settings)
    if distribution == CPU_SET.distribution or device is None or unplanned(settings):
        return None
    try:
        shape = read_shape(folder)
        weights, source = weight_bytes(folder, shape, settings.dtype)
    except ModelError:
        return None
    return demand(settings, shape, weights, source, device.total_mib)


def plan_of(settings: ServeConfig, gpus: Sequence[Gpu], distribution: str, folder: Path) -> Plan | None:
    """Return the plan of a start on the smallest device; None where its demand is unknown."""
    start_demand = demand_on(settings, gpus, distribution, folder)
    return start_demand.at(settings.gpu_memory_utilization) if start_demand else None
