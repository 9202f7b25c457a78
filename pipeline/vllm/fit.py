"""The fit of a demand for memory on a device, and the settings to use."""

import math
from bisect import bisect_right
from typing import Literal

from pipeline.measure.units import MIB
from pipeline.values import Frozen
from pipeline.vllm.cache import request_bytes
from pipeline.vllm.plan import CONTEXT_MIB, CONTEXT_STEP, SHORTEST_CONTEXT, WORKSPACE_MIB, Demand, Plan

LONGEST_CONTEXT = 1 << 24  # of a model whose config.json states none

FitVerdict = Literal["fits", "fits, over the target", "fits only below context", "does not fit"]


class Fit(Frozen):
    """The verdict on whether a demand fits a device, and the share of the device to use.

    `least` is the smallest share at which one request of full length fits, `most` the largest whose peak the device holds,
    None where there is none; `advised` is the share to set and `plan` the plan with it. `alone` is the longest context of
    one request, `each` that of max_num_seqs requests at once.
    """

    verdict: FitVerdict
    least: float | None
    most: float | None
    advised: float | None
    plan: Plan
    alone: int
    each: int

    @property
    def words(self) -> str:
        """Return the verdict as text, marked where the margin is smaller than the estimate's error."""
        more = {
            "fits only below context": f" {self.alone}",
            "fits, over the target": f": takes {self.plan.needed_mib:.0f} MiB at least",
            "does not fit": f": takes {self.plan.needed_mib:.0f} MiB at least",
        }.get(self.verdict, "")
        close = abs(self.plan.spare_mib) < self.plan.error_mib
        return f"{self.verdict}{more}{' (by less than the estimate’s error)' if close else ''}"


def fit_of(demand: Demand, available_mib: float, target_mib: float | None) -> Fit:
    """Return the fit of `demand` in `available_mib` of its device, with the peak below `target_mib` where possible."""
    steps = list(demand.steps())
    feasible = [(share, plan) for share, plan in steps if plan.peak_mib <= available_mib]
    on_target = [(share, plan) for share, plan in feasible if target_mib is None or plan.meets(target_mib)]
    least = next((share for share, plan in steps if plan.fits), None)
    most = feasible[-1][0] if feasible else None
    verdict: FitVerdict
    if on_target and on_target[-1][1].fits:
        verdict, (advised, plan) = "fits", on_target[-1]
    elif feasible and feasible[-1][1].fits:
        verdict, (advised, plan) = "fits, over the target", feasible[-1]
    elif feasible and longest_context(feasible[-1][1], demand, 1) >= SHORTEST_CONTEXT:
        verdict, (advised, plan) = "fits only below context", feasible[-1]
    else:
        plan = feasible[-1][1] if feasible else demand.at(None)
        return Fit(verdict="does not fit", least=least, most=most, advised=None, plan=plan, alone=0, each=0)
    alone, each = (longest_context(plan, demand, requests) for requests in (1, demand.max_num_seqs))
    return Fit(verdict=verdict, least=least, most=most, advised=advised, plan=plan, alone=alone, each=each)


def longest_context(plan: Plan, demand: Demand, requests: int) -> int:
    """Return the longest context of each of `requests` concurrent requests: the KV cache's share, at most the model's own."""
    share, longest = int(plan.kv_cache_mib * MIB) // requests, demand.shape.context or LONGEST_CONTEXT
    lengths = range(CONTEXT_STEP, longest + CONTEXT_STEP, CONTEXT_STEP)
    fitting = bisect_right(lengths, share, key=lambda length: request_bytes(demand.shape, min(length, longest), demand.allocation))
    return min(fitting * CONTEXT_STEP, longest)


def pairs(demand: Demand, available_mib: float, target_mib: float | None) -> list[tuple[int, int, float]]:
    """Return (max_num_seqs, the longest max_model_len that fits for all of them at once, the share to set), fewest first.

    vLLM itself starts with less: it requires room for one request of full length, and lets others wait or preempts them.
    """
    result = []
    for sequences in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        fit = fit_of(demand.model_copy(update={"max_num_seqs": sequences, "max_model_len": SHORTEST_CONTEXT}), available_mib, target_mib)
        if fit.advised is not None and fit.each >= SHORTEST_CONTEXT:
            result.append((sequences, fit.each, fit.advised))
    return result


def hopeless(demand: Demand, utilization: float | None) -> tuple[str, str] | None:
    """Return (why a start cannot succeed even with the estimate's error in its favour, what would fit); None where it can."""
    plan = demand.at(utilization)
    if not plan.cannot_fit:
        return None
    required_mib = math.ceil(demand.request_bytes / MIB)
    reason = (
        f"the plan leaves {plan.kv_cache_mib:.0f} MiB (±{plan.error_mib:.0f}) for a KV cache that needs {required_mib} for one request of "
        f"{plan.max_model_len} tokens: {plan.budget_mib:.0f} of {plan.total_mib:.0f} MiB less {plan.weights_mib:.0f} of weights, "
        f"{plan.activations_mib + WORKSPACE_MIB:.0f} of activations"
    )
    fit = fit_of(demand, demand.total_mib, None)
    if fit.verdict == "fits":
        return reason, f"what would fit: serve.gpu_memory_utilization from {fit.least} to {fit.most}"
    if fit.advised is not None:
        return reason, f"what would fit: serve.max_model_len up to {fit.alone} with serve.gpu_memory_utilization {fit.advised}"
    return reason, "no share of this device and no context fits: take a smaller model (`./inv plan` shows which fit)"


def share_of(free_mib: float, total_mib: float) -> float:
    """Return the largest share of a device, in steps of 0.01, that fits into its free memory beside vLLM's own CUDA context."""
    return max(0.0, math.floor(100 * (free_mib - CONTEXT_MIB) / total_mib) / 100)
