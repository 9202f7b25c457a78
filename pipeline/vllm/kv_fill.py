"""Fill most of the KV cache once, with as many long requests at once as the server takes: a peak beside an empty cache proves little."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed, unary
from pipeline.errors import MeasureError
from pipeline.load.generator import closed_loop
from pipeline.message import Digits, Sentence, _
from pipeline.values import Frozen
from pipeline.vllm.demand import arguments
from pipeline.vllm.meter import metered
from pipeline.vllm.metrics import REQUESTS_RUNNING
from pipeline.vllm.plan import DEFAULT_BATCHED_TOKENS

DEFAULT_SEQUENCES = 256  # vLLM's max_num_seqs where nothing is asked
GOAL = 0.9  # of what can be filled; a fuller cache preempts
PROMPTS = 0.85  # of the cache: what is left to the goal, and what one reading misses, comes token by token
READ_EVERY_S = 0.1
TRIAL_WORDS = 200
ROUNDS = 4  # requests for each that may be in flight: a server that refuses them is not asked for ever
EMPTY_S = 10.0  # a server notices within a step that its clients are gone
WORDS = ("river", "stone", "cloud", "apple", "train", "house", "green", "light")


class Fill(Frozen):
    """How far the KV cache was filled, by the highest reading of its gauge, and why not further; `preempted` counts meanwhile."""

    percent: float | None = None
    readings: int = 0
    seconds: float = 0.0
    requests: int = 0
    preempted: int | None = 0
    why: Sentence = ""


@dataclass(frozen=True)
class Room:
    """What a server can hold: tokens of KV cache, requests at once and tokens of each; and how many it computes in a step."""

    kv_tokens: int
    sequences: int
    max_model_len: int
    batched_tokens: int

    @property
    def share(self) -> float:
        """Return how much of the cache requests of full length can take, as many at once as may be."""
        return min(1.0, self.sequences * self.max_model_len / self.kv_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Return the length of the prompts. What is left of the context lasts until the last of them is computed: one token a step."""
        steps = ceil(self.sequences * self.max_model_len / (self.batched_tokens + self.sequences))
        longest = self.max_model_len - min(max(steps, self.max_model_len // 8), self.max_model_len // 2)
        return max(1, min(int(PROMPTS * self.kv_tokens / self.sequences), longest))

    @property
    def answer_tokens(self) -> int:
        """Return the length of the answers: up to the context's end, less what a prompt may be longer than it was meant to be."""
        return max(1, self.max_model_len - self.prompt_tokens - self.max_model_len // 16)


def room_of(command: Sequence[str], kv_tokens: int, max_model_len: int) -> Room:
    """Return the room of a server that was started by this command."""
    sequences = flag(command, "--max-num-seqs") or DEFAULT_SEQUENCES
    return Room(kv_tokens, sequences, max_model_len, flag(command, "--max-num-batched-tokens") or DEFAULT_BATCHED_TOKENS)


def flag(command: Sequence[str], name: str) -> int | None:
    """Return the value of a flag, the last one given; None without one."""
    given = arguments(command).get(name, "")
    return int(given) if given.isdecimal() else None


def fill_kv_cache(target: Endpoint, model: str, room: Room, limit_s: float, engines: int = 1) -> Fill:
    """Fill the cache of each engine to 90 % of what it can take, in at most `limit_s`, then hang up.

    The gauge decides when it is enough, so that nothing need be preempted.
    """
    control = Control.of(target)
    began = time.monotonic()
    try:
        tokens_per_word = control.chat(unary(model, messages(0, TRIAL_WORDS), 1), limit_s).usage.prompt_tokens / TRIAL_WORDS
    except MeasureError as error:
        return Fill(seconds=round(time.monotonic() - began, 1), why=f"{error}")
    goal_percent = 100 * GOAL * room.share
    count = room.sequences * engines
    with metered(target, READ_EVERY_S) as meter:
        meter.read()
        if meter.kv_peak_percent is None:
            return Fill(seconds=round(time.monotonic() - began, 1), preempted=None, why=_("the server's metrics do not tell"))

        def over() -> bool:
            return time.monotonic() - began >= limit_s or (meter.kv_peak_percent or 0.0) >= goal_percent

        answers, _wall_s = closed_loop(
            replace(target, alive=lambda: not over() and target.alive()),
            payloads(model, room, tokens_per_word, ROUNDS * count),
            count,
            limit_s,
            lambda: not over(),
        )
        seconds = time.monotonic() - began
        wait_until_idle(control)
    percent = meter.kv_peak_percent
    if percent >= goal_percent:
        most = _(
            "{count} requests of {length} tokens are {share} % of it",
            count=count,
            length=room.max_model_len,
            share=Digits(f"{100 * room.share:.3g}"),
        )
        why = most if room.share < 1 else ""
    elif seconds >= limit_s:
        why = _("{seconds} s were over", seconds=Digits(f"{limit_s:g}"))
    else:
        why = next((answer.error for answer in answers if not answer.ok), "") or _("all its requests were answered before")
    return Fill(
        percent=percent,
        readings=meter.readings,
        seconds=round(seconds, 1),
        requests=len(answers),
        preempted=meter.preempted,
        why=why,
    )


def payloads(model: str, room: Room, tokens_per_word: float, most: int) -> Iterator[dict[str, Any]]:
    """Yield the requests: prompts that share no beginning, answers that end only with the context."""
    words = max(1, int(room.prompt_tokens / tokens_per_word))
    return (streamed(model, messages(number, words), room.answer_tokens, ignore_eos=True) for number in range(1, most + 1))


def messages(number: int, words: int) -> list[dict[str, str]]:
    """Return a prompt of so many words."""
    return [{"role": "user", "content": " ".join((f"{number}", *itertools.islice(itertools.cycle(WORDS), words - 1)))}]


def wait_until_idle(control: Control, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the server has noticed that its clients hung up, at most ten seconds."""
    deadline = time.monotonic() + EMPTY_S
    while time.monotonic() < deadline:
        try:
            if not control.metrics(REQUESTS_RUNNING).get(REQUESTS_RUNNING):
                return
        except MeasureError:
            return
        sleep(READ_EVERY_S)
