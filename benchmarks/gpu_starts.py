"""How soon the server of a GPU set is ready, and how fast it then is, by how FlashInfer's sampler and the toolkit are dealt with.

`./inv install` and `./inv download-model --profile gpu-embedded` first, then
`.venv/bin/python -m benchmarks.gpu_starts [--json FILE] NAME…` (2 to 6 minutes a name, nothing beside it). Each variant is
started twice on caches of its own; the second server is measured: decode alone, throughput at concurrency 64, greedy and
with top_p and top_k, which is where FlashInfer's sampler computes. `toolkit` is vLLM as it comes, and needs a machine with
a CUDA toolkit; the others are for `benchmarks/driver_only`, which hides it.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.served import NAME, ROOT, Up, checkpoint, command, fresh, place, served
from pipeline.client.payloads import streamed
from pipeline.config.layers import load_layers
from pipeline.config.schema import ServeConfig
from pipeline.gpu import host
from pipeline.load.generator import closed_loop
from pipeline.measure.latency import tpot_ms
from pipeline.vllm.demand import COMPILATION
from pipeline.vllm.phases import Phases
from pipeline.vllm.settle import settle

TIMEOUT_S = 300
OUTPUT_TOKENS = 128
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


@dataclass(frozen=True)
class Variant:
    """What the server is started with beside the profile; None takes a variable away that we set ourselves.

    `bare`: with nothing of ours that spares time at the start.
    """

    env: dict[str, str | None] = field(default_factory=dict)
    bare: bool = False


VARIANTS = {
    "toolkit": Variant(bare=True),
    "ours": Variant(),
    "compiled": Variant({"VLLM_USE_FLASHINFER_SAMPLER": None}),
    "hidden": Variant({"CUDA_HOME": "/nonexistent"}),
    "spawn": Variant({"VLLM_WORKER_MULTIPROC_METHOD": None}),
    "no-startup-plan": Variant({"VLLM_ENABLE_STARTUP_PLAN": None}),
    "no-aot": Variant({"VLLM_USE_AOT_COMPILE": "0"}),
}


def settings_of(variant: Variant) -> ServeConfig:
    """Return the settings of profile gpu-embedded with what the variant changes."""
    serve = load_layers(ROOT / "config.yaml", {}, (), "gpu-embedded").config("gpu-embedded").serve
    made = settle(serve, host.read(), "vllm")
    ours = {} if variant.bare else made.env
    env = {name: value for name, value in {**ours, **variant.env}.items() if value is not None}
    arguments = tuple(word for word in made.extra_args if not (variant.bare and word.startswith(COMPILATION)))
    port = 8100 + list(VARIANTS.values()).index(variant)
    return made.model_copy(update={"env": env, "extra_args": arguments, "port": port, "gpu_memory_utilization": 0.3})


def load(up: Up, count: int, concurrency: int, **more: Any) -> tuple[list[float], float]:
    """Return (TPOT of each request in ms, tokens per second) of that many requests."""
    payloads = [
        streamed(NAME, [{"role": "user", "content": f"{number} Tell a story."}], OUTPUT_TOKENS, ignore_eos=True, **more)
        for number in range(count)
    ]
    answers, wall_s = closed_loop(up.target, payloads, concurrency, TIMEOUT_S)
    failed = [answer.error for answer in answers if not answer.ok]
    if failed:
        raise SystemExit(f"a request failed: {failed[0]}")
    return [tpot_ms(answer.first_ns, answer.last_ns, answer.tokens) for answer in answers], sum(
        answer.tokens for answer in answers
    ) / wall_s


def speed(up: Up) -> dict[str, float]:
    """Measure one server after a warm-up of each shape."""
    for more in ({}, SAMPLED):
        load(up, 128, 64, **more)
    alone, _ = load(up, 30, 1)
    alone_sampled, _ = load(up, 30, 1, **SAMPLED)
    _, greedy_tok_s = load(up, 512, 64)
    _, sampled_tok_s = load(up, 512, 64, **SAMPLED)
    return {
        "decode_tok_s": 1000 / median(alone),
        "decode_sampled_tok_s": 1000 / median(alone_sampled),
        "throughput_tok_s": greedy_tok_s,
        "throughput_sampled_tok_s": sampled_tok_s,
    }


def phases_s(log: Path, ready_s: float) -> dict[str, float]:
    """Return the phases of a start from the times that its log's lines bear."""
    phases, first = Phases(), None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        stamp = next((word for word in line.split() if word.count(":") == 2 and word.replace(":", "").isdigit()), None)
        if stamp is not None:
            hours, minutes, seconds = (int(part) for part in stamp.split(":"))
            at = hours * 3600 + minutes * 60 + seconds
            first = at if first is None else first
            phases.see(line, float(at - first))
    return phases.durations(ready_s)


def measure(name: str, starts: Sequence[str], kept: Path | None) -> dict[str, Any]:
    """Return the figures of a variant; its logs go to the folder `kept`."""
    settings = settings_of(VARIANTS[name])
    workspace = fresh(f"gpu-{name}") if "first" in starts else place(f"gpu-{name}")
    words = command(settings, checkpoint("none"), workspace, distribution="vllm")
    found: dict[str, Any] = {"variant": name}
    for start in starts:
        with served(settings, words, workspace) as up:
            log = up.samples.with_name("server.log")
            found |= {f"{start}_s": round(up.ready_s, 1), f"{start}_phases_s": phases_s(log, up.ready_s)}
            print(f"{time.strftime('%H:%M:%S')} {name}: {start} start {up.ready_s:.1f} s", flush=True)
            if start == "later":
                found |= {key: round(value, 1) for key, value in speed(up).items()}
        if kept is not None:
            shutil.copyfile(log, kept / f"{name}-{start}.log")
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure the variants that are named, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=VARIANTS)
    parser.add_argument("--starts", nargs="+", choices=("first", "later"), default=("first", "later"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    asked = parser.parse_args()
    if asked.logs:
        asked.logs.mkdir(parents=True, exist_ok=True)
    rows = [measure(name, asked.starts, asked.logs) for name in asked.names]
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values() if not isinstance(value, dict)) + " |")


if __name__ == "__main__":
    main()
