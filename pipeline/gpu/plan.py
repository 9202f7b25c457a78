"""What a start will take of the GPU's memory, before it is tried. Pure: sizes in, MiB out.

vLLM takes total × gpu_memory_utilization and fills what weights and activations leave with KV cache
(vllm/v1/worker/gpu_worker.py, determine_available_memory). The CUDA context and the captured graphs come on top: on an
H100 with vLLM 0.24 a budget of 4486 MiB became a peak of 5432. (vLLM 0.32 takes an estimate of the graphs from the KV
cache; that is within the error below.) Weights and KV cache follow from the model's files and shape; activations, graphs
and context are estimates, each with its reasoning beside it.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.config.schema import ServeConfig
from pipeline.gpu.nvml import Gpu
from pipeline.measure.figures import Figure, not_measured
from pipeline.message import _
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
# The KV cache of four runs on an H100 with vLLM 0.24 was within 330 MiB of the plan, their peak within 140 and at most 118 above
# it (tests/unit/gpu/test_plan.py, where examples/ is held against the bands too). One card is few, so the bands are wider.
ERROR_MIB = 700.0
PEAK_ERROR_MIB = 150.0
# Below this a router's prompt with its answer gets tight; serve's own retries stop there too.
SHORTEST_CONTEXT = 1024
CONTEXT_STEP = 16  # tokens; vLLM's block on GPUs
# The guide's card. Source: nvidia-smi on an RTX 4050 Laptop shows 6141MiB in all.
LAPTOP = "NVIDIA GeForce RTX 4050 Laptop GPU"
LAPTOP_MIB = 6141.0
NOTHING_PLANNED = _("nothing was planned: no GPU, or a model or flag that the plan does not know")
KV_DTYPE, COMPILATION = "--kv-cache-dtype", "--compilation-config"
# Arguments of vLLM that change what these formulas know. --quantization, for one, may pack the weights while loading.
UNPLANNED = (
    *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "--cpu-offload-gb"),
    *("--quantization", "-q", "--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--hf-overrides", "--enable-lora"),
    *("--speculative-config", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization"),
    *("--model", "--dtype", "--enforce-eager", "--config", "--offload-group-size"),
)


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
    def spare_mib(self) -> float:
        """Return how much more KV cache there is than one request of full length needs; negative where it lacks."""
        return self.kv_cache_mib - self.max_model_len * self.kv_bytes_per_token / MIB

    @property
    def needed_mib(self) -> float:
        """Return the least that the device will show with room for one request of full length."""
        return self.peak_mib - self.spare_mib

    @property
    def cannot_fit(self) -> bool:
        """Tell whether it does not fit even where the estimate is wrong by its error band."""
        return self.spare_mib + self.error_mib < 0

    def meets(self, target_mib: float) -> bool:
        """Tell whether the peak stays below the target even where the estimate is wrong by its error band."""
        return self.peak_mib + PEAK_ERROR_MIB < target_mib


class Demand(BaseModel):
    """A model and the flags that decide its memory, apart from the share of the device."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    shape: Shape
    weights_bytes: int
    weights_from: str
    total_mib: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int | None = None
    captured: int | None = None
    kv_dtype_bytes: int

    def at(self, utilization: float | None) -> Plan:
        """Return the plan with that share of the device, or vLLM's default."""
        return plan(
            self.shape,
            self.weights_bytes,
            self.weights_from,
            self.total_mib,
            utilization,
            self.max_model_len,
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.captured == 0,
            self.captured,
            self.kv_dtype_bytes,
        )

    def steps(self) -> Iterator[tuple[float, Plan]]:
        """Yield each share in steps of 0.01, smallest first, with its plan."""
        return ((step / 100, self.at(step / 100)) for step in range(1, 101))


Verdict = Literal["fits", "fits, over the target", "fits only below context", "does not fit"]


class Judgement(BaseModel):
    """Whether a demand fits a device, and with which share of it.

    `least` is the smallest share at which one request of full length fits, `most` the largest whose peak the device holds,
    None where there is none; `advised` is the share to set and `plan` the plan with it. `alone` is the longest context of
    one request, `each` that of max_num_seqs requests at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    verdict: Verdict
    least: float | None
    most: float | None
    advised: float | None
    plan: Plan
    alone: int
    each: int

    @property
    def words(self) -> str:
        """Return the verdict as a person reads it, with what its estimate's error leaves open."""
        more = {
            "fits only below context": f" {self.alone}",
            "fits, over the target": f": takes {self.plan.needed_mib:.0f} MiB at least",
            "does not fit": f": takes {self.plan.needed_mib:.0f} MiB at least",
        }.get(self.verdict, "")
        close = abs(self.plan.spare_mib) < self.plan.error_mib
        return f"{self.verdict}{more}{' (by less than the estimate’s error)' if close else ''}"


