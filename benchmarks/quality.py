"""What storing the embedded model's weights as int8 costs in quality, against the dequantised original.

`./inv install` first, then `.venv/bin/python -m benchmarks.quality` (5 minutes, nothing beside it). The original is the
GGUF dequantised to bf16 and computed in float32. It answers each prompt greedily; the others then answer the same prompts,
and are asked how likely they find the original's answers, token by token.
"""

import argparse
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests

from benchmarks.served import NAME, ROOT, Up, checkpoint, command, fresh, profile, served
from pipeline.client.control import Control
from pipeline.config.schema import ServeConfig
from pipeline.suite import load_prompts, load_suite

TOKENS = 64
CONCURRENCY = 8
TIMEOUT_S = 120
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Told:
    """A greedy answer: the prompt's token ids and its own."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """What a server finds of an answer's token: its log-probability, and whether it is the server's own first choice."""

    logprob: float
    first: bool


def prompts() -> list[str]:
    """Return the router's English utterances and the determinism test's English prompts."""
    cases = load_suite(ROOT / "suites" / "router-en").cases
    return [*(case.text for case in cases), *load_prompts(ROOT / "suites" / "determinism-en.txt")]


def answer(up: Up, prompt: str) -> Told:
    """Return the greedy answer to a prompt."""
    payload = {
        "model": NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "repetition_penalty": 1.0,
        "max_tokens": TOKENS,
        "return_token_ids": True,
    }
    completion = Control(up.target.base_url).chat(payload, TIMEOUT_S)
    return Told(tuple(completion.prompt_token_ids or ()), tuple(completion.choices[0].token_ids or ()))


def at_once(ask: Callable[[A], B], about: Iterable[A]) -> list[B]:
    """Return what `ask` says of each, several at a time."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(ask, about))


def judge(up: Up, told: Told) -> list[Judged]:
    """Return what the server finds of each token of the answer, given the prompt and the tokens before."""
    payload = {"model": NAME, "prompt": [*told.prompt, *told.answer], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    response = requests.post(f"{up.target.base_url}/v1/completions", json=payload, timeout=TIMEOUT_S)
    response.raise_for_status()
    positions: list[dict[str, Any]] = response.json()["choices"][0]["prompt_logprobs"][len(told.prompt) :]
    own = (position[str(token)] for position, token in zip(positions, told.answer, strict=True))
    return [Judged(float(entry["logprob"]), entry["rank"] == 1) for entry in own]


def row(name: str, up: Up, originals: list[Told], asked: list[str]) -> str:
    """Return one server's figures as a row of a table."""
    again = at_once(lambda prompt: answer(up, prompt), asked)
    judged = [entry for judged in at_once(lambda told: judge(up, told), originals) for entry in judged]
    same = sum(mine.answer == theirs.answer for mine, theirs in zip(again, originals, strict=True))
    first = sum(entry.first for entry in judged) / len(judged)
    mean = sum(entry.logprob for entry in judged) / len(judged)
    return f"| {name} | {same} of {len(asked)} | {100 * first:.1f} % | {mean:.3f} |"


def server(settings: ServeConfig, folder: Path, name: str) -> Any:
    """Return the context of a server of these settings."""
    workspace = fresh(name)
    return served(settings, command(settings, folder, workspace), workspace)


def main() -> None:
    """Run the comparison and print it as a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    asked = prompts()
    eager = profile().model_copy(update={"enforce_eager": True})
    with server(eager.model_copy(update={"dtype": "float32"}), checkpoint("none"), "original") as up:
        originals = at_once(lambda prompt: answer(up, prompt), asked)
        rows = [row("original (bf16 weights, float32)", up, originals, asked)]
    for name, settings, weights in (("bf16", eager, "none"), ("int8, as the cpu profile", profile(), "int8")):
        with server(settings, checkpoint(weights), weights) as up:
            rows.append(row(name, up, originals, asked))
    tokens = sum(len(told.answer) for told in originals)
    print(f"{len(asked)} prompts, {tokens} answer tokens of the original; greedy, at most {TOKENS} tokens an answer\n")
    print("| weights | answers equal to the original's | its tokens that are the first choice here | their mean log-probability |")
    print("| --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
