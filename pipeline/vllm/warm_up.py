"""Warm-up requests before anything is timed: a GPU server compiles some kernels when a request first needs them."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.load.generator import closed_loop

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"number": {"type": "integer"}},
    "required": ["number"],
    "additionalProperties": False,
}
CONSTRAINED: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA, "strict": True}}
}
# The kinds of requests that the stages send.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": True, "top_logprobs": 2, "return_token_ids": True},
    {"logprobs": True, "top_logprobs": 2, "temperature": 0.8, "seed": 1},
    {"temperature": 1.0, "seed": 1, "ignore_eos": True},
    CONSTRAINED,
)
TOGETHER = (1, 3, 16)  # Triton compiles a kernel separately for size 1, for multiples of 16, and for other sizes
LONG_WORDS = 400
MAX_TOKENS = 8
WARM_UP_TIMEOUT_S = 120


def warm_up(target: Endpoint, model: str, max_num_seqs: int, max_model_len: int) -> int:
    """Send each kind of request alone and concurrently; return how many were answered."""
    answer_count = 0
    for concurrency in sorted({min(count, max_num_seqs) for count in TOGETHER}):
        answers, _ = closed_loop(target, payloads(model, concurrency, max_model_len), concurrency, WARM_UP_TIMEOUT_S)
        answer_count += sum(answer.ok for answer in answers)
    return answer_count


def payloads(model: str, concurrency: int, max_model_len: int) -> Iterator[dict[str, Any]]:
    """Yield `concurrency` requests of each kind, then the kinds mixed in one batch, and two long prompts where the context has room."""
    mixed = product(KINDS, range(1)) if concurrency > 1 else ()
    for kind, number in (*product(KINDS, range(concurrency)), *mixed):
        yield streamed(model, [{"role": "user", "content": f"Say hello to number {number}."}], MAX_TOKENS, **kind)
    if max_model_len > 4 * LONG_WORDS:
        for kind in ({}, CONSTRAINED):
            yield streamed(model, [{"role": "user", "content": " ".join(["again"] * LONG_WORDS)}], MAX_TOKENS, **kind)