def devices(gpus: Sequence[Gpu], settings: ServeConfig) -> list[Gpu]:
    """Return the devices that a server with these settings takes on this host: the first of the visible ones, as many as it needs."""
    return list(gpus[: max(1, settings.world_size * settings.data_parallel_size // settings.nnodes)])


def deciding(gpus: Sequence[Gpu], settings: ServeConfig) -> Gpu | None:
    """Return the device that decides what fits: the smallest of those that share the model; None without any."""
    return min(devices(gpus, settings), key=lambda gpu: gpu.total_mib, default=None)


def shared(shape: Shape, settings: ServeConfig) -> Shape:
    """Return the shape of one device's share: heads and MLP are split by tensor, layers by pipeline parallelism."""
    tensor, pipeline = settings.tensor_parallel_size, settings.pipeline_parallel_size
    return shape.model_copy(
        update={
            "layers": math.ceil(shape.layers / pipeline),
            "kv_heads": math.ceil(shape.kv_heads / tensor),
            "intermediate": math.ceil(shape.intermediate / tensor),
        }
    )


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
    captured: int | None = None,
    kv_dtype_bytes: int | None = None,
) -> Plan:
    """Return what the server will take of a device of `total_mib`."""
    budget_mib = math.ceil(total_mib * MIB * (utilization or DEFAULT_UTILIZATION)) / MIB
    activations_mib = activations_bytes(shape, batched_tokens(total_mib, max_num_batched_tokens), max_num_seqs) / MIB
    sizes = captured_sizes(max_num_seqs) if captured is None else captured
    graphs_mib = 0.0 if eager else GRAPH_MIB * sizes
    per_token = kv_bytes_per_token(shape, kv_dtype_bytes or DTYPE_BYTES.get(shape.dtype, 2))
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


def demand(settings: ServeConfig, shape: Shape, weights_bytes: int, weights_from: str, total_mib: float) -> Demand:
    """Return what a start with these settings asks of each device, which has `total_mib`; a spread model's weights in equal shares."""
    dtype = shape.served_dtype(settings.dtype)
    return Demand(
        shape=shared(shape, settings).model_copy(update={"dtype": dtype}),
        weights_bytes=math.ceil(weights_bytes / settings.world_size),
        weights_from=weights_from,
        total_mib=total_mib,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        captured=0 if settings.enforce_eager is True else listed_sizes(settings),
        kv_dtype_bytes=kv_bytes(settings, dtype) or 2,
    )


def arguments(words: tuple[str, ...]) -> dict[str, str]:
    """Return vLLM's arguments with their values, written as `--name=value`, `--name value` or with underscores."""
    found: dict[str, str] = {}
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            found[name.replace("_", "-")] = value if equals else ("" if after.startswith("-") else after)
    return found


def listed_sizes(settings: ServeConfig) -> int | None:
    """Return how many batch sizes the compilation config lists for graphs; None where it leaves that to vLLM."""
    try:
        return len(json.loads(arguments(settings.extra_args).get(COMPILATION, ""))["cudagraph_capture_sizes"])
    except (ValueError, KeyError, TypeError):
        return None


def kv_bytes(settings: ServeConfig, dtype: str) -> int | None:
    """Return the bytes of a number in the KV cache; None for a kind that is not known here."""
    asked = arguments(settings.extra_args).get(KV_DTYPE, "auto")
    return 1 if asked.startswith("fp8") else DTYPE_BYTES.get(dtype if asked == "auto" else asked)


def unplanned(settings: ServeConfig) -> str | None:
    """Return the argument that changes the memory in a way that is not planned here; None where there is none."""
    given = arguments(settings.extra_args)
    if kv_bytes(settings, "bfloat16") is None:
        return f"{KV_DTYPE} {given[KV_DTYPE]}"
    return next((name for name in UNPLANNED if name in given), None)


def judge(asked: Demand, available_mib: float, target_mib: float | None) -> Judgement:
    """Return whether it fits into `available_mib` of the device, if it can below the target of its peak."""
    steps = list(asked.steps())
    held = [(share, made) for share, made in steps if made.peak_mib <= available_mib]
    within = [(share, made) for share, made in held if target_mib is None or made.meets(target_mib)]
    least = next((share for share, made in steps if made.fits), None)
    most = held[-1][0] if held else None
    verdict: Verdict
    if within and within[-1][1].fits:
        verdict, (advised, made) = "fits", within[-1]
    elif held and held[-1][1].fits:
        verdict, (advised, made) = "fits, over the target", held[-1]
    elif held and longest(held[-1][1], asked.shape, 1) >= SHORTEST_CONTEXT:
        verdict, (advised, made) = "fits only below context", held[-1]
    else:
        made = held[-1][1] if held else asked.at(None)
        return Judgement(verdict="does not fit", least=least, most=most, advised=None, plan=made, alone=0, each=0)
    alone, each = (longest(made, asked.shape, requests) for requests in (1, asked.max_num_seqs))
    return Judgement(verdict=verdict, least=least, most=most, advised=advised, plan=made, alone=alone, each=each)


def longest(made: Plan, shape: Shape, requests: int) -> int:
    """Return the context that so many requests at once may each have: what the KV cache holds and the model knows."""
    tokens = made.kv_tokens // requests // CONTEXT_STEP * CONTEXT_STEP
    return min(tokens, shape.context or tokens)


def pairs(asked: Demand, available_mib: float, target_mib: float | None) -> list[tuple[int, int, float]]:
    """Return (max_num_seqs, the longest max_model_len that all of them may have at once, the share to set), fewest first.

    vLLM starts with less: it asks for one request of full length, and lets the others wait or begin anew.
    """
    found = []
    for sequences in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        judged = judge(asked.model_copy(update={"max_num_seqs": sequences, "max_model_len": SHORTEST_CONTEXT}), available_mib, target_mib)
        if judged.advised is not None and judged.each >= SHORTEST_CONTEXT:
            found.append((sequences, judged.each, judged.advised))
    return found


def refusal(asked: Demand, utilization: float | None) -> tuple[str, str] | None:
    """Return (why a start cannot succeed even with the estimate's error in its favour, what would fit); None where it can."""
    made = asked.at(utilization)
    if not made.cannot_fit:
        return None
    needed = math.ceil(made.max_model_len * made.kv_bytes_per_token / MIB)
    why = (
        f"the plan leaves {made.kv_cache_mib:.0f} MiB (±{made.error_mib:.0f}) for a KV cache that needs {needed} for one request of "
        f"{made.max_model_len} tokens: {made.budget_mib:.0f} of {made.total_mib:.0f} MiB less {made.weights_mib:.0f} of weights, "
        f"{made.activations_mib + WORKSPACE_MIB:.0f} of activations"
    )
    judged = judge(asked, asked.total_mib, None)
    if judged.verdict == "fits":
        return why, f"what would fit: serve.gpu_memory_utilization from {judged.least} to {judged.most}"
    if judged.advised is not None:
        return why, f"what would fit: serve.max_model_len up to {judged.alone} with serve.gpu_memory_utilization {judged.advised}"
    return why, "no share of this device and no context fits: take a smaller model (`./inv plan` shows which fit)"


def crowded(gpus: Sequence[Gpu], settings: ServeConfig) -> tuple[str, str] | None:
    """Return (why vLLM will refuse for what others hold of a device, what to do); None where it will not.

    It refuses where less is free than its share of the device, both as CUDA counts them: without the driver's reserve.
    """
    given = arguments(settings.extra_args)
    if "--gpu-memory-utilization" in given or "--config" in given:
        return None
    share = settings.gpu_memory_utilization or DEFAULT_UTILIZATION
    for gpu in devices(gpus, settings):
        total_mib = gpu.total_mib - (CONTEXT_MIB if gpu.reserved_mib is None else gpu.reserved_mib)
        if gpu.free_mib < share * total_mib:
            who = [f"pid {one.pid} ({one.name})" + ("" if one.used_mib is None else f" {one.used_mib:.0f}") for one in gpu.processes]
            why = (
                f"{gpu.free_mib:.0f} of {total_mib:.0f} MiB are free on GPU {gpu.index} ({gpu.name}), and "
                f"serve.gpu_memory_utilization {share:g} asks for {share * total_mib:.0f}{'; held by ' + ', '.join(who) if who else ''}"
            )
            fits = share_of(gpu.free_mib, total_mib)
            lower = f", or set serve.gpu_memory_utilization={fits:g} or less" if fits > 0 else ""
            return why, f"close what you do not need on the GPU (`./inv check-gpu` lists it){lower}"
    return None


def share_of(free_mib: float, total_mib: float) -> float:
    """Return the largest share of a device, in steps of 0.01, that still fits beside the CUDA context of vLLM itself."""
    return max(0.0, math.floor(100 * (free_mib - CONTEXT_MIB) / total_mib) / 100)


def plan_error_figure(made: Plan | None, peak: Figure) -> Figure:
    """Return by how many percent the planned peak was above the measured one (below, where negative)."""
    if made is None:
        return not_measured("%", NOTHING_PLANNED)
    if peak.value is None:
        return not_measured("%", peak.reason)
    if peak.value <= 0:
        return not_measured("%", _("the measured peak is 0"))
    return Figure(value=100 * (made.peak_mib / peak.value - 1), unit="%", n=1)
