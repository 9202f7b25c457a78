"""The time until the server of a GPU set is ready, and its speed, by the handling of FlashInfer's sampler and the CUDA toolkit.

Run `./inv install` and `./inv download-model --profile gpu-embedded` first, then
`.venv/bin/python -m benchmarks.gpu_starts [--json FILE] NAME…` (2 to 6 minutes per name, on an otherwise idle machine). Each variant
is started twice on its own caches, and the second server is measured: decode at concurrency 1 and throughput at concurrency 64, both
greedy and with top_p and top_k, for which FlashInfer's sampler is used. `toolkit` is vLLM without our settings, and needs a machine
with a CUDA toolkit; run the others under `benchmarks/driver_only`, which hides the toolkit.
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
from pipeline.load.stamps import per_token_ms
from pipeline.vllm.demand import COMPILATION
from pipeline.vllm.phases import Phases
from pipeline.vllm.settle import settle

TIMEOUT_S = 300
OUTPUT_TOKENS = 128
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}


@dataclass(frozen=True)
class Variant:
    """What the server gets besides the profile; None removes a variable that we set ourselves.

    `bare`: without any of our settings that shorten the start.
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
    """Return the settings of profile gpu-embedded with the variant's changes."""
    serve = load_layers(ROOT / "config.yaml", {}, (), "gpu-embedded").config("gpu-embedded").serve
    settings = settle(serve, host.read(), "vllm")
    ours = {} if variant.bare else settings.env
    env = {name: value for name, value in {**ours, **variant.env}.items() if value is not None}
    arguments = tuple(word for word in settings.extra_args if not (variant.bare and word.startswith(COMPILATION)))
    port = 8100 + list(VARIANTS.values()).index(variant)
    return settings.model_copy(update={"env": env, "extra_args": arguments, "port": port, "gpu_memory_utilization": 0.3})


def load(up: Up, count: int, concurrency: int, **more: Any) -> tuple[list[float], float]:
    """Return (TPOT of each request in ms, tokens per second) of `count` requests."""
    payloads = [
        streamed(NAME, [{"role": "user", "content": f"{number} Tell a story."}], OUTPUT_TOKENS, ignore_eos=True, **more)
        for number in range(count)
    ]
    answers, wall_s = closed_loop(up.target, payloads, concurrency, TIMEOUT_S)
    failed = [answer.error for answer in answers if not answer.ok]
    if failed:
        raise SystemExit(f"a request failed: {failed[0]}")
    return per_token_ms(answers), sum(answer.tokens for answer in answers) / wall_s


def speed(up: Up) -> dict[str, float]:
    """Return the speed of one server, measured after a warm-up of each shape."""
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
    """Return the phases of a start, from the timestamps in its log."""
    phases, first = Phases(), None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        stamp = next((word for word in line.split() if word.count(":") == 2 and word.replace(":", "").isdigit()), None)
        if stamp is not None:
            hours, minutes, seconds = (int(part) for part in stamp.split(":"))
            at = hours * 3600 + minutes * 60 + seconds
            first = at if first is None else first
            phases.see(line, float(at - first))
    return phases.durations(ready_s)


def measure(name: str, starts: Sequence[str], log_folder: Path | None) -> dict[str, Any]:
    """Return the figures of a variant; copy its logs to `log_folder`."""
    settings = settings_of(VARIANTS[name])
    workspace = fresh(f"gpu-{name}") if "first" in starts else place(f"gpu-{name}")
    words = command(settings, checkpoint("none"), workspace, distribution="vllm")
    figures: dict[str, Any] = {"variant": name}
    for start in starts:
        with served(settings, words, workspace) as up:
            log = up.samples.with_name("server.log")
            figures |= {f"{start}_s": round(up.ready_s, 1), f"{start}_phases_s": phases_s(log, up.ready_s)}
            print(f"{time.strftime('%H:%M:%S')} {name}: {start} start {up.ready_s:.1f} s", flush=True)
            if start == "later":
                figures |= {key: round(value, 1) for key, value in speed(up).items()}
        if log_folder is not None:
            shutil.copyfile(log, log_folder / f"{name}-{start}.log")
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    """Measure the named variants and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=VARIANTS)
    parser.add_argument("--starts", nargs="+", choices=("first", "later"), default=("first", "later"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    arguments = parser.parse_args()
    if arguments.logs:
        arguments.logs.mkdir(parents=True, exist_ok=True)
    rows = [measure(name, arguments.starts, arguments.logs) for name in arguments.names]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values() if not isinstance(value, dict)) + " |")


if __name__ == "__main__":
    main()
