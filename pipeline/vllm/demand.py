"""The memory that a start demands of each device, from its settings and the extra arguments for vLLM."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.schema import ServeConfig
from pipeline.errors import ModelError
from pipeline.gpu.nvml import Gpu
from pipeline.model.layers import AttentionLayers, StateLayers
from pipeline.model.shape import DTYPE_BYTES, Shape, read_shape
from pipeline.model.weights import DOWNLOAD, weight_bytes
from pipeline.vllm.cache import STATES_PER_REQUEST
from pipeline.vllm.plan import Demand, Plan
from pipeline.vllm.sets import CPU_SET

FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")  # the others of fp8 store scales beside the values
KV_DTYPE, COMPILATION = "--kv-cache-dtype", "--compilation-config"
# vLLM arguments whose effect these formulas do not model; --quantization, for example, may pack the weights while loading.
UNPLANNED = (
    *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "--cpu-offload-gb"),
    *("--quantization", "-q", "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--hf-overrides", "--enable-lora"),
    *("--speculative-config", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"),
    *("--model", "--dtype", "--enforce-eager", "--config", "--offload-group-size", "--block-size", "--decode-context-parallel-size"),
    *("-dcp", "--mamba-block-size", "--mamba-cache-dtype", "--mamba-ssm-cache-dtype", "--mamba-cache-mode", "--language-model-only"),
    *("--disable-hybrid-kv-cache-manager", "--disable-sliding-window"),
)
NO_PREFIX_CACHING = "--no-enable-prefix-caching"


def arguments(words: Sequence[str]) -> dict[str, str]:
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


def kv_bytes(settings: ServeConfig, dtype: str, shape: Shape | None = None) -> int | None:
    """Return the bytes per value of the KV cache, as set or as the checkpoint asks; None for an unknown dtype."""
    kind: str | None = arguments(settings.extra_args).get(KV_DTYPE, "auto")
    if kind == "auto" and shape is not None and shape.quantization is not None:
        kind = shape.quantization.kv_dtype
    if kind is None:
        return None
    return 1 if kind in FP8 else DTYPE_BYTES.get(dtype if kind == "auto" else kind)


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
    """Return the shape of one device's share: heads, states and MLP are split by tensor, layers by pipeline parallelism."""
    tensor, pipeline = settings.tensor_parallel_size, settings.pipeline_parallel_size
    return shape.model_copy(
        update={
            "layers": math.ceil(shape.layers / pipeline),
            "attention": tuple(share_of_attention(layers, tensor, pipeline) for layers in shape.attention),
            "states": share_of_states(shape.states, tensor, pipeline) if shape.states else None,
            "dense": math.ceil(shape.dense / tensor) if shape.dense else None,
            "expert": math.ceil(shape.expert / tensor) if shape.expert else None,
        }
    )


def share_of_attention(layers: AttentionLayers, tensor: int, pipeline: int) -> AttentionLayers:
    """Return one device's share of attention layers; a KV head that cannot be split is copied."""
    return layers.model_copy(update={"heads": math.ceil(layers.heads / tensor), "count": math.ceil(layers.count / pipeline)})


def share_of_states(states: StateLayers, tensor: int, pipeline: int) -> StateLayers:
    """Return one device's share of states; groups that do not divide are copied (mamba_utils.py, extra_groups_for_head_shards, 0.32)."""
    groups = states.groups if states.groups % tensor == 0 else tensor
    return states.model_copy(
        update={
            "count": math.ceil(states.count / pipeline),
            "convolution": math.ceil(states.convolution / tensor),
            "groups": groups // tensor,
            "recurrence": math.ceil(states.recurrence / tensor),
        }
    )


def demand(settings: ServeConfig, shape: Shape, weights_bytes: int, weights_from: str, total_mib: float) -> Demand:
    """Return the demand of a start on each device, of `total_mib`; weights spread over devices count in equal shares.

    Raise ModelError where config.json does not tell what it depends on.
    """
    dtype = shape.served_dtype(settings.dtype)
    width = kv_bytes(settings, dtype, shape)
    reason = unknown_demand(shape, width)
    if width is None or reason:
        raise ModelError(reason, DOWNLOAD)
    return Demand(
        shape=share_of_shape(shape, settings).model_copy(update={"dtype": dtype}),
        weights_bytes=math.ceil(weights_bytes / settings.world_size),
        weights_from=weights_from,
        total_mib=total_mib,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        captured=0 if settings.enforce_eager is True else graph_size_count(settings),
        kv_dtype_bytes=width,
        states=1 if NO_PREFIX_CACHING in arguments(settings.extra_args) else STATES_PER_REQUEST,
    )


def unknown_demand(shape: Shape, width: int | None) -> str:
    """Return why the memory of a start is unknown; empty where it is known."""
    if width is None:
        return "the checkpoint asks for a KV cache of a form that is not planned here"
    if shape.states_unknown:
        return f"config.json does not state {shape.states_unknown}, which decide the state of a request"
    sizes = {"hidden_size": shape.hidden, "vocab_size": shape.vocabulary, "intermediate_size": shape.dense or shape.expert}
    lacking = [name for name, size in sizes.items() if size is None]
    return f"config.json does not state {', '.join(lacking)}" if lacking else ""


def demand_on(settings: ServeConfig, gpus: Sequence[Gpu], distribution: str, folder: Path) -> Demand | None:
    """Return the start's demand on the smallest device; None without a GPU, or for a model or flags that are not modelled."""
    device = smallest_device(gpus, settings)
    if distribution == CPU_SET.distribution or device is None or unplanned(settings):
        return None
    try:
        shape = read_shape(folder)
        return demand(settings, shape, *weight_bytes(folder, shape, settings.dtype), device.total_mib)
    except ModelError:
        return None


def plan_of(settings: ServeConfig, gpus: Sequence[Gpu], distribution: str, folder: Path) -> Plan | None:
    """Return the plan of a start on the smallest device; None where its demand is unknown."""
    start_demand = demand_on(settings, gpus, distribution, folder)
    return start_demand.at(settings.gpu_memory_utilization) if start_demand else None
