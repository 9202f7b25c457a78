"""Each row of gpu.auto on this GPU: its model's shape with random weights, under the budget of that row's card, planned and measured.

`python -m benchmarks.cards [--json FILE] [PROFILE ...]` serves the named rows, or all, through the pipeline's own stages (with the
environment installed and nothing else on the GPU), sends a few dozen requests to each server and prints a line per row. The share
of this GPU equals the memory of the row's card, and the largest batch is what vLLM takes on that card. Weights, KV cache and peak
are shown with the error of the plan in percent (+: planned too high); "within" means that KV cache and peak are within the error
that the plan states. The memory of another card's context, and the card's speed, cannot be measured here.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from benchmarks import shape
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.commands.session import Session, locked, options
from pipeline.errors import PipelineError
from pipeline.load.generator import closed_loop
from pipeline.measure.memory import baseline_mib, gpu_points
from pipeline.server import state
from pipeline.server.stop import stop_server
from pipeline.stages.check_gpu import Machine
from pipeline.stages.measure_vram import read_samples
from pipeline.stages.serve import Server
from pipeline.vllm.breakdown import breakdown
from pipeline.vllm.plan import DEFAULT_BATCHED_TOKENS, LARGE_GPU_MIB, PEAK_ERROR_MIB, Plan

ROOT = Path(__file__).resolve().parents[1]
# The smallest common card of each row, by what nvidia-smi shows: RTX 4050 Laptop, RTX 4060, RTX 3060, T4, A10, A40, H100.
CARDS = {
    "rtx4050-6gb": 6141.0,
    "gpu-8gb": 8188.0,
    "gpu-12gb": 12282.0,
    "gpu-16gb": 15360.0,
    "gpu-24gb": 23028.0,
    "gpu-48gb": 46068.0,
    "gpu-80gb": 81559.0,
}
REQUESTS, CONCURRENCY, OUTPUT_TOKENS, TIMEOUT_S = 48, 16, 64, 60.0
HEADER = ("profile", "repository", "budget", "weights", "KV cache", "KV tokens", "peak", "ready (s)", "verdict")
WIDTHS = (12, 30, 7, 22, 22, 24, 22, 9)


class Row(BaseModel):
    """The result of a row: plan and measurement in MiB, or why there is none."""

    profile: str
    repository: str
    card_mib: float
    utilization: float
    plan: Plan | None = None
    weights_mib: float | None = None
    kv_cache_mib: float | None = None
    kv_tokens: int | None = None
    peak_mib: float | None = None
    method: str = ""
    ready_s: float | None = None
    requests: int = 0
    failed: int = 0
    verdict: str


def settings(session: Session, name: str, total_mib: float) -> tuple[str, float, list[str]]:
    """Return (repository, share of this GPU, settings as --set takes them) for the row on a GPU of `total_mib`."""
    serve, model = session.layers.config(name).serve, session.layers.config(name).model
    repo, card_mib = str(model.repo), CARDS[name]
    share = round((serve.gpu_memory_utilization or 0) * card_mib / total_mib, 6)
    sets = {
        "model.source": "path",
        "model.path": str(shape.folder_of(repo, session.workspace.models)),
        "serve.load_format": "dummy",
        "serve.gpu_memory_utilization": share,
        "serve.on_oom": "fail",  # smaller settings would be another row
        "serve.force_start": "true",
        **({"serve.max_num_batched_tokens": DEFAULT_BATCHED_TOKENS} if card_mib < LARGE_GPU_MIB else {}),
    }
    return repo, share, [f"{key}={value}" for key, value in sets.items()]


def total_of_this_gpu(root: Path) -> float:
    """Return the memory of the first GPU in MiB; download the embedded model if its tokenizer, which the shapes use, is missing."""
    session = Session(root, options(profile="gpu-embedded"))
    stages = ["check-gpu"] if (session.workspace.models / shape.SOURCE / "tokenizer.json").is_file() else ["download-model"]
    session.pipeline.ensure(stages)
    machine: Machine | None = session.pipeline.outcome(Machine).data
    if machine is None or not machine.gpus:
        raise SystemExit(f"no GPU to measure on: {machine.reason if machine else 'check-gpu failed'}")
    return machine.gpus[0].total_mib


@contextmanager
def stop_afterwards(session: Session) -> Iterator[None]:
    """Stop any server after the block."""
    try:
        yield
    finally:
        launch = state.read(session.workspace)
        if launch is not None:
            stop_server(launch, session.workspace)


def measured(root: Path, name: str, total_mib: float) -> Row:
    """Serve a row and return its result."""
    repo, share, sets = settings(Session(root, options(), silent=True), name, total_mib)
    row = Row(profile=name, repository=repo, card_mib=CARDS[name], utilization=share, verdict="")
    if CARDS[name] > total_mib:
        return row.model_copy(update={"verdict": f"left out: this GPU has {total_mib:.0f} MiB"})
    session = Session(root, options(profile=name, set=sets))
    shape.make(repo, session.workspace.models)
    with stop_afterwards(session):
        session.pipeline.ensure(["serve"], force=["serve"])
        outcome = session.pipeline.outcome(Server)
        if outcome.data is None:
            why = outcome.failure.message if outcome.failure else "serve never ran"
            return row.model_copy(update={"verdict": f"failed: {why}"})
        server = outcome.data
        payloads = [
            streamed(server.model, [{"role": "user", "content": f"Tell story number {number}."}], OUTPUT_TOKENS, ignore_eos=True)
            for number in range(REQUESTS)
        ]
        answers, _ = closed_loop(Endpoint(server.handle.base_url), payloads, CONCURRENCY, TIMEOUT_S)
        time.sleep(1.0)  # the sampler takes five samples a second
        samples = list(read_samples(session.workspace.root / server.handle.samples))
        memory = breakdown((session.workspace.root / server.handle.log).read_text(encoding="utf-8", errors="replace"))
    method, points = gpu_points(samples, baseline_mib(samples))
    result = row.model_copy(
        update={
            "plan": server.plan,
            "weights_mib": memory.weights_mib,
            "kv_cache_mib": memory.kv_cache_mib,
            "kv_tokens": memory.kv_tokens,
            "peak_mib": max((mib for _, mib in points), default=None),
            "method": method,
            "ready_s": server.handle.ready_s,
            "requests": len(answers),
            "failed": sum(not answer.ok for answer in answers),
        }
    )
    return result.model_copy(update={"verdict": verdict(result)})


def verdict(row: Row) -> str:
    """Return whether KV cache and peak are within the plan's error, and which are not."""
    if row.failed or not row.requests:
        return f"failed: {row.failed} of {row.requests} requests"
    if row.plan is None:
        return "failed: nothing was planned"
    checks = (
        ("KV cache", row.plan.kv_cache_mib, row.kv_cache_mib, row.plan.error_mib),
        ("peak", row.plan.peak_mib, row.peak_mib, PEAK_ERROR_MIB),
    )
    deviations = [f"{what} not measured" for what, _, measured_mib, _ in checks if measured_mib is None]
    deviations += [
        f"{what} came {measured_mib - planned_mib:+.0f} MiB (±{error:.0f})"
        for what, planned_mib, measured_mib, error in checks
        if measured_mib is not None and abs(measured_mib - planned_mib) > error
    ]
    return "within" if not deviations else f"NOT within: {', '.join(deviations)}"


