"""compare: two runs figure by figure, from the raw stamps where both runs have them, with a verdict on each figure."""

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.client.answer import Answer
from pipeline.errors import PipelineError
from pipeline.experiments.noise import RunNoise
from pipeline.load.stamps import TIMES, Values, raw_answer
from pipeline.measure.comparison import Compared, Estimate, Noise, better_when, by_bounds, by_pairs, by_samples, default_noise, verdict
from pipeline.measure.comparison import exit_code as exit_code_of
from pipeline.measure.figures import Figure
from pipeline.measure.latency import NS_PER_MS, e2e_ms, ttft_ms
from pipeline.measure.statistics import quantile
from pipeline.measure.verdicts import digits
from pipeline.report.drawing.ratios import Ratio, ratios
from pipeline.report.formats.document import ReportedFigure
from pipeline.runs.kept import Run
from pipeline.terminal import OutputPart, TextTable

MUST_AGREE = ("device", "model", "vllm")
# Settings that change what a figure means; sample sizes are left out. Files (suites, prompts) are compared by content.
MEANING = {
    "bench": ("output_tokens",),
    "router": ("suite", "system", "max_tokens"),
    "determinism": ("prompts", "max_tokens"),
    "vram": ("concurrency",),
}
BEFORE = {"system": "suite"}  # what a setting amounted to in runs from before there was one
PERCENTILE = re.compile(r"_p(\d\d)$")
FROM_SCHEDULED: dict[str, Values] = {
    "ttft_ms": lambda answers: [ttft_ms(answer.scheduled_ns, answer.first_ns) for answer in answers if answer.ok],
    "e2e_ms": lambda answers: [e2e_ms(answer.scheduled_ns, answer.last_ns) for answer in answers if answer.ok],
}
CORRECT: dict[str, Callable[[Mapping[str, Any]], bool | None]] = {
    "schema_valid": lambda line: line["failure"] is None,
    "route_accuracy": lambda line: line.get("route_right"),
    "tool_plan_accuracy": lambda line: line.get("tool_plan_right"),
    "joint_accuracy": lambda line: line.get("all_right"),
}


@dataclass(frozen=True)
class FigurePair:
    """One figure of both runs, and its verdict."""

    metric: str
    unit: str
    a: float | None
    b: float | None
    compared: Compared
    noise: Noise


@dataclass(frozen=True)
class Comparison:
    """Two runs, the facts in which they should agree but differ, and each figure."""

    a: Run
    b: Run
    unlike: list[str]
    rows: list[FigurePair]

    @property
    def exit_code(self) -> int:
        """Return 1 if a figure is worse, 2 if no figure could be compared, else 0."""
        return exit_code_of([row.compared.verdict for row in self.rows])


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
        except (OSError, EOFError, ValueError):
            return []


def compare(a: Run, b: Run, run_noise: RunNoise | None, anyway: bool) -> Comparison:
    """Compare B with A; raise PipelineError if device, model or vLLM differ, unless `anyway`."""
    first, second = a.document.environment.model_dump(), b.document.environment.model_dump()
    unlike = [f"{fact} ({first[fact]} against {second[fact]})" for fact in MUST_AGREE if first[fact] != second[fact]]
    if unlike and not anyway:
        raise PipelineError(f"{a.name} and {b.name} differ in {', '.join(unlike)}", "compare them all the same with --anyway")
    raw = Raw(a.folder), Raw(b.folder)
    metrics = dict.fromkeys(figure.metric for run in (a, b) for figure in run.document.figures)
    reasons = {} if anyway else {stage: other_settings(settings_of(a, stage), settings_of(b, stage)) for stage in stages_of(a)}
    rows = [figure_pair(metric, a, b, raw, run_noise, reasons.get(metric.partition(".")[0], [])) for metric in metrics]
    return Comparison(a, b, unlike, rows)


def stages_of(run: Run) -> list[str]:
    """Return the names of the run's stages."""
    return [stage.stage for stage in run.document.stages]


def settings_of(run: Run, name: str) -> dict[str, Any]:
    """Return the settings of the stage's measurement."""
    return next((stage.settings for stage in run.document.stages if stage.stage == name), {})


def other_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ and change what the stage's figures mean."""
    reasons = []
    for section in a.keys() & b.keys():
        if " file " in section and a[section] != b[section]:
            reasons.append(f"{section.partition(' file ')[2]} has changed")
        for name in MEANING.get(section, ()):
            before, after = (settings[section].get(name, BEFORE.get(name)) for settings in (a, b))
            if before != after:
                reasons.append(f"{section}.{name} {before} against {after}")
    if a.get("limits") != b.get("limits"):
        reasons.append("limits")
    return sorted(reasons)


