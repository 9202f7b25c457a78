"""compare: two runs figure by figure, from the raw stamps where both runs have them, with a verdict on each figure."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.client.answer import Answer
from pipeline.config.layers import nearest
from pipeline.errors import PipelineError
from pipeline.load.stamps import TIMES, Values, raw_answer
from pipeline.measure.comparison import (
    ONE_SIDED,
    TWO_SIDED,
    Compared,
    Estimate,
    Noise,
    Pair,
    assumed_noise,
    by_bounds,
    by_pairs,
    by_samples,
    holm,
    measured_noise,
)
from pipeline.measure.comparison import exit_code as exit_code_of
from pipeline.measure.directions import Direction, direction_of
from pipeline.measure.figures import Figure
from pipeline.measure.latency import NS_PER_MS, e2e_ms, ttft_ms
from pipeline.measure.statistics import quantile
from pipeline.measure.verdicts import digits
from pipeline.report.drawing.ratios import Ratio, ratios
from pipeline.report.formats.document import ReportedFigure
from pipeline.report.noise import RunNoise, noise_in
from pipeline.runs.kept import Run
from pipeline.terminal import OutputPart, TextTable

MUST_AGREE = ("device", "model", "vllm")
# How far the rates of two open loops may be apart. At 0.6 of what a single queue can take, latency moves 1.5 times as far as the rate
# (M/M/1: ρ / (1 − ρ)), so this moves it by 7.5 %, which is less than starts do.
RATE_APART = 0.05
PERCENTILE = re.compile(r"_p(\d\d)$")
OPEN_LOOP = re.compile(r"bench\.(poisson|constant)_")
FROM_SCHEDULED: dict[str, Values] = {
    "ttft_ms": lambda answers: [ttft_ms(answer.scheduled_ns, answer.first_ns) for answer in answers if answer.ok],
    "e2e_ms": lambda answers: [e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in answers if answer.ok],
}
CORRECT: dict[str, Callable[[Mapping[str, Any]], bool | None]] = {
    "schema_valid": lambda line: line["failure"] is None,
    "route_accuracy": lambda line: line.get("route_right"),
    "joint_accuracy": lambda line: line.get("all_right"),
}


@dataclass(frozen=True)
class FigurePair:
    """One figure of both runs, its verdict, the noise between starts if any, and whether the exit code depends on it."""

    metric: str
    unit: str
    a: float | None
    b: float | None
    compared: Compared
    noise: Noise | None
    decides: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs, the facts in which they should agree but differ, the stages whose settings one does not tell, and each figure."""

    a: Run
    b: Run
    unlike: list[str]
    untold: list[str]
    rows: list[FigurePair]

    @property
    def exit_code(self) -> int:
        """Return 1 where a figure that decides is worse, 2 where none of them could be compared, else 0."""
        return exit_code_of([row.compared.verdict for row in self.rows if row.decides])


class Raw:
    """The raw stamps and answers of a run; empty where the files are missing or unreadable."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder / "raw" if folder else None

    @cached_property
    def phases(self) -> dict[str, list[Answer]]:
        """Return the answers of `bench` by phase."""
        phases: dict[str, list[Answer]] = {}
        for line in self._lines("bench.jsonl.gz"):
            phases.setdefault(line["phase"].rpartition(" ")[0] if line["phase"].endswith("/s") else line["phase"], []).append(
                raw_answer(line)
            )
        return phases

    @cached_property
    def arms(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the answers of `test-router` by arm and case."""
        arms: dict[str, dict[str, dict[str, Any]]] = {}
        for line in self._lines("test-router.jsonl"):
            arms.setdefault(line["arm"], {})[line["case"]] = line
        return arms

    def samples(self, metric: str) -> list[float]:
        """Return the values behind a percentile figure; empty where they are unknown."""
        stage, _, name = metric.partition(".")
        base = PERCENTILE.sub("", name)
        if stage == "bench":
            arrival, _, rest = base.partition("_")
            phase, values = (arrival, FROM_SCHEDULED.get(rest)) if arrival in ("poisson", "constant") else TIMES.get(base, ("", None))
            return values(self.phases.get(phase, [])) if values else []
        for arm, lines in self.arms.items():
            position = {f"{arm}_ttft_ms": 0, f"{arm}_latency_ms": -1}.get(base)
            if stage == "test-router" and position is not None:
                return [line["chunk_ns"][position] / NS_PER_MS for line in lines.values() if line["chunk_ns"] and not line["error"]]
        return []

    def correct_cases(self, metric: str) -> dict[str, bool]:
        """Return whether each case counts towards the figure, which is a share; empty where that is unknown."""
        stage, _, name = metric.partition(".")
        for arm, lines in self.arms.items():
            is_correct = CORRECT.get(name.removeprefix(f"{arm}_"))
            if stage == "test-router" and is_correct is not None and name.startswith(arm):
                cases = {case: is_correct(line) for case, line in lines.items()}
                return {case: correct for case, correct in cases.items() if correct is not None}
        return {}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        if self.folder is None:
            return []
        path = self.folder / name
        try:
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            return [json.loads(line) for line in text.splitlines()]
        except (OSError, EOFError, zlib.error, ValueError):
            return []


