"""Single requests whose answers carry token ids."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import unary
from pipeline.config.schema import DeterminismConfig
from pipeline.errors import MeasureError


@dataclass(frozen=True)
class TokenAnswer:
    """One answer: token ids, text, prompt ids, number of cached prompt tokens, and per token the logprob gap of the best two."""

    ids: tuple[int, ...]
    text: str
    prompt_ids: tuple[int, ...]
    cached: int
    gaps: tuple[float | None, ...]

    def gap_at(self, position: int) -> float | None:
        return self.gaps[position] if position < len(self.gaps) else None


class Asker:
    """Sends the determinism test's requests, greedy by default."""

    def __init__(self, target: Endpoint, model: str, settings: DeterminismConfig) -> None:
        self.target = target
        self.control = Control(target.base_url, target.api_key)
        self.model = model
        self.settings = settings
        self.salt = secrets.token_hex(8)  # unique to this run: the server may have answered the same prompts before

    def ask(self, prompt: str, **more: Any) -> TokenAnswer:
        """Return the answer; raise MeasureError if the server returns no token ids."""
        messages = [{"role": "user", "content": prompt}]
        payload = unary(self.model, messages, self.settings.max_tokens, **{"seed": self.settings.seed, "return_token_ids": True, **more})
        began = time.monotonic()
        completion = self.control.chat(payload, self.settings.timeout_s)
        self.target.loaded(began, time.monotonic())
        choice = completion.choices[0] if completion.choices else None
        if choice is None or not choice.token_ids:
            raise MeasureError("the server returns no token ids", "vLLM 0.10.2 and newer do")
        details = completion.usage.prompt_tokens_details
        ranked = (choice.logprobs.content if choice.logprobs else None) or []
        gaps = [sorted((entry.logprob for entry in token.top_logprobs), reverse=True)[:2] for token in ranked]
        return TokenAnswer(
            ids=tuple(choice.token_ids),
            text=choice.message.content or "",
            prompt_ids=tuple(completion.prompt_token_ids or ()),
            cached=(details.cached_tokens if details else None) or 0,
            gaps=tuple(pair[0] - pair[1] if len(pair) == 2 else None for pair in gaps),
        )

    def gap_at(self, position: int, prompt: str, reference: TokenAnswer, **more: Any) -> float | None:
        """Return the logprob gap at that token of `reference`, or None if the answer to this new request diverges before it.

        The request is a separate one because each token takes a third longer with logprobs.
        """
        again = self.ask(prompt, **more, logprobs=True, top_logprobs=2)
        return again.gap_at(position) if again.ids[:position] == reference.ids[:position] else None
