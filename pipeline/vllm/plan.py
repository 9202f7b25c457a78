"""An estimate of the GPU memory that a start takes, before it is tried. Pure: sizes in, MiB out.

vLLM takes total × gpu_memory_utilization and fills what weights and activations leave with KV cache
(vllm/v1/worker/gpu_worker.py, determine_available_memory). The CUDA context and the captured graphs come on top: on an
H100 with vLLM 0.24 a budget of 4486 MiB became a peak of 5432. (vLLM 0.32 subtracts an estimate of the graphs from the KV
cache; that is within the error below.) Weights and KV cache follow from the model's files and shape; activations, graphs
and context are estimates, each with its reasoning beside it.
"""

import math
from collections.abc import Iterator

from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.units import MIB
from pipeline.message import _
from pipeline.model.shape import DTYPE_BYTES, Shape, kv_bytes_per_token
from pipeline.values import Frozen
from pipeline.vllm.cache import CONCURRENT_BATCHES, STATES_PER_REQUEST, Allocation, fixed_bytes, request_bytes

DEFAULT_UTILIZATION = 0.92  # vLLM 0.32
DEFAULT_BATCHED_TOKENS = 2048  # vLLM's default for a server on a GPU of under 70 GiB; 8192 from there on
LARGE_GPU_MIB = 70 * 1024
LARGE_BATCHED_TOKENS = 8192
# CUDA context, cuBLAS workspaces and whatever else torch's allocator does not count.
CONTEXT_MIB = 500.0
# What vLLM's profiling run measures beside weights and activations: 214 MiB on an H100 with vLLM 0.24.
WORKSPACE_MIB = 214.0
# The cost of one captured batch size. vLLM captures 1, 2, 4, every 8th below 256 and every 16th from there, up to twice
# max_num_seqs and at most 512.
GRAPH_MIB = 7.2  # 369 MiB for 51 sizes on an H100 with vLLM 0.24
# In four runs on an H100 with vLLM 0.24 the KV cache was within 330 MiB of the plan, the peak within 140 and at most 118 above
# it (tests/unit/vllm/test_plan.py, which also checks examples/ against the bands). They are wider, as one card is little evidence.
ERROR_MIB = 700.0
PEAK_ERROR_MIB = 150.0
# A shorter context is tight for a router's prompt with its answer; serve's own retries stop here too.
SHORTEST_CONTEXT = 1024
CONTEXT_STEP = 16  # tokens; vLLM's block on GPUs
# The guide's card. Source: nvidia-smi on an RTX 4050 Laptop shows 6141MiB in all.
LAPTOP = "NVIDIA GeForce RTX 4050 Laptop GPU"
LAPTOP_MIB = 6141.0
NOTHING_PLANNED = _("nothing was planned: no GPU, or a model or flag that the plan does not know")


class Plan(Frozen):
    """Estimated use of one device in MiB, how much KV cache is left, and whether one request of full length fits."""

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
    request_mib: float | None = None  # KV cache of one request of full length; None where an older version planned

    @property
    def peak_mib(self) -> float:
        """Return the use that the device will show: the budget, and the context and graphs, which vLLM does not count in it."""
        return self.budget_mib + self.context_mib + self.graphs_mib

    @property
    def fits(self) -> bool:
        return self.kv_tokens >= self.max_model_len

    @property
    def spare_mib(self) -> float:
        """Return the KV cache beyond what one request of full length needs; negative where it is too small."""
        if self.request_mib is None:
            return self.kv_cache_mib - self.max_model_len * self.kv_bytes_per_token / MIB
        return self.kv_cache_mib - self.request_mib

    @property
    def needed_mib(self) -> float:
        """Return the smallest use that the device can show with room for one request of full length."""
        return self.peak_mib - self.spare_mib

    @property
    def cannot_fit(self) -> bool:
        """Tell whether one request of full length does not fit even with the error band in its favour."""
        return self.spare_mib + self.error_mib < 0

    def meets(self, target_mib: float) -> bool:
        """Tell whether the peak stays below the target even with the error band against it."""
        return self.peak_mib + PEAK_ERROR_MIB < target_mib