def compare(a: Run, b: Run, run_noise: RunNoise | None, anyway: bool, figures: Sequence[str] = ()) -> Comparison:
    """Compare B with A, where `figures` decide; raise PipelineError if device, model or vLLM differ, unless `anyway`."""
    first, second = a.document.environment.model_dump(), b.document.environment.model_dump()
    unlike = [f"{fact} ({first[fact]} against {second[fact]})" for fact in MUST_AGREE if first[fact] != second[fact]]
    if unlike and not anyway:
        raise PipelineError(f"{a.name} and {b.name} differ in {', '.join(unlike)}", "compare them all the same with --anyway")
    raw, decide = (Raw(a.folder), Raw(b.folder)), deciding(figures, (a, b))
    metrics = dict.fromkeys(figure.metric for run in (a, b) for figure in run.document.figures)
    pairs = {metric: figure_pair(metric, a, b, raw, run_noise, anyway) for metric in metrics}
    able = {metric: pair for metric, pair in pairs.items() if isinstance(pair, Pair)}
    corrected = holm({metric: pair.p for metric, pair in able.items() if metric in decide and pair.can_differ and pair.p is not None})
    rows = []
    for metric, pair in pairs.items():
        one, other = a.document.figure(metric), b.document.figure(metric)
        compared = pair.verdict(corrected.get(metric, pair.p)) if isinstance(pair, Pair) else Compared("not comparable", None, pair)
        values = (one.value if one else None, other.value if other else None)
        unit = next(figure.unit for figure in (one, other) if figure)
        rows.append(FigurePair(metric, unit, *values, compared, pair.noise if isinstance(pair, Pair) else None, metric in decide))
    return Comparison(a, b, unlike, untold(a, b), rows)


def deciding(figures: Sequence[str], runs: Sequence[Run]) -> set[str]:
    """Return the figures that the exit code depends on: these, else those with gates; PipelineError for one that cannot decide."""
    known = {figure.metric: direction_of(figure.metric) for run in runs for figure in run.document.figures}
    for name in figures:
        if name not in known:
            raise PipelineError(
                f"neither run has a figure {name!r}{nearest(name, known)}",
                "`./inv compare` without --only and compare.figures shows all of them",
            )
        if (entry := known[name]) is None or entry.better is None:
            raise PipelineError(f"{name} cannot decide: {no_direction(entry)}", "choose figures of which one direction is better")
    gated = {gate.metric for run in runs for gate in run.document.gates}
    return {name for name in figures or gated if (entry := known.get(name)) is not None and entry.better is not None}


def no_direction(entry: Direction | None) -> str:
    """Return why neither direction of a figure is better."""
    return f"neither direction is better: {entry.why}" if entry else "nobody has listed which direction is better"


def settings_of(run: Run, name: str) -> dict[str, Any]:
    """Return the settings of the stage's measurement."""
    return next((stage.settings for stage in run.document.stages if stage.stage == name), {})


def untold(a: Run, b: Run) -> list[str]:
    """Return the stages of whose figures a run does not tell the settings, as one from before 2026-11-27 does not of `bench`."""
    lacking = set()
    for figure in (*a.document.figures, *b.document.figures):
        entry = direction_of(figure.metric)
        sections = {place.partition(".")[0] for place in entry.under} if entry else set()
        if any(sections - settings_of(run, figure.stage).keys() for run in (a, b)):
            lacking.add(figure.stage)
    return sorted(lacking)


def other_load(metric: str, under: Sequence[str], a: Run, b: Run) -> str:
    """Return what was asked of the server otherwise in B, so that the figure means something else; empty where nothing was."""
    stage = metric.partition(".")[0]
    first, second = settings_of(a, stage), settings_of(b, stage)
    reasons = [
        f"{key.partition(' file ')[2]} has changed" for key in first if " file " in key and first[key] != second.get(key, first[key])
    ]
    for place in under:
        section, _, name = place.partition(".")
        one, other = first.get(section, {}), second.get(section, {})
        if not name and one and other and one != other:
            reasons.append(f"other {section}")
        elif name in one.keys() & other.keys() and one[name] != other[name]:
            reasons.append(f"{place} {one[name]} against {other[name]}")
    if loop := OPEN_LOOP.match(metric):
        reasons += other_rate(*(run.document.figure(f"bench.{loop[1]}_rate_req_s") for run in (a, b)))
    return "; ".join(reasons)


