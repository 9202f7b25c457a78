"""The payloads of chat completions."""

from collections.abc import Iterable
from typing import Any


def unary(model: str, messages: Iterable[dict[str, str]], max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return the payload of a greedy request for a unary answer."""
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        # Temperature 0 still applies the model's generation_config, and some models ship a penalty there.
        "repetition_penalty": 1.0,
        **more,
    }


def streamed(model: str, messages: Iterable[dict[str, str]], max_tokens: int, **more: Any) -> dict[str, Any]:
    """Return the payload of a greedy streamed request with the usage chunk on, and the token ids of each chunk.

    The ids tell how many tokens a chunk carries. Usage in each chunk would too, but costs vLLM 10 µs more for each.
    """
    form = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    return unary(model, messages, max_tokens, **{**form, **more})
