"""What a start will take of the GPU's memory, before it is tried. Pure: sizes in, MiB out.

vLLM takes total × gpu_memory_utilization and fills what weights and activations leave with KV cache
(vllm/v1/worker/gpu_worker.py, determine_available_memory). The CUDA context and the captured graphs come on top: on an
H100 with vLLM 0.24 a budget of 4486 MiB became a peak of 5432. Weights and KV cache follow from the model's files and
shape; activations, graphs and context are estimates, each with its reasoning beside it.
"""

import math

from pydantic import BaseModel, ConfigDict

from pipeline.model.shape import DTYPE_BYTES, Shape, kv_bytes_per_token

MIB = 2**20
DEFAULT_UTILIZATION = 0.92  # vLLM 0.32
DEFAULT_BATCHED_TOKENS = 2048  # vLLM's default for a server on a GPU of under 70 GiB; 8192 from there on
LARGE_GPU_MIB = 70 * 1024
LARGE_BATCHED_TOKENS = 8192
# CUDA context, cuBLAS workspaces and what else torch's allocator does not count.
CONTEXT_MIB = 500.0
# What the profiling run finds beside weights and activations: 214 MiB on an H100 with vLLM 0.24.
WORKSPACE_MIB = 214.0
# One captured batch size costs about this much. vLLM captures 1, 2, 4, every 8th below 256 and every 16th from there, up to
# twice max_num_seqs and at most 512.
GRAPH_MIB = 7.2  # 369 MiB for 51 sizes on an H100 with vLLM 0.24
# Estimates of activations, graphs and context together were this far off at most where we measured (docs in benchmarks/).
ERROR_MIB = 700.0


class Plan(BaseModel):
    """Estimated use of one device in MiB, how much KV cache is left, and whether one request of full length fits."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    total_mib: float
    budget_mib: float
    weights_mib: float
    weights_from: str
    activations_mib: float
    graphs_mib: float
    context_mib: float
    kv_cache_mib: float
    kv_bytes_per_token: int
    kv_tokens: int
    max_model_len: int
    error_mib: float

    @property
    def peak_mib(self) -> float:
        """Return what the device will show: vLLM counts neither the context nor the graphs into its budget."""
        return self.budget_mib + self.context_mib + self.graphs_mib

    @property
    def fits(self) -> bool:
        return self.kv_tokens >= self.max_model_len

    @property
    def cannot_fit(self) -> bool:
        """Tell whether it does not fit even where the estimate is wrong by its error band."""
        return (self.kv_cache_mib + self.error_mib) * MIB < self.max_model_len * self.kv_bytes_per_token


def batched_tokens(total_mib: float, asked: int | None) -> int:
    """Return the tokens of the largest batch, as vLLM chooses them where nothing is asked."""
    return asked or (LARGE_BATCHED_TOKENS if total_mib >= LARGE_GPU_MIB else DEFAULT_BATCHED_TOKENS)


def captured_sizes(max_num_seqs: int) -> int:
    """Return how many batch sizes vLLM captures as CUDA graphs."""
    largest = min(2 * max_num_seqs, 512)
    return sum(size <= largest for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)))


def activations_bytes(shape: Shape, tokens: int, max_num_seqs: int) -> int:
    """Return the peak of the profiling run: the MLP's gate, up and product beside four hidden states, and the sampler's
    logits in float32 twice and in the model's dtype once."""
    width = DTYPE_BYTES.get(shape.dtype, 2)
    layers = tokens * (4 * shape.hidden + 3 * shape.intermediate) * width
    return layers + min(max_num_seqs, tokens) * shape.vocabulary * (2 * 4 + width)


def plan(
    shape: Shape,
    weights_bytes: int,
    weights_from: str,
    total_mib: float,
    utilization: float | None,
    max_model_len: int,
    max_num_seqs: int,
    max_num_batched_tokens: int | None = None,
    eager: bool = False,
) -> Plan:
    """Return what the server will take of a device of `total_mib`."""
    budget_mib = math.ceil(total_mib * MIB * (utilization or DEFAULT_UTILIZATION)) / MIB
    activations_mib = activations_bytes(shape, batched_tokens(total_mib, max_num_batched_tokens), max_num_seqs) / MIB
    graphs_mib = 0.0 if eager else GRAPH_MIB * captured_sizes(max_num_seqs)
    per_token = kv_bytes_per_token(shape, DTYPE_BYTES.get(shape.dtype, 2))
    kv_cache_mib = budget_mib - weights_bytes / MIB - activations_mib - WORKSPACE_MIB
    return Plan(
        total_mib=total_mib,
        budget_mib=round(budget_mib, 1),
        weights_mib=round(weights_bytes / MIB, 1),
        weights_from=weights_from,
        activations_mib=round(activations_mib, 1),
        graphs_mib=round(graphs_mib, 1),
        context_mib=CONTEXT_MIB,
        kv_cache_mib=round(kv_cache_mib, 1),
        kv_bytes_per_token=per_token,
        kv_tokens=max(0, int(kv_cache_mib * MIB / per_token)),
        max_model_len=max_model_len,
        error_mib=ERROR_MIB,
    )
