"""The embedded default's speed against vLLM's own defaults and against this machine's memory bandwidth, in one run.

Run `./inv install` first, then `.venv/bin/python -m benchmarks.cpu_speed` (9 minutes, on an otherwise idle machine). Two
configurations are measured in turn, each started twice on its own caches: vLLM's defaults (bf16 weights, no flag but the model's,
1 GiB for the KV cache) and the cpu profile (with its caches as `install` leaves them). Prompts differ from their first words on, so
none is in the prefix cache; a warning is printed if a token was cached. Memory bandwidth limits decoding: bytes per second, measured
by finding the maximum of 1 GiB of numbers, divided by the bytes of the weights that a token reads (all but the embeddings).
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.served import Up, checkpoint, command, fresh, profile, served
from pipeline.client.answer import Answer
from pipeline.client.payloads import streamed
from pipeline.config.schema import ServeConfig
from pipeline.gpu import host
from pipeline.load.generator import closed_loop
from pipeline.load.stamps import per_token_ms
from pipeline.measure.latency import ttft_ms
from pipeline.stages.install import rehearse
from pipeline.vllm.sets import CPU_SET

SHORT_TOKENS, LONG_TOKENS, OUTPUT_TOKENS, CONCURRENCY = 37, 1049, 128, 8
TIMEOUT_S = 300
READ_BANDWIDTH = """
import time, torch
array = torch.ones(2**28)
def seconds():
    began = time.perf_counter()
    array.amax()
    return time.perf_counter() - began
print(array.numel() * 4 / min(seconds() for _ in range(10)))
"""
# vLLM's own default is 0.92 of the memory, more than a machine with 24 GiB has free.
DEFAULTS = ServeConfig(env={"VLLM_CPU_KVCACHE_SPACE": "1"})
GOALS = {
    "TTFT, 37-token prompt (ms)": ("≤", 40),
    "decode at concurrency 1 (tok/s)": ("≥", 75),
    "TTFT, 1049-token prompt (ms)": ("≤", 550),
    "system throughput at 8 (tok/s)": ("≥", 200),
    "ready, first start (s)": ("≤", 60),
    "ready, later start (s)": ("≤", 30),
    "host memory, peak PSS (MiB)": ("", None),
}


@dataclass(frozen=True)
class Speed:
    """The results of one server: sorted values for TTFT and decode, throughput, and peak memory."""

    ttft_short_ms: list[float]
    decode_tok_s: list[float]
    ttft_long_ms: list[float]
    system_tok_s: float
    pss_mib: float


def prompts(tokens: int, first: int, up: Up) -> Iterator[str]:
    """Yield prompts of exactly `tokens` tokens, template included, that differ from their first words on."""

    def text(number: int, words: int) -> str:
        return f"{number:04d}" + " apple" * words

    guess = max(1, tokens - 36)
    (probe,) = ask(up, [streamed("model", [{"role": "user", "content": text(first, guess)}], 4)], 1)[0]
    words = guess + tokens - probe.prompt_tokens
    number = first
    while True:
        number += 1
        yield text(number, words)


def ask(up: Up, payloads: list[dict[str, object]], concurrency: int) -> tuple[list[Answer], float]:
    """Return the answers and the wall seconds; SystemExit with the error of the first failed request."""
    answers, wall_s = closed_loop(up.target, payloads, concurrency, TIMEOUT_S)
    failed = [answer.error for answer in answers if not answer.ok]
    if failed:
        raise SystemExit(f"a request failed: {failed[0]}")
    return answers, wall_s


def requests(up: Up, tokens: int, first: int, count: int, output: int) -> list[dict[str, object]]:
    """Return `count` requests of `tokens` prompt tokens and `output` output tokens."""
    source = prompts(tokens, first, up)
    return [streamed("model", [{"role": "user", "content": next(source)}], output, ignore_eos=True) for _ in range(count)]


def speed(up: Up) -> Speed:
    """Measure one server after a warm-up of each shape; all loads but the last send one request at a time."""
    ask(up, requests(up, SHORT_TOKENS, 0, 4, 16), 1)
    short, _ = ask(up, requests(up, SHORT_TOKENS, 1000, 30, 4), 1)
    decode, _ = ask(up, requests(up, SHORT_TOKENS, 2000, 15, OUTPUT_TOKENS), 1)
    ask(up, requests(up, LONG_TOKENS, 3000, 1, 4), 1)
    long, _ = ask(up, requests(up, LONG_TOKENS, 3100, 5, 4), 1)
    ask(up, requests(up, SHORT_TOKENS, 4000, CONCURRENCY, 16), CONCURRENCY)
    many, wall_s = ask(up, requests(up, SHORT_TOKENS, 5000, 32, OUTPUT_TOKENS), CONCURRENCY)
    for answers, tokens in ((short, SHORT_TOKENS), (decode, SHORT_TOKENS), (long, LONG_TOKENS)):
        if any(answer.prompt_tokens != tokens or answer.cached_tokens for answer in answers):
            print(f"CAUTION: a prompt of {tokens} tokens had {answers[0].prompt_tokens}, {answers[0].cached_tokens} of them cached")
    return Speed(
        ttft_short_ms=sorted(ttft_ms(answer.sent_ns, answer.first_ns) for answer in short),
        decode_tok_s=sorted(1000 / tpot for tpot in per_token_ms(decode)),
        ttft_long_ms=sorted(ttft_ms(answer.sent_ns, answer.first_ns) for answer in long),
        system_tok_s=sum(answer.tokens for answer in many) / wall_s,
        pss_mib=max(json.loads(line).get("pss_mib", 0.0) for line in up.samples.read_text(encoding="utf-8").splitlines()),
    )


def bandwidth_bytes_s(python: Path) -> float:
    """Return how many bytes per second all cores together read from memory; the best of ten."""
    process = subprocess.run([str(python), "-c", READ_BANDWIDTH], capture_output=True, text=True, check=True)
    return float(process.stdout)


def read_per_token_bytes(folder: Path) -> int:
    """Return the bytes of the weights that each token reads: all but the embeddings, of which it reads a single row."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tied = "lm_head.weight" not in header
    names = [name for name in header if name != "__metadata__" and (tied or name != "model.embed_tokens.weight")]
    return sum(header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in names)


