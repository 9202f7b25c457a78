"""How often `compare` calls one of two runs of the same thing worse (A/A), and how often it finds that a server became slower.

`.venv/bin/python -m benchmarks.aa [--pairs 1000] [--deviation 2 10]` SIMULATES pairs of runs of one server and compares them as
`./inv compare` does, from kept folders with stamps. Each start moves TTFT, TPOT and the router's latency by lognormal factors of
their own; each figure's standard deviation is drawn between those two percentages. Within a run the requests are lognormal, and one
in twenty takes longer by a Pareto factor. The figures with gates in config.yaml decide. Each pair is compared with the noise of 5
starts, and without any. A pair in which B takes 1.25 times as long shows how often a fall of 20 % in speed is found.

`.venv/bin/python -m benchmarks.aa --real N` runs the embedded model 2 N times by `./inv all`, 90 s each, with a server of its own each
time, after `./inv calibrate-noise --starts 5`, and counts in how many of the N pairs the second run is worse. It takes hours.
"""

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.client.answer import Answer
from pipeline.config.layers import load_layers
from pipeline.load.stamps import ALONE, COLD, compressed, first_ms, per_token_ms, raw_line
from pipeline.measure.comparison import spread
from pipeline.measure.directions import direction_of
from pipeline.measure.figures import Figure
from pipeline.measure.latency import NS_PER_MS
from pipeline.measure.statistics import percentile_figure, share_figure, wilson
from pipeline.measure.verdicts import Judgement
from pipeline.report.gates import JudgedGate
from pipeline.report.noise import FigureNoise, RunNoise
from pipeline.runs.compare import compare
from pipeline.runs.kept import Run
from tests.builders.documents import document

ROOT = Path(__file__).resolve().parents[1]
STARTS = 5
SLOWER = 1.25
MOST_WORSE = 0.05
TTFT_MS, TPOT_MS, ROUTER_MS, TOKENS = 40.0, 13.0, 900.0, 128
COLD_REQUESTS, DECODE_REQUESTS, CASES, PROMPTS = 100, 30, 120, 32
ARMS = ("identical", "tarr", "d3_identical", "constrained_identical", "constrained_d3_identical")
PEAK_MIB, RANGE_MIB = 3000.0, 15.0
OUTLIERS = 0.05


@dataclass(frozen=True)
class Deviations:
    """How far starts move each figure: the standard deviations of logarithms."""

    ttft: float
    tpot: float
    router: float
    memory: float = 0.02


@dataclass(frozen=True)
class Start:
    """What one start gives: the answers of `bench`, the router's lines, and the figures made of them."""

    cold: list[Answer]
    decode: list[Answer]
    cases: list[dict[str, Any]]
    figures: dict[str, Figure]


def wobble(source: random.Random) -> float:
    """Return what a single request is slower or faster by: lognormal, with a heavy tail."""
    return source.lognormvariate(0, 0.05) * (source.paretovariate(1.5) if source.random() < OUTLIERS else 1)


def answer(first_ms_: float, token_ms: float, tokens: int) -> Answer:
    """Return an answer of that TTFT and TPOT."""
    first = int(first_ms_ * NS_PER_MS)
    last = first + int(token_ms * (tokens - 1) * NS_PER_MS)
    stamps = [first, last][: min(tokens, 2)]
    return Answer(
        sent_ns=0, scheduled_ns=0, first_byte_ns=first, first_ns=first, last_ns=stamps[-1], chunk_ns=stamps, tokens=tokens, prompt_tokens=37
    )


