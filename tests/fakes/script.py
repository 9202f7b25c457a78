"""What the fake in vLLM's place does, as data that a test writes and the fake reads, and what it has seen. Standard library only."""

import dataclasses
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = "0.32.0"


@dataclass(frozen=True)
class Script:
    """What the fake does. Counts of chunks are of content chunks; None is never."""

    # Answers.
    texts: tuple[str, ...] = ("Hello there, this is a scripted answer.",)  # taken in turn
    status: int = 200
    body: str | None = None  # verbatim in place of an unary answer, with `status`
    heeds_seed: bool = True  # at a temperature, another seed gets another answer
    honours_ignore_eos: bool = True  # repeat the text up to max_tokens when asked
    token_ids: bool = True
    tokens_per_chunk: int = 1
    tokens_too_many: int = 0  # beyond max_tokens
    thought: str = ""  # before the answer
    thought_as: str = "reasoning"  # or reasoning_content, or content: then in <think> tags
    finish_reason: str | None = None
    usage_says: Any = None  # the completion tokens, in place of how many there are
    cached_tokens: int | None = 0  # None: what a prefix cache would give, by salt and prompt
    prompt_prefix: str = ""  # what a chat template would put in front
    top_gap: float = 1.5  # logprob of each token − that of the next best
    in_flight_gauge: bool = True
    # Streams.
    first_token_s: float = 0.0
    inter_token_s: float = 0.0
    usage_s: float = 0.0  # pause before the usage chunk
    flush_chunks: int = 1  # so many are sent at once, as through a proxy that buffers
    silent_first: int = 0  # tokens whose chunks have no text
    silent_last: int = 0
    unsent_last: int = 0  # tokens that come in no chunk
    only_usage: bool = False
    usage_chunk: bool = True
    cut_after: int | None = None  # end the stream, well-formed, without [DONE]
    break_after: int | None = None  # drop the connection
    error_after: int | None = None  # an error event, then [DONE]
    drop_every: int | None = None  # hang up on each so-many-th request, unanswered
    idle_s: float | None = None  # hang up on a connection that has been idle for so long
    tires_after: int | None = None  # hang up on the next request of a connection that has had so many
    rendezvous: int = 0  # hold each answer until so many requests are in flight
    # Other answers for requests whose last message contains the key, or by number of arrival from 0.
    by_prompt: dict[str, dict[str, Any]] = field(default_factory=dict)
    by_number: dict[str, dict[str, Any]] = field(default_factory=dict)
    loaded_texts: tuple[str, ...] | None = None  # in place of `texts` while other requests are in flight
    # Another script for a program whose environment holds the key, as in NAME=value.
    by_environment: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Lies of identity.
    version: str = VERSION
    model_id: str | None = None
    root: str | None = None
    owned_by: str = "vllm"
    max_model_len: int | None = None
    adapters: tuple[str, ...] = ()  # LoRA adapters of the model, by name
    prefix: str = ""  # of every path, as behind a proxy
    hidden: tuple[str, ...] = ()  # paths that such a proxy does not let through
    takes_system: bool = True  # whether the chat template does
    has_template: bool = True
    metrics: bool = True
    metrics_status: int = 200
    counting: float = 1.0  # how much the counter rises for each token
    preemptions: int = 0  # the counter
    preempts: int = 0  # how far that counter rises after the first request
    kv_usage: float = 0.25  # while there are requests in flight
    bodies: dict[str, str] = field(default_factory=dict)  # verbatim answers to GET, by path
    # Life and death of the program.
    healthy: bool = True
    log: tuple[str, ...] = ()
    exit_code: int | None = None  # after the log, before listening
    fails_above: dict[str, float] = field(default_factory=dict)  # an argument larger than this is too much memory
    lack: str = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"  # what is said then
    hang: bool = False  # after the log, instead of listening
    ignore_sigterm: bool = False
    orphan: bool = False  # a child in the session that outlives its parent
    poses_as: str | None = None  # argv[0] after an exec of this file
    die_at_request: int | None = None
    last_words: tuple[str, ...] = ()
    dying_s: float = 0.0  # from the broken connection to the end of the process

    @staticmethod
    def load(path: Path) -> "Script":
        script = Script(**json.loads(path.read_text(encoding="utf-8")))
        changes: dict[str, Any] = {}
        for setting, change in script.by_environment.items():
            name, _, value = setting.partition("=")
            changes |= change if os.environ.get(name) == value else {}
        return dataclasses.replace(script, **changes)

    def save(self, path: Path) -> None:
        """Write whole: a server may be reading it."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        fresh.replace(path)

    def for_request(self, number: int, prompt: str) -> "Script":
        """Return the script as it stands for one request."""
        changes: dict[str, Any] = {}
        for part, change in self.by_prompt.items():
            changes |= change if part in prompt else {}
        changes |= self.by_number.get(str(number), {})
        return dataclasses.replace(self, **changes)


@dataclass
class Ledger:
    """What the fake has seen and generated."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    counter: float = 0.0
    connections: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    successes: int = 0
    readings: int = 0  # of /metrics
    in_flight: int = 0
    max_in_flight: int = 0
    seen_prompts: set[str] = field(default_factory=set)
    full: threading.Condition = field(default_factory=threading.Condition)