def other_rate(a: ReportedFigure | None, b: ReportedFigure | None) -> list[str]:
    """Return that two open loops offered other rates, or that a run from before 2026-11-27 does not tell its own."""
    if a is None or b is None or not a.value or not b.value:
        return ["the rate that was offered is not on record"]
    apart = max(a.value, b.value) / min(a.value, b.value) > 1 + RATE_APART
    said = f"offered {digits(a.value)} against {digits(b.value)} requests/s: measure B again with"
    return [f"{said} --set bench.open_rate_req_s={digits(a.value)}"] if apart else []


def figure_pair(metric: str, a: Run, b: Run, raw: tuple[Raw, Raw], run_noise: RunNoise | None, anyway: bool) -> Pair | str:
    """Return a figure of both runs that can be compared, or why it cannot."""
    first, second, entry = a.document.figure(metric), b.document.figure(metric), direction_of(metric)
    if entry is None or entry.better is None or entry.kind is None:
        return no_direction(entry)
    trouble = not_comparable(first, second) or ("" if anyway else other_load(metric, entry.under, a, b))
    if trouble or first is None or second is None or first.value is None or second.value is None:
        return trouble
    deviate = ONE_SIDED if PERCENTILE.search(metric) else TWO_SIDED  # of percentile_figure, and of the others
    estimate = (
        estimate_by_pairs(first, second, raw) or estimate_by_samples(first, second, raw) or by_bounds(plain(first), plain(second), deviate)
    )
    if estimate is None:
        return "no bounds, or no ratio of these values"
    measured = run_noise.figures.get(metric) if run_noise else None
    noise = (measured_noise(measured.values, entry.kind) if measured else None) or assumed_noise(entry.kind)
    return Pair(first.value, second.value, entry.better, entry.kind, estimate, noise)


def not_comparable(a: ReportedFigure | None, b: ReportedFigure | None) -> str:
    """Return why two figures cannot be compared, whatever their values; empty if they can."""
    if a is None or b is None:
        return f"not in {'A' if a is None else 'B'}"
    for name, figure in (("A", a), ("B", b)):
        if figure.value is None:
            return f"not measured in {name}: {figure.reason}"
        if figure.simulated:
            return f"SIMULATED in {name}"
        if figure.invalid:
            return f"INVALID in {name}: {figure.invalid}"
    if a.unit != b.unit:
        return "other units"
    for name, figure in (("A", a), ("B", b)):
        if PERCENTILE.search(figure.name) and (figure.low is None or figure.high is None):
            return f"n = {figure.n} in {name} is too small for bounds"
    return ""


def plain(figure: ReportedFigure) -> Figure:
    """Return the figure without its location in the records."""
    return Figure(value=figure.value, unit=figure.unit, n=figure.n, low=figure.low, high=figure.high)


def estimate_by_samples(a: ReportedFigure, b: ReportedFigure, raw: tuple[Raw, Raw]) -> Estimate | None:
    """Return the ratio computed from the raw stamps; None unless both runs have the stamps behind their figures."""
    percent = PERCENTILE.search(a.name)
    if percent is None:
        return None
    q = int(percent[1]) / 100
    both = raw[0].samples(a.metric), raw[1].samples(b.metric)
    for values, figure in zip(both, (a, b), strict=True):
        if not values or min(values) <= 0 or quantile(values, q) != figure.value:
            return None
    return by_samples(*both, q)


def estimate_by_pairs(a: ReportedFigure, b: ReportedFigure, raw: tuple[Raw, Raw]) -> Estimate | None:
    """Return the ratio of two shares, case by case; None unless both runs have the cases behind their figures."""
    both = raw[0].correct_cases(a.metric), raw[1].correct_cases(b.metric)
    for cases, figure in zip(both, (a, b), strict=True):
        if not cases or 100 * sum(cases.values()) / len(cases) != figure.value:
            return None
    shared = [case for case in both[0] if case in both[1]]
    return by_pairs([(both[0][case], both[1][case]) for case in shared]) if shared else None