def started(source: random.Random, moves: Deviations, slower: float = 1.0) -> Start:
    """Return what a start of the server measures; `slower`: its times by this factor."""
    ttft, tpot, router = (slower * source.lognormvariate(0, deviation) for deviation in (moves.ttft, moves.tpot, moves.router))
    cold = [answer(TTFT_MS * ttft * wobble(source), 0, 1) for _ in range(COLD_REQUESTS)]
    decode = [answer(TTFT_MS * ttft * wobble(source), TPOT_MS * tpot * wobble(source), TOKENS) for _ in range(DECODE_REQUESTS)]
    lengths = random.Random(7)  # the suite's answers are as long in each run
    cases: list[dict[str, Any]] = [
        {
            "arm": "constrained",
            "case": f"c{number}",
            "failure": "truncated" if source.random() < 0.03 else None,
            "route_right": lengths.random() < 0.8 if source.random() < 0.9 else source.random() < 0.8,
            "error": "",
            "chunk_ns": [NS_PER_MS, int(ROUTER_MS * router * lengths.lognormvariate(0, 0.4) * wobble(source) * NS_PER_MS)],
        }
        for number in range(CASES)
    ]
    right = share_figure(sum(case["route_right"] for case in cases), CASES)
    # In each arm of determinism a prompt in twenty parts now and then.
    agreement = {f"test-determinism.{arm}": share_figure(sum(source.random() > 0.05 for _ in range(PROMPTS)), PROMPTS) for arm in ARMS}
    figures = {
        "bench.answered": share_figure(400, 400),
        "bench.ttft_ms_p95": percentile_figure(first_ms(cold), 0.95, "ms"),
        "bench.decode_tok_s_p50": percentile_figure([1000 / value for value in per_token_ms(decode)], 0.5, "tok/s"),
        "test-router.constrained_latency_ms_p50": percentile_figure([case["chunk_ns"][-1] / NS_PER_MS for case in cases], 0.5, "ms"),
        "test-router.constrained_schema_valid": share_figure(sum(case["failure"] is None for case in cases), CASES),
        "test-router.constrained_route_accuracy": right,
        "test-router.constrained_route_gain_points": right.model_copy(update={"unit": "points"}),
        **agreement,
        "measure-vram.vram_peak_mib": Figure(value=PEAK_MIB * source.lognormvariate(0, moves.memory), unit="MiB", n=900),
        "measure-vram.vram_stable": Figure(value=100, unit="%", n=300),
        "measure-vram.host_pss_peak_mib": Figure(value=PEAK_MIB * source.lognormvariate(0, moves.memory), unit="MiB", n=900),
        "measure-vram.host_rss_range_mib": Figure(value=source.expovariate(1 / RANGE_MIB), unit="MiB", n=900),
    }
    return Start(cold, decode, cases, figures)


def gates() -> tuple[JudgedGate, ...]:
    """Return the gates of config.yaml, without verdicts."""
    defined = load_layers(ROOT / "config.yaml", {}).config("cpu").gates.root
    return tuple(JudgedGate(name, gate, None, Judgement("NOT_MEASURED", "")) for name, gate in defined.items())


def kept(start: Start, name: str, folder: Path, asked: tuple[JudgedGate, ...]) -> Run:
    """Return the start as a kept run with its stamps."""
    stamps = [raw_line(phase, each, 0) for phase, answers in ((COLD, start.cold), (ALONE, start.decode)) for each in answers]
    raw = folder / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "bench.jsonl.gz").write_bytes(compressed(stamps))
    (raw / "test-router.jsonl").write_text("\n".join(map(json.dumps, start.cases)), encoding="utf-8")
    return Run(name, document(start.figures, asked), folder / name)


def calibration(starts: Sequence[Start]) -> RunNoise:
    """Return the noise of these starts, of the figures that `calibrate-noise` measures."""
    facts = document().environment
    figures = {}
    for metric in starts[0].figures:
        entry, values = direction_of(metric), [value for start in starts if (value := start.figures[metric].value) is not None]
        found = spread(values) if entry and entry.kind and entry.kind.noise and not metric.startswith("measure-vram") else None
        if found is not None:
            unit = starts[0].figures[metric].unit
            figures[metric] = FigureNoise(
                unit=unit, n=found.n, values=values, relative_range=found.relative_range, variation=found.variation
            )
    where = {"device": facts.device, "model": facts.model, "vllm": facts.vllm}
    return RunNoise.model_validate({**where, "starts": len(starts), "simulated": False, "figures": figures})