class Demand(Frozen):
    """A model and the flags that decide its memory, apart from the share of the device."""

    shape: Shape
    weights_bytes: int
    weights_from: str
    total_mib: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    captured: int | None = None
    kv_dtype_bytes: int | None = None
    states: int = STATES_PER_REQUEST

    @property
    def allocation(self) -> Allocation:
        """Return what decides the KV cache of a request besides its length."""
        in_flight = CONCURRENT_BATCHES * batched_tokens(self.total_mib, self.max_num_batched_tokens)
        return Allocation(self.kv_dtype_bytes or DTYPE_BYTES.get(self.shape.dtype, 2), in_flight, self.states)

    @property
    def request_bytes(self) -> int:
        """Return the KV cache of one request of full length."""
        return request_bytes(self.shape, self.max_model_len, self.allocation)

    @property
    def fixed_bytes(self) -> int:
        """Return the part of it that does not grow with the request."""
        return fixed_bytes(self.shape, self.max_model_len, self.allocation)

    def at(self, utilization: float | None) -> Plan:
        """Return the plan with that share of the device, or vLLM's default."""
        shape, tokens = self.shape, batched_tokens(self.total_mib, self.max_num_batched_tokens)
        budget_mib = math.ceil(self.total_mib * MIB * (utilization or DEFAULT_UTILIZATION)) / MIB
        activations_mib = activations_bytes(shape, tokens, self.max_num_seqs) / MIB
        sizes = captured_sizes(self.max_num_seqs) if self.captured is None else self.captured
        request = self.request_bytes
        kv_cache_mib = round(budget_mib - self.weights_bytes / MIB - activations_mib - WORKSPACE_MIB, 1)
        return Plan(
            total_mib=self.total_mib,
            budget_mib=round(budget_mib, 1),
            weights_mib=round(self.weights_bytes / MIB, 1),
            weights_from=self.weights_from,
            activations_mib=round(activations_mib, 1),
            graphs_mib=round(GRAPH_MIB * sizes, 1),
            context_mib=CONTEXT_MIB,
            kv_cache_mib=kv_cache_mib,
            kv_bytes_per_token=kv_bytes_per_token(shape, self.allocation.width),
            kv_tokens=max(0, int(kv_cache_mib * MIB) * self.max_model_len // request) if request else self.max_model_len,
            max_model_len=self.max_model_len,
            error_mib=ERROR_MIB,
            request_mib=round(request / MIB, 3),
        )

    def steps(self) -> Iterator[tuple[float, Plan]]:
        """Yield each share in steps of 0.01, smallest first, with its plan."""
        return ((step / 100, self.at(step / 100)) for step in range(1, 101))


def batched_tokens(total_mib: float, setting: int | None) -> int:
    """Return the tokens of the largest batch: the setting, or vLLM's default for a device of this size."""
    return setting or (LARGE_BATCHED_TOKENS if total_mib >= LARGE_GPU_MIB else DEFAULT_BATCHED_TOKENS)


def captured_sizes(max_num_seqs: int) -> int:
    """Return how many batch sizes vLLM captures as CUDA graphs."""
    largest = min(2 * max_num_seqs, 512)
    return sum(size <= largest for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)))


def activations_bytes(shape: Shape, tokens: int, max_num_seqs: int) -> int:
    """Return the peak of the profiling run in bytes.

    It has the MLP's gate, up and product beside four hidden states, and the sampler's logits twice in float32 and once in
    the model's dtype.
    """
    width = DTYPE_BYTES.get(shape.dtype, 2)
    layers = tokens * (4 * (shape.hidden or 0) + shape.mlp_values) * width
    return layers + min(max_num_seqs, tokens) * (shape.vocabulary or 0) * (2 * 4 + width)


def plan_error_figure(plan: Plan | None, peak: Figure) -> Figure:
    """Return how far the planned peak was above the measured one, in percent; negative where it was below."""
    if plan is None:
        return not_measured("%", NOTHING_PLANNED)
    if peak.value is None:
        return not_measured("%", peak.reason)
    if peak.value <= 0:
        return not_measured("%", _("the measured peak is 0"))
    return Figure(value=100 * (plan.peak_mib / peak.value - 1), unit="%", n=1)