def figure_pair(metric: str, a: Run, b: Run, raw: tuple[Raw, Raw], run_noise: RunNoise | None, unlike: Sequence[str]) -> FigurePair:
    """Return one figure of both runs with its verdict."""
    first, second = a.document.figure(metric), b.document.figure(metric)
    figure = first or second
    assert figure is not None, "the metric is one of the figures'"
    noise = noise_of(figure, run_noise)
    judged = "goodput" in metric or "capacity" in metric
    reasons = [reason for reason in unlike if reason != "limits"] + (["other limits"] if judged and "limits" in unlike else [])
    trouble = not_comparable(first, second) or "; ".join(reasons)
    compared = Compared("not comparable", None, trouble) if trouble else judge_pair(first, second, raw, noise)
    return FigurePair(metric, figure.unit, first.value if first else None, second.value if second else None, compared, noise)


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


def judge_pair(a: ReportedFigure | None, b: ReportedFigure | None, raw: tuple[Raw, Raw], noise: Noise) -> Compared:
    """Return the verdict on two figures that have values."""
    assert a is not None, "not_comparable says so"
    assert b is not None, "not_comparable says so"
    estimate = estimate_by_pairs(a, b, raw) or estimate_by_samples(a, b, raw) or by_bounds(plain(a), plain(b))
    if estimate is None:
        return Compared("not comparable", None, "no bounds, or no ratio of these values")
    return verdict(better_when(a.name, a.unit), estimate, noise)


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


def noise_of(figure: ReportedFigure, run_noise: RunNoise | None) -> Noise:
    """Return the run-to-run noise of a figure: the measured one, else a default."""
    entry = run_noise.figures.get(figure.metric) if run_noise else None
    return Noise(entry.relative_range, measured=True) if entry else default_noise(figure.name, figure.unit)


def fits(noise: RunNoise, runs: Sequence[Run]) -> bool:
    """Tell whether the noise was measured on the device, model and vLLM of both runs."""
    environments = [run.document.environment for run in runs]
    return not noise.simulated and all(
        (noise.device, noise.model, noise.vllm) == (environment.device, environment.model, environment.vllm) for environment in environments
    )


def lines(comparison: Comparison, run_noise: RunNoise | None) -> list[OutputPart]:
    """Return the comparison for the terminal."""
    header = ("figure", "A", "B", "B/A (95 %)", "noise", "verdict", "by")
    counts = {
        word: [row for row in comparison.rows if row.compared.verdict == word] for word in ("better", "worse", "same", "not comparable")
    }
    source = (
        f"noise: measured by {run_noise.starts} starts (artifacts/noise.json); where it says default, "
        if run_noise
        else "noise: not measured on this device, model and vLLM (`./inv calibrate-noise` does); "
    )
    return [
        *(f"{letter}: {run.name}, {run_words(run)}" for letter, run in (("A", comparison.a), ("B", comparison.b))),
        *([f"NOT ALIKE: these runs differ in {', '.join(comparison.unlike)}."] if comparison.unlike else []),
        f"{source}10 % for times, rates and memory, none for shares, whose answers are counted",
        TextTable(header, [cells_of(row) for row in comparison.rows]),
        ", ".join(f"{len(rows)} {word}" for word, rows in counts.items()),
        *(f"WORSE: {row.metric}, {digits(row.a or 0)} → {digits(row.b or 0)} {row.unit}" for row in counts["worse"]),
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
    origin = "" if row.noise.measured else " default"
    reason = row.compared.reason
    method = "; ".join(part for part in (estimate.method if estimate else "", reason) if part)
    values = [f"{digits(value)} {row.unit}" if value is not None else "" for value in (row.a, row.b)]
    return [row.metric, *values, ratio + bounds, f"{100 * row.noise.relative:.2g} %{origin}", row.compared.verdict, method]


def plot(comparison: Comparison) -> str:
    """Return the comparison as an SVG plot; empty if no figure has a ratio."""
    rows = [
        Ratio(row.metric, estimate.ratio, estimate.low, estimate.high, row.noise.relative, row.compared.verdict)
        for row in comparison.rows
        if (estimate := row.compared.estimate) is not None and estimate.ratio is not None
    ]
    return ratios(f"{comparison.b.name} (B) against {comparison.a.name} (A)", rows, len(comparison.rows) - len(rows))


def data(comparison: Comparison, plot: str | None = None) -> dict[str, Any]:
    """Return the comparison for programs; `plot` is the path of its SVG."""
    runs = {"a": comparison.a.name, "b": comparison.b.name, "plot": plot}
    return {**runs, "exit_code": comparison.exit_code, "unlike": comparison.unlike, "figures": [asdict(row) for row in comparison.rows]}