def against(planned: float | None, actual: float | None) -> str:
    """Return both values, and by how many percent the plan was too high."""
    if planned is None or actual is None:
        return f"{'?' if planned is None else f'{planned:.0f}'} / {'?' if actual is None else f'{actual:.0f}'}"
    return f"{planned:.0f} / {actual:.0f}" + (f" ({100 * (planned / actual - 1):+.1f} %)" if actual else "")


def cells(row: Row) -> tuple[str, ...]:
    """Return the row's cells: planned / measured."""
    plan = row.plan
    planned = (plan.weights_mib, plan.kv_cache_mib, plan.kv_tokens, plan.peak_mib) if plan else (None,) * 4
    actual = (row.weights_mib, row.kv_cache_mib, row.kv_tokens, row.peak_mib)
    compared = [against(*pair) for pair in zip(planned, actual, strict=True)]
    ready = "" if row.ready_s is None else f"{row.ready_s:.1f}"
    return (row.profile, row.repository.partition("/")[2], f"{plan.budget_mib:.0f}" if plan else "", *compared, ready, row.verdict)


def line(texts: tuple[str, ...]) -> str:
    """Return the cells padded to the columns' widths."""
    return "  ".join([*(text.ljust(width) for text, width in zip(texts, WIDTHS, strict=False)), texts[-1]])


def run(root: Path, names: list[str], file: Path | None, say: Callable[[str], None]) -> list[Row]:
    """Measure the rows one after the other, whatever becomes of each; print and save each result, and print all at the end."""
    with locked(Session(root, options(), silent=True).workspace):
        total_mib = total_of_this_gpu(root)
        rows = []
        for number, name in enumerate(names, start=1):
            say(f"[{number}/{len(names)}] {name}: a card of {CARDS[name]:.0f} MiB on a GPU of {total_mib:.0f}")
            try:
                rows.append(measured(root, name, total_mib))
            except (Exception, SystemExit) as error:  # a failed row must not stop the others
                message = error.message if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
                rows.append(Row(profile=name, repository="", card_mib=CARDS[name], utilization=0, verdict=f"failed: {message}"))
            say(line(HEADER) + "\n" + line(cells(rows[-1])))
            if file is not None:
                file.write_text(json.dumps([row.model_dump(mode="json") for row in rows], indent=1) + "\n", encoding="utf-8")
    say("\nplanned / measured, MiB\n" + "\n".join(line(texts) for texts in (HEADER, *(cells(row) for row in rows))))
    return rows


def main(words: list[str]) -> int:
    """Return 0 if every row is within the plan's error, else 1."""
    parser = argparse.ArgumentParser(prog="benchmarks.cards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=f"of {', '.join(CARDS)}; all of them where none is named")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.profiles if name not in CARDS]
    if unknown:
        parser.error(f"no row {unknown[0]}; rows: {', '.join(CARDS)}")
    rows = run(
        ROOT, arguments.profiles or list(CARDS), Path(arguments.json) if arguments.json else None, lambda text: print(text, flush=True)
    )
    return 0 if all(row.verdict == "within" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
