"""Single requests whose answers carry token ids."""

import itertools
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.client.answer import Answer, Blocks, RawAnswer, read_answer, stamped_events, thought_apart
from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed, unary
from pipeline.config.schema import DeterminismConfig
from pipeline.errors import MeasureError
from pipeline.message import Sentence, _

OLD_VLLM = "vLLM 0.10.2 and newer do"


@dataclass(frozen=True)
class TokenAnswer:
    """One answer: its token ids, text, the prompt's ids, cached prompt tokens, and per token the gap between the best two.

    `text` is what follows the `reasoning`; the token ids are those of both.

    It lived from `began_s` to `ended_s` by `time.monotonic`. `short_of` is how many tokens it was allowed where it says that it
    ended by its length and has fewer; else 0.
    """

    ids: tuple[int, ...]
    text: str
    prompt_ids: tuple[int, ...]
    cached: int
    gaps: tuple[float | None, ...] = ()
    began_s: float = 0.0
    ended_s: float = 0.0
    short_of: int = 0
    reasoning: str = ""

    def gap_at(self, position: int) -> float | None:
        return self.gaps[position] if position < len(self.gaps) else None


@dataclass(frozen=True)
class TokenRequest:
    """What a prompt stands for: its messages, the most tokens of its answer, further fields, and whether the answer is streamed."""

    messages: list[dict[str, str]]
    max_tokens: int
    more: Mapping[str, Any] = field(default_factory=dict)
    is_streamed: bool = False


def commonest(answers: Sequence[TokenAnswer]) -> TokenAnswer:
    """Return the first answer with the commonest token ids."""
    counts = Counter(answer.ids for answer in answers)
    return max(answers, key=lambda answer: counts[answer.ids])


def is_exchanged(prompt: str, answer: TokenAnswer, references: Mapping[str, TokenAnswer], by_text: bool) -> bool:
    """Tell whether `answer` is that to another prompt than its own, by the references to each.

    `by_text`: the answers are too long to be another's by chance; else the token ids of the prompt must say it.
    """
    if answer.ids == references[prompt].ids:
        return False
    others = [reference for other, reference in references.items() if other != prompt]
    return any(answer.prompt_ids == other.prompt_ids or (by_text and answer.ids == other.ids) for other in others)


def store_doubt(answers: Mapping[str, Sequence[TokenAnswer]]) -> Sentence:
    """Return what shows that answers by prompt come from a store of earlier ones, which proves nothing; empty where nothing does."""
    short = next((answer for each in answers.values() for answer in each if answer.short_of), None)
    if short is not None:
        n, needed = len(short.ids), short.short_of
        return _(
            "equal answers prove nothing: one was cut off at {n} tokens where {needed} were allowed, as a stored one is", n=n, needed=needed
        )
    if len({each[0].prompt_ids for each in answers.values()}) < len(answers):
        return _("equal answers prove nothing: two prompts came back with the same token ids, as from a store of answers")
    return ""