WAYS: Mapping[str, Callable[[RunNoise], RunNoise | None]] = {
    "noise assumed": lambda _noise: None,
    f"noise of {STARTS} starts": lambda noise: noise,
}


def worse(pairs: int, deviations: tuple[float, float], slower: float, only: Sequence[str] = (), seed: int = 1) -> dict[str, int]:
    """Return by where the noise is from in how many of the simulated pairs B is worse; `slower` is how many times as long it takes."""
    source, asked, found = random.Random(seed), gates(), dict.fromkeys(WAYS, 0)
    with tempfile.TemporaryDirectory() as made:
        for _ in range(pairs):
            moves = Deviations(*(source.uniform(*deviations) for _ in range(3)))
            a, b = kept(started(source, moves), "a", Path(made), asked), kept(started(source, moves, slower), "b", Path(made), asked)
            noise = calibration([started(source, moves) for _ in range(STARTS)])
            for way, chosen in WAYS.items():
                found[way] += compare(a, b, chosen(noise), anyway=False, figures=only).exit_code == 1
    return found


def said(what: str, count: int, n: int, limit: float | None = None) -> str:
    """Return a share with its Wilson interval, and whether it keeps the limit."""
    low, high = wilson(count, n)
    kept_to = "" if limit is None else f"; limit {100 * limit:g} %: {'met' if count / n <= limit else 'MISSED'}"
    return f"{what}: {count} of {n} worse, {100 * count / n:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f}){kept_to}"


def inv(*words: str) -> tuple[int, dict[str, Any]]:
    """Run a command of the project; return its exit code and what it printed as JSON."""
    done = subprocess.run([ROOT / "inv", *words, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return done.returncode, json.loads(done.stdout)


def real(pairs: int) -> int:
    """Measure so many pairs of runs of the embedded model; return in how many the second was worse."""
    settings = ("--profile", "cpu", "--set", "report.output=.cache/benchmarks/aa/REPORT.md", "--set", f"runs.keep={2 * pairs + 20}")
    inv("calibrate-noise", "--profile", "cpu", "--starts", str(STARTS))
    found = 0
    for number in range(1, pairs + 1):
        folders = [inv("all", "--force", *settings)[1]["kept"] for _ in range(2)]
        code, compared = inv("compare", *folders)
        if code == 2:
            raise SystemExit(f"pair {number} could not be compared: {folders}")
        found += code
        names = [row["metric"] for row in compared["figures"] if row["decides"] and row["compared"]["verdict"] == "worse"]
        print(f"pair {number} of {pairs}: {'worse in ' + ', '.join(names) if code else 'not worse'}", flush=True)
    return found


def main() -> None:
    """Simulate or measure, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--deviation", type=float, nargs=2, default=(2, 10), metavar=("LEAST", "MOST"))
    parser.add_argument("--real", type=int, metavar="N")
    chosen = parser.parse_args()
    if chosen.real:
        print(said("A/A, measured", real(chosen.real), chosen.real, MOST_WORSE))
        return
    least, most = (percent / 100 for percent in chosen.deviation)
    print(f"SIMULATED: starts move figures by {100 * least:g} to {100 * most:g} % (standard deviation)")
    for what, slower, only in (
        ("A/A, gates decide", 1.0, ()),
        ("20 % slower, gates decide", SLOWER, ()),
        ("20 % slower, decode alone decides", SLOWER, ("bench.decode_tok_s_p50",)),
    ):
        for way, count in worse(chosen.pairs, (least, most), slower, only).items():
            print(said(f"{what}, {way}", count, chosen.pairs, MOST_WORSE if slower == 1 else None), flush=True)


if __name__ == "__main__":
    main()
