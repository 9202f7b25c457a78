"""What storing the embedded model's weights as int8 costs in quality, against the dequantised original.

Run `./inv install` first, then `.venv/bin/python -m benchmarks.quality` (5 minutes, on an otherwise idle machine). The original is the
GGUF file dequantised to bf16 and computed in float32. It answers each prompt greedily. The others answer the same prompts, and score
the original's answers token by token.
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
class GreedyAnswer:
    """A greedy answer: the token ids of the prompt and of the answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class TokenScore:
    """A server's score of an answer's token: its log-probability, and whether it is the server's own first choice."""

    logprob: float
    first: bool


def prompts() -> list[str]:
    """Return the router's English utterances and the determinism test's English prompts."""
    cases = load_suite(ROOT / "suites" / "router-en").cases
    return [*(case.text for case in cases), *load_prompts(ROOT / "suites" / "determinism-en.txt")]


def answer(up: Up, prompt: str) -> GreedyAnswer:
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
    return GreedyAnswer(tuple(completion.prompt_token_ids or ()), tuple(completion.choices[0].token_ids or ()))


def map_concurrently(ask: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Return the results of `ask` for each item, computed several at a time."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(ask, items))


def judge(up: Up, original: GreedyAnswer) -> list[TokenScore]:
    """Return the server's score of each token of the answer, given the prompt and the tokens before it."""
    payload = {"model": NAME, "prompt": [*original.prompt, *original.answer], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    response = requests.post(f"{up.target.base_url}/v1/completions", json=payload, timeout=TIMEOUT_S)
    response.raise_for_status()
    positions: list[dict[str, Any]] = response.json()["choices"][0]["prompt_logprobs"][len(original.prompt) :]
    entries = (position[str(token)] for position, token in zip(positions, original.answer, strict=True))
    return [TokenScore(float(entry["logprob"]), entry["rank"] == 1) for entry in entries]


def row(name: str, up: Up, originals: list[GreedyAnswer], texts: list[str]) -> str:
    """Return one server's figures as a row of a table."""
    answers = map_concurrently(lambda prompt: answer(up, prompt), texts)
    scores = [entry for scores in map_concurrently(lambda original: judge(up, original), originals) for entry in scores]
    same = sum(mine.answer == theirs.answer for mine, theirs in zip(answers, originals, strict=True))
    first = sum(entry.first for entry in scores) / len(scores)
    mean = sum(entry.logprob for entry in scores) / len(scores)
    return f"| {name} | {same} of {len(texts)} | {100 * first:.1f} % | {mean:.3f} |"


def server(settings: ServeConfig, folder: Path, name: str) -> Any:
    """Return the context of a server with these settings."""
    workspace = fresh(name)
    return served(settings, command(settings, folder, workspace), workspace)


def main() -> None:
    """Run the comparison and print it as a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    texts = prompts()
    eager = profile().model_copy(update={"enforce_eager": True})
    with server(eager.model_copy(update={"dtype": "float32"}), checkpoint("none"), "original") as up:
        originals = map_concurrently(lambda prompt: answer(up, prompt), texts)
        rows = [row("original (bf16 weights, float32)", up, originals, texts)]
    for name, settings, weights in (("bf16", eager, "none"), ("int8, as the cpu profile", profile(), "int8")):
        with server(settings, checkpoint(weights), weights) as up:
            rows.append(row(name, up, originals, texts))
    tokens = sum(len(original.answer) for original in originals)
    print(f"{len(texts)} prompts, {tokens} answer tokens of the original; greedy, at most {TOKENS} tokens an answer\n")
    print("| weights | answers equal to the original's | its tokens that are the first choice here | their mean log-probability |")
    print("| --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
