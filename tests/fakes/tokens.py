"""The tokens of the fake's answers: what it generates, and how a token is shown. Standard library only."""

import itertools
import zlib
from typing import Any

from tests.fakes.script import Script

TOKEN_CHARACTERS = 4


def generate(script: Script, number: int, payload: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    """Return the tokens of the answer, each as (field of the delta, text), and the finish reason."""
    limit = int(payload.get("max_tokens") or 64) + script.tokens_too_many
    tags = ("<think>", "</think>") if script.thought_as == "content" and script.thought else ("", "")  # each is one token
    thoughts = [(script.thought_as, piece) for piece in (tags[0], *split(script.thought), tags[1]) if piece]
    text = script.texts[number % len(script.texts)]
    text = f"{payload.get('seed')} {text}" if payload.get("temperature") and script.heeds_seed else text
    pieces = [("content", piece) for piece in split(text)]
    if payload.get("ignore_eos") and script.honours_ignore_eos:
        return list(itertools.islice(itertools.chain(thoughts, itertools.cycle(pieces)), limit)), "length"
    return [*thoughts, *pieces][:limit], script.finish_reason or ("length" if len(thoughts) + len(pieces) > limit else "stop")


def refused(script: Script, payload: dict[str, Any]) -> str:
    """Return why the chat template does not take the messages; empty where it does."""
    if not script.has_template:
        return "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template"
    is_system = any(message["role"] == "system" for message in payload["messages"])
    return "System role not supported" if is_system and not script.takes_system else ""


def shown(script: Script, pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the tokens with the text that a stream shows of them: none of the first and the last so many."""
    last = len(pieces) - script.silent_last
    return [(field, text if script.silent_first <= number < last else "") for number, (field, text) in enumerate(pieces)]


def delta_of(pieces: list[tuple[str, str]]) -> dict[str, str]:
    """Return the tokens as one delta or message."""
    found: dict[str, str] = {}
    for field, text in pieces:
        found[field] = found.get(field, "") + text
    return found


def split(text: str) -> list[str]:
    """Return the text's tokens."""
    return [text[start : start + TOKEN_CHARACTERS] for start in range(0, len(text), TOKEN_CHARACTERS)]


def token_id(piece: str) -> int:
    return zlib.crc32(piece.encode()) % 49152


def prompt_ids(script: Script, payload: dict[str, Any]) -> list[int]:
    return [token_id(script.prompt_prefix + message["content"]) for message in payload["messages"]]


def logprobs(script: Script, pieces: list[str]) -> dict[str, Any]:
    """Return two ranked logprobs for each token."""
    return {"content": [{"token": piece, "top_logprobs": [{"logprob": -0.1}, {"logprob": -0.1 - script.top_gap}]} for piece in pieces]}