def noise_that_fits(a: Run, b: Run, artifacts: Path) -> tuple[RunNoise | None, str]:
    """Return the noise that was measured on what both runs ran on, and where it stands: kept with A, with B, or this machine's own."""
    places = [(run.folder / "records", f"kept with {letter}") for letter, run in (("A", a), ("B", b)) if run.folder]
    for folder, where in [*places, (artifacts, "artifacts/noise.json")]:
        found = noise_in(folder)
        if found is not None and found.fits(a.document.environment) and found.fits(b.document.environment):
            return found, where
    return None, ""


def lines(comparison: Comparison, run_noise: RunNoise | None, where: str = "") -> list[OutputPart]:
    """Return the comparison for the terminal; `where` the noise stands."""
    header = ("figure", "decides", "A", "B", "B/A (95 %)", "noise", "p", "verdict", "by")
    counts = {
        word: [row for row in comparison.rows if row.compared.verdict == word] for word in ("better", "worse", "same", "not comparable")
    }
    source = (
        f"noise: of {run_noise.starts} starts ({where}); where it says assumed, nobody measured it"
        if run_noise
        else "noise: assumed, for nobody measured it on this device, model and vLLM (`./inv calibrate-noise` does)"
    )
    return [
        *(f"{letter}: {run.name}, {run_words(run)}" for letter, run in (("A", comparison.a), ("B", comparison.b))),
        *([f"NOT ALIKE: these runs differ in {', '.join(comparison.unlike)}."] if comparison.unlike else []),
        *([f"not on record in both: the settings of {', '.join(comparison.untold)}, taken to be alike"] if comparison.untold else []),
        source,
        TextTable(header, [cells_of(row) for row in comparison.rows]),
        *(
            f"{what}: {', '.join(f'{len([row for row in rows if row.decides == own])} {word}' for word, rows in counts.items())}"
            for what, own in (("of the figures that decide", True), ("of the others", False))
        ),
        *(f"WORSE: {row.metric}, {digits(row.a or 0)} → {digits(row.b or 0)} {row.unit}" for row in counts["worse"] if row.decides),
    ]


def run_words(run: Run) -> str:
    """Return when and on what a run was measured, and its verdict."""
    facts, document = run.document.environment, run.document
    when = f"{document.finished:%Y-%m-%d %H:%M} UTC" if document.finished else "nothing measured"
    return f"{when}, {facts.model} on {facts.device}, vLLM {facts.vllm}, profile {facts.profile}: {document.verdict}"


def cells_of(row: FigurePair) -> list[str]:
    """Return a row's cells."""
    estimate = row.compared.estimate
    ratio = "" if estimate is None or estimate.ratio is None else f"{estimate.ratio:.3f}"
    bounds = "" if estimate is None or estimate.low is None or estimate.high is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    by = "; ".join(words for words in (estimate.method if estimate else "", row.compared.reason) if words)
    values = [f"{digits(value)} {row.unit}" if value is not None else "" for value in (row.a, row.b)]
    p = "" if row.compared.p is None else f"{row.compared.p:.2g}"
    return [row.metric, "yes" if row.decides else "", *values, ratio + bounds, noise_words(row), p, row.compared.verdict, by]


def noise_words(row: FigurePair) -> str:
    """Return how far apart 95 % of pairs of starts are at most."""
    if row.noise is None:
        return ""
    reach = f"{100 * math.expm1(row.noise.reach):.2g} %" if row.noise.logarithmic else f"{digits(row.noise.reach)} {row.unit}"
    return reach if row.noise.starts else f"{reach} assumed"


def plot(comparison: Comparison) -> str:
    """Return the comparison as an SVG plot; empty if no figure has a ratio."""
    rows = [
        Ratio(row.metric, estimate.ratio, estimate.low, estimate.high, band(row), row.compared.verdict)
        for row in comparison.rows
        if (estimate := row.compared.estimate) is not None and estimate.ratio is not None
    ]
    return ratios(f"{comparison.b.name} (B) against {comparison.a.name} (A)", rows, len(comparison.rows) - len(rows))


def band(row: FigurePair) -> float:
    """Return how far from 1 the ratio of 95 % of pairs of starts is at most."""
    if row.noise is None or not row.a:
        return 0.0
    return math.expm1(row.noise.reach) if row.noise.logarithmic else row.noise.reach / row.a


def data(comparison: Comparison, plot: str | None = None) -> dict[str, Any]:
    """Return the comparison for programs; `plot` is the path of its SVG."""
    runs = {"a": comparison.a.name, "b": comparison.b.name, "plot": plot}
    return {**runs, "exit_code": comparison.exit_code, "unlike": comparison.unlike, "figures": [asdict(row) for row in comparison.rows]}
