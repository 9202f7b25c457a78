"""The settings that every request carries."""

from collections.abc import Iterable
from typing import Any

from pydantic import field_validator

from pipeline.config.section import Section

# What the tests themselves decide: with another value they would measure something else than they say.
OWN_FIELDS = frozenset(
    (
        "cache_salt",
        "ignore_eos",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "min_tokens",
        "model",
        "n",
        "repetition_penalty",
        "response_format",
        "return_token_ids",
        "seed",
        "stream",
        "stream_options",
        "temperature",
        "top_logprobs",
        "user",
    )
)


class RequestsConfig(Section):
    """What every request to the server carries beside its own fields, also to an attached one."""

    chat_template_kwargs: dict[str, Any] = {}
    extra_body: dict[str, Any] = {}

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields of a request's body."""
        return {**self.extra_body, **({"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {})}

    @field_validator("extra_body")
    @classmethod
    def leaves_the_tests_theirs(cls, fields: dict[str, Any]) -> dict[str, Any]:
        if taken := named(OWN_FIELDS & fields.keys()):
            raise ValueError(f"the tests set {taken} themselves")
        if "chat_template_kwargs" in fields:
            raise ValueError("chat_template_kwargs is a setting of its own: requests.chat_template_kwargs")
        return fields


def named(words: Iterable[str]) -> str:
    """Return the words in order, with commas."""
    return ", ".join(sorted(words))
