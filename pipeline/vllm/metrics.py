"""The names of vLLM's metrics, their sums over replicas, and the rise between two readings."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.client.control import Control, together

GENERATED_TOKENS = "vllm:generation_tokens_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
SUCCESSES = "vllm:request_success_total"
CACHE_HITS = "vllm:prefix_cache_hits_total"
PREEMPTIONS = "vllm:num_preemptions_total"
REQUESTS_RUNNING = "vllm:num_requests_running"
TTFT_SECONDS = "vllm:time_to_first_token_seconds"
TPOT_SECONDS = "vllm:request_time_per_output_token_seconds"
ITL_SECONDS = "vllm:inter_token_latency_seconds"
E2E_SECONDS = "vllm:e2e_request_latency_seconds"
KV_USAGE = "vllm:kv_cache_usage_perc"  # a fraction: 1 when full

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Counters:
    """The metrics of the server, or of all replicas together."""

    controls: list[Control]

    def read(self) -> Metrics:
        """Return each metric of all the servers together, and only those that each of them has."""
        readings = [control.metrics() for control in self.controls]
        return {name: together(name, [each[name] for each in readings]) for name in set.intersection(*(set(each) for each in readings))}


def rise(before: Metrics, after: Metrics, name: str) -> int | None:
    """Return how far a counter rose; None where the server has no such metric."""
    return int(after[name] - before[name]) if name in before and name in after else None