class Asker:
    """Sends the test's requests, greedy unless told otherwise; a prompt that `requests` names stands for the request there."""

    def __init__(
        self, target: Endpoint, model: str, settings: DeterminismConfig, requests: Mapping[str, TokenRequest] | None = None
    ) -> None:
        self.model = model
        self.settings = settings
        self.requests = requests or {}
        self.salt = secrets.token_hex(8)  # of this run alone: the server may have answered the same prompts before
        self._numbers: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self._turn_to(target)

    def _turn_to(self, target: Endpoint) -> None:
        self.target = target
        self.control = Control.of(target)

    def at(self, target: Endpoint) -> "Asker":
        """Return an asker that goes on at another server."""
        other = copy(self)
        other._turn_to(target)
        return other

    def request(self, prompt: str) -> TokenRequest:
        """Return what the prompt stands for."""
        free = TokenRequest([{"role": "user", "content": prompt}], self.settings.max_tokens, {"seed": self.settings.seed})
        return self.requests.get(prompt, free)

    def ask(self, prompt: str, room: int = 0, **more: Any) -> TokenAnswer:
        """Return the answer, which may be `room` tokens longer but is kept to its length; MeasureError where token ids are missing."""
        request = self.request(prompt)
        limit = request.max_tokens + room
        is_streamed = request.is_streamed and not more.get("logprobs")
        make = streamed if is_streamed else unary
        payload = make(self.model, request.messages, limit, **{**request.more, "return_token_ids": True, **more})
        began = time.monotonic()
        answer, reason = self._stream(payload) if is_streamed else self._whole(payload)
        ended = time.monotonic()
        self.target.loaded(began, ended)
        return TokenAnswer(
            ids=answer.ids[: request.max_tokens],
            text=answer.text,
            prompt_ids=answer.prompt_ids,
            cached=answer.cached,
            gaps=answer.gaps,
            began_s=began,
            ended_s=ended,
            reasoning=answer.reasoning,
            short_of=limit if reason == "length" and len(answer.ids) < limit else 0,
        )

    def ask_anew(self, prompt: str, **more: Any) -> TokenAnswer:
        """Return the answer to a request that is like no other and has the same answer, so that no store of answers can serve it.

        Its `user` and `max_tokens` are its own.
        """
        number = next(self._numbers[prompt])
        return self.ask(prompt, number, user=f"{self.salt}-{number}", **more)

    def gap_at(self, position: int, prompt: str, reference: TokenAnswer, **more: Any) -> float | None:
        """Return the logprob gap at that token of `reference`, or None if the answer to this new request diverges before it.

        The request is a separate one because each token takes a third longer with logprobs.
        """
        again = self.ask(prompt, **more, logprobs=True, top_logprobs=2)
        return again.gap_at(position) if again.ids[:position] == reference.ids[:position] else None

    def _whole(self, payload: dict[str, Any]) -> tuple[TokenAnswer, str | None]:
        """Return an answer in one piece, and why it ended."""
        completion = self.control.chat(payload, self.settings.timeout_s)
        choice = completion.choices[0] if completion.choices else None
        if choice is None or not choice.token_ids or not completion.prompt_token_ids:
            raise MeasureError("the server returns no token ids", OLD_VLLM)
        details = completion.usage.prompt_tokens_details
        ranked = (choice.logprobs.content if choice.logprobs else None) or []
        gaps = [sorted((entry.logprob for entry in token.top_logprobs), reverse=True)[:2] for token in ranked]
        reasoning, text, _begin = thought_apart(choice.message.content or "", choice.message.thought)
        answer = TokenAnswer(
            ids=tuple(choice.token_ids),
            text=text,
            reasoning=reasoning,
            prompt_ids=tuple(completion.prompt_token_ids),
            cached=(details.cached_tokens if details else None) or 0,
            gaps=tuple(pair[0] - pair[1] if len(pair) == 2 else None for pair in gaps),
        )
        return answer, choice.finish_reason

    def _stream(self, payload: dict[str, Any]) -> tuple[TokenAnswer, str | None]:
        """Return a streamed answer, and why it ended."""
        sent_ns = time.perf_counter_ns()
        blocks = self.control.stream(payload, self.settings.timeout_s)
        answer = read_answer(RawAnswer(sent_ns, 200, blocks, ""))
        if not answer.ok:
            raise MeasureError(f"a streamed answer: {answer.error}")
        return token_answer(answer, *streamed_ids(blocks)), answer.finish_reason


# Beside answer.py's, which is read for each token of a load and has no use for these.
class TokenChoice(msgspec.Struct, gc=False):
    token_ids: list[int] | None = None


class TokenChunk(msgspec.Struct, gc=False):
    choices: list[TokenChoice] = []
    prompt_token_ids: list[int] | None = None


def streamed_ids(blocks: Blocks) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the answer's and the prompt's token ids in a stream of events that is one."""
    chunks = [msgspec.json.decode(event, type=TokenChunk) for event in stamped_events(blocks)[0] if event.startswith(b"{")]
    ids = [number for chunk in chunks for choice in chunk.choices for number in choice.token_ids or ()]
    prompt_ids = next((chunk.prompt_token_ids for chunk in chunks if chunk.prompt_token_ids), [])
    return tuple(ids), tuple(prompt_ids)


def token_answer(answer: Answer, ids: tuple[int, ...], prompt_ids: tuple[int, ...]) -> TokenAnswer:
    """Return the streamed answer with its token ids; MeasureError where they are not all there."""
    if not ids or not prompt_ids:
        raise MeasureError("the server streams no token ids", OLD_VLLM)
    if len(ids) != answer.tokens:
        raise MeasureError(f"a stream gave {len(ids)} token ids, its usage counts {answer.tokens} tokens")
    return TokenAnswer(ids=ids, text=answer.text, reasoning=answer.reasoning, prompt_ids=prompt_ids, cached=answer.cached_tokens)