def figures(speed: Speed, first_s: float, later_s: float) -> list[float]:
    """Return the figures in the order of GOALS."""
    return [
        median(speed.ttft_short_ms),
        median(speed.decode_tok_s),
        median(speed.ttft_long_ms),
        speed.system_tok_s,
        first_s,
        later_s,
        speed.pss_mib,
    ]


def measure(settings: ServeConfig, folder: Path, name: str, bare: bool) -> tuple[Speed, float, float]:
    """Return (speed, seconds of the first start, seconds of a later one) of these settings on their own caches."""
    workspace = fresh(name)
    words = command(settings, folder, workspace, bare)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TMPDIR"] = empty  # torch keeps its precompiled headers there
        if not bare:
            rehearse(CPU_SET, workspace, workspace.root / "rehearsal.log")
        with served(settings, words, workspace) as up:
            first_s = up.ready_s
        print(f"{name}: first start {first_s:.1f} s", flush=True)
        with served(settings, words, workspace) as up:
            print(f"{name}: later start {up.ready_s:.1f} s", flush=True)
            result = speed(up)
    return result, first_s, up.ready_s


def main() -> None:
    """Run the comparison and print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-defaults", action="store_true", help="measure the profile alone")
    alone = parser.parse_args().without_defaults
    processor, quantization = host.read(), "int8"
    if "avx512_vnni" not in processor.vector:
        quantization = "none"
    print(f"{processor.cpu}, {processor.physical_cores} cores, {' '.join(processor.vector)}", flush=True)
    theirs = [None] * len(GOALS) if alone else figures(*measure(DEFAULTS, checkpoint("none"), "defaults", bare=True))
    ours, first_s, later_s = measure(profile(), checkpoint(quantization), "profile", bare=False)
    mine = figures(ours, first_s, later_s)
    print("\n| figure | vLLM's defaults | cpu profile | profile / defaults | goal |\n| --- | --- | --- | --- | --- |")
    for (name, (sign, goal)), default, value in zip(GOALS.items(), theirs, mine, strict=True):
        met = "" if goal is None else f"{sign} {goal}: {'met' if (value <= goal if sign == '≤' else value >= goal) else 'MISSED'}"
        ratio = "" if default is None else f"{value / default:.2f}"
        print(f"| {name} | {'' if default is None else f'{default:.0f}'} | {value:.0f} | {ratio} | {met} |")
    python = fresh("bandwidth").server_python
    rate, weights = bandwidth_bytes_s(python), read_per_token_bytes(checkpoint(quantization))
    limit = rate / weights
    print(f"\nmemory read at {rate / 1e9:.1f} GB/s; {weights / 1e6:.0f} MB of weights a token: limit {limit:.0f} tok/s")
    print(f"decode {median(ours.decode_tok_s):.1f} tok/s ({ours.decode_tok_s[0]:.1f}–{ours.decode_tok_s[-1]:.1f}, n = 15): ", end="")
    print(f"{median(ours.decode_tok_s) / limit:.2f} of the limit")
    for name, values in (("37", ours.ttft_short_ms), ("1049", ours.ttft_long_ms)):
        print(f"TTFT of {name} tokens: {values[0]:.1f}–{values[-1]:.1f} ms, n = {len(values)}")


if __name__ == "__main__":
    main()
