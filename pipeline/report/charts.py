"""Charts of report.html as SVG text: latency, throughput, memory. Pure; the same bytes each time; the page has the colours."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

from pipeline.measure.digits import number
from pipeline.measure.memory import Sample, gpu_points, host_points
from pipeline.measure.statistics import quantile
from pipeline.report.language import Words
from pipeline.report.plots import Scale, rule, steps
from pipeline.report.plots import text as label
from pipeline.report.view import Table

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 426, 22, 208
FEWEST_BINS, MOST_BINS = 6, 40
STAIRS = 300  # of a distribution; of more values only so many quantiles are drawn
TAIL = 2.0  # how far beyond its p99 a value lies that is told instead of drawn
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MEMORY = "memory.svg"
Pair = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Values (ms) under one name."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """Drawings with a caption, what belongs to each colour, and the numbers they show; or the reason why there are none."""

    id: str
    title: str
    note: str = ""
    keys: list[str] = field(default_factory=list)
    drawings: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    wide: bool = False


def bench_charts(data: Any, latencies: Mapping[str, Sequence[float]], t: Words) -> list[Chart]:
    """Return the charts of bench's record, where there is one."""
    return [*latency_charts(data, latencies, t), throughput_chart(data, t)] if data is not None else []


def latency_charts(data: Any, latencies: Mapping[str, Sequence[float]], t: Words) -> list[Chart]:
    """Return how TTFT, ITL and E2E latency are distributed: of each figure of bench that stands, the values behind it."""
    groups = [
        ("ttft", t("Time to first token (TTFT)"), {"ttft_ms": t("cold prefix cache"), "ttft_warm_ms": t("warm prefix cache")}),
        ("itl", t("Gaps between chunks (ITL)"), {"itl_ms": t("concurrency 1")}),
        ("e2e", t("End-to-end latency (E2E)"), {"e2e_ms": t("concurrency 1")}),
    ]
    return [latency_chart(name, title, data, latencies, names, t) for name, title, names in groups]


def latency_chart(name: str, title: str, data: Any, latencies: Mapping[str, Sequence[float]], names: Mapping[str, str], t: Words) -> Chart:
    """Return one of them, or why it cannot be drawn."""
    found, reasons = [], []
    for base, called in names.items():
        figure, values = data.figures.get(f"{base}_p50"), latencies.get(base, ())
        if figure is None or figure.value is None:
            reasons.append(f"{called}: {figure.reason if figure else t('not measured')}")
        elif not values:
            reasons.append(t("{series}: the raw stamps ({file}) are gone or cannot be read", series=called, file=data.raw))
        elif len(values) != figure.n or not math.isclose(quantile(values, 0.5), figure.value, rel_tol=1e-6):
            reasons.append(t("{series}: the raw stamps ({file}) are not those of the figures", series=called, file=data.raw))
        else:
            found.append(Series(called, sorted(values)))
    note = "; ".join(reasons)
    if not found:
        return Chart(name, title, t("Not drawn: {reason}.", reason=note))
    highest = end_of(found)
    beyond = [value for one in found for value in one.values if value > highest]
    if beyond:
        told = t(
            "{count} values beyond {limit} ms are not drawn, the highest {most} ms",
            count=len(beyond),
            limit=number(highest),
            most=number(max(beyond)),
        )
        note = "; ".join(part for part in (note, told) if part)
    edges = bins(found, highest)
    about = "; ".join(summary(one, t) for one in found)
    return Chart(
        name,
        title,
        f"{note}." if note else "",
        [one.name for one in found],
        [
            histogram(f"{name}-histogram", t("{title}: histogram", title=title), about, found, edges, t("% of values")),
            distribution(f"{name}-ecdf", t("{title}: cumulative distribution", title=title), about, found, edges, t("% at most")),
        ],
        [quantiles(title, found, t), counts(title, found, edges, t)],
    )


def summary(series: Series, t: Words) -> str:
    """Return the series in words."""
    told = {"low": series.values[0], "mid": quantile(series.values, 0.5), "p95": quantile(series.values, 0.95), "high": series.values[-1]}
    shown = {name: number(value) for name, value in told.items()}
    return t("{series}: n = {n}, from {low} to {high} ms, median {mid} ms, p95 {p95} ms", series=series.name, n=len(series.values), **shown)


def end_of(found: Sequence[Series]) -> float:
    """Return where the axis ends: the highest value, without a tail that would leave no room for the rest."""
    highest = max(one.values[-1] for one in found)
    most = max(quantile(one.values, 0.99) for one in found)
    return TAIL * most if highest > TAIL * most else highest


def bins(found: Sequence[Series], highest: float) -> list[float]:
    """Return round edges of equal bins over all values up to the highest; their width is near Freedman and Diaconis' rule."""
    lowest = min(one.values[0] for one in found)
    span = max(highest - lowest, 1e-3 * max(highest, 1.0))
    wanted = []
    for one in found:
        spread = quantile(one.values, 0.75) - quantile(one.values, 0.25)
        wanted.append(2 * spread / len(one.values) ** (1 / 3))
    width = round_up(min(max(min(wanted), span / MOST_BINS), span / FEWEST_BINS))
    first = math.floor(lowest / width)
    last = max(math.ceil(highest / width), first + 1)
    return [round(edge * width, 9) for edge in range(first, last + 1)]


def round_up(value: float) -> float:
    """Return the smallest 1, 2, 2.5 or 5 × a power of ten that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= value * (1 - 1e-9)), 10 * power)


def per_bin(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return how many values each bin holds, its lower edge included; the last has its upper edge too."""
    found = [0] * (len(edges) - 1)
    width = edges[1] - edges[0]
    for value in values:
        if value <= edges[-1]:
            found[min(max(int((value - edges[0]) / width), 0), len(found) - 1)] += 1
    return found


def histogram(name: str, title: str, about: str, found: Sequence[Series], edges: Sequence[float], unit: str) -> str:
    """Return the shares of the bins as outlined steps, one for each series."""
    shares = [[100 * count / len(one.values) for count in per_bin(one.values, edges)] for one in found]
    ticks = steps(max(max(one) for one in shares))
    x, y = Scale(edges[0], edges[-1], LEFT, RIGHT), Scale(0, ticks[-1], BOTTOM, TOP)
    body = [*levels(ticks, y, unit), *along(edges, x)]
    for index, heights in enumerate(shares):
        corners = "".join(f"L{x(a):.1f} {y(h):.1f}L{x(b):.1f} {y(h):.1f}" for (a, b), h in zip(pairwise(edges), heights, strict=True))
        body.append(f'<path class="area s{index} f{index}" d="M{x(edges[0]):.1f} {y(0):.1f}{corners}L{x(edges[-1]):.1f} {y(0):.1f}"/>')
    return drawing(name, title, about, body)


def distribution(name: str, title: str, about: str, found: Sequence[Series], edges: Sequence[float], unit: str) -> str:
    """Return the empirical cumulative distribution of each series as stairs."""
    x, y = Scale(edges[0], edges[-1], LEFT, RIGHT), Scale(0, 100, BOTTOM, TOP)
    body = [*levels([0, 25, 50, 75, 95], y, unit), *along(edges, x)]
    for index, one in enumerate(found):
        at, corners = float(y(0)), ""
        for value, share in stairs(one.values):
            if value > edges[-1]:
                break
            corners += f"L{x(value):.1f} {at:.1f}L{x(value):.1f} {y(100 * share):.1f}"
            at = y(100 * share)
        body.append(f'<path class="line s{index}" d="M{LEFT} {y(0):.1f}{corners}L{RIGHT} {at:.1f}"/>')
    return drawing(name, title, about, body)


def stairs(values: Sequence[float]) -> list[Pair]:
    """Return (value, share of values up to it) of sorted values, of many only 300 of them."""
    n = len(values)
    ranks = range(1, n + 1) if n <= STAIRS else sorted({max(1, math.ceil(n * step / STAIRS)) for step in range(1, STAIRS + 1)})
    return [(values[rank - 1], rank / n) for rank in ranks]


def quantiles(title: str, found: Sequence[Series], t: Words) -> Table:
    """Return the quantiles of each series as a table."""
    header = ["", "n", t("lowest"), *(f"p{100 * share:.0f}" for share in SHARES), t("highest")]
    rows = [
        [
            one.name,
            str(len(one.values)),
            *(number(value) for value in (one.values[0], *(quantile(one.values, q) for q in SHARES), one.values[-1])),
        ]
        for one in found
    ]
    return Table(t("{title}: quantiles in ms", title=title), header, rows)


def counts(title: str, found: Sequence[Series], edges: Sequence[float], t: Words) -> Table:
    """Return the bins of the histogram as a table, without those that are empty in each series."""
    shown = [per_bin(one.values, edges) for one in found]
    rows = [
        [f"{begin:g} – {end:g}", *(str(count) for count in held)]
        for (begin, end), held in zip(pairwise(edges), zip(*shown, strict=True), strict=True)
        if any(held)
    ]
    return Table(t("{title}: values in each bin", title=title), ["ms", *(one.name for one in found)], rows)


def throughput_chart(data: Any, t: Words) -> Chart:
    """Return system throughput against concurrency of the closed loops that are valid."""
    title = t("Throughput against concurrency")
    valid = [entry for entry in data.levels if not entry.invalid]
    left_out = [str(entry.concurrency) for entry in data.levels if entry.invalid]
    note = t("Left out as INVALID: concurrency {levels}.", levels=", ".join(left_out)) if left_out else ""
    if not valid:
        return Chart("throughput", title, note or t("Not drawn: no closed loop was measured."))
    whole = [(float(entry.concurrency), entry.throughput_tok_s) for entry in valid]
    full = [(float(entry.concurrency), entry.steady_tok_s) for entry in valid if entry.steady_tok_s is not None]
    named = {t("whole loop"): whole, t("while full"): full}
    named = {name: points for name, points in named.items() if points}
    about = "; ".join(f"{name}: " + ", ".join(f"{at:g}: {number(speed)} tok/s" for at, speed in points) for name, points in named.items())
    rows = [
        [str(entry.concurrency), number(entry.throughput_tok_s), number(entry.steady_tok_s) if entry.steady_tok_s is not None else "–"]
        for entry in valid
    ]
    table = Table(t("Throughput by concurrency in tok/s"), [t("Concurrency"), t("whole loop"), t("while full")], rows)
    return Chart("throughput", title, note, list(named), [curves("throughput-curve", title, about, list(named.values()), t)], [table])


def curves(name: str, title: str, about: str, lines: Sequence[Sequence[Pair]], t: Words) -> str:
    """Return the lines over concurrency, each doubling of which takes the same width."""
    places = sorted({at for points in lines for at, _ in points})
    ticks = steps(max(speed for points in lines for _, speed in points))
    low, high = math.log2(places[0]), math.log2(places[-1])
    x = Scale(low - 0.25, max(high, low + 1) + 0.25, LEFT, RIGHT)
    y = Scale(0, ticks[-1], BOTTOM, TOP)
    body = levels(ticks, y, "tok/s")
    body += [label(x(math.log2(at)), BOTTOM + 18, f"{at:g}", "middle") for at in places]
    body.append(label((LEFT + RIGHT) / 2, BOTTOM + 36, t("requests in flight"), "middle"))
    for index, points in enumerate(lines):
        marks = [(x(math.log2(at)), y(speed)) for at, speed in points]
        body.append(f'<path class="line s{index}" d="M{"L".join(f"{across:.1f} {up:.1f}" for across, up in marks)}"/>')
        body += [f'<circle class="f{index}" cx="{across:.1f}" cy="{up:.1f}" r="3.5"/>' for across, up in marks]
    return drawing(name, title, about, body)


def levels(ticks: Sequence[float], y: Callable[[float], float], unit: str) -> list[str]:
    """Return the lines of the vertical axis with their numbers."""
    lines = [rule("axis" if not tick else "grid", LEFT, y(tick), RIGHT, y(tick)) for tick in ticks]
    return [*lines, *(label(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks), label(4, TOP - 10, unit, "start")]


def along(edges: Sequence[float], x: Callable[[float], float]) -> list[str]:
    """Return about six numbers (ms) along the horizontal axis, each at an edge of a bin."""
    apart = max(1, math.ceil((len(edges) - 1) / 6))
    shown = [edge for edge in edges if round(edge / (edges[1] - edges[0])) % apart == 0]
    return [*(label(x(edge), BOTTOM + 18, f"{edge:g}", "middle") for edge in shown), label((LEFT + RIGHT) / 2, BOTTOM + 36, "ms", "middle")]


def drawing(name: str, title: str, about: str, body: Sequence[str]) -> str:
    """Return the SVG with its text alternative."""
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-desc">'
    named = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(about)}.</desc>'
    return "\n".join([head, named, *body, "</svg>"])


def memory_charts(memory: Any, plan: Any, samples: Sequence[Sample], pictures: Mapping[str, str], t: Words) -> list[Chart]:
    """Return the pictures of memory as they stand beside REPORT.md, each with its numbers."""
    if memory is None:
        return []
    titles = {MEMORY: t("Memory over time"), "breakdown.svg": t("Where the memory goes")}
    tables = {MEMORY: memory_table(memory, samples, t), "breakdown.svg": parts_table(memory, plan, t)}
    found = [
        Chart(file.partition(".")[0], title, "", [], [inlined(pictures[file])], [tables[file]], wide=True)
        for file, title in titles.items()
        if file in pictures
    ]
    if MEMORY in pictures:
        return found
    return [Chart("memory", titles[MEMORY], t("Not drawn: the samples ({file}) are gone or too few.", file=memory.samples_file)), *found]


def memory_table(memory: Any, samples: Sequence[Sample], t: Words) -> Table:
    """Return begin, peak and end of each line over time."""
    lines = {
        "VRAM": gpu_points(samples, memory.baseline_gpu_mib)[1],
        t("host memory (PSS)"): host_points(samples, "pss_mib"),
        t("host memory (RSS)"): host_points(samples, "rss_mib"),
    }
    rows = [
        [name, str(len(points)), *(number(value) for value in (points[0][1], max(mib for _, mib in points), points[-1][1]))]
        for name, points in lines.items()
        if points
    ]
    return Table(t("Memory over time in MiB"), ["", t("samples"), t("first"), t("highest"), t("last")], rows)


def parts_table(memory: Any, plan: Any, t: Words) -> Table:
    """Return the parts of memory, planned and by vLLM's log."""
    keys = {
        t("weights"): "weights_mib",
        t("activations"): "activations_mib",
        t("CUDA graphs"): "graphs_mib",
        t("KV cache"): "kv_cache_mib",
    }

    def told(source: Any, key: str) -> str:
        value = getattr(source, key, None)
        return "–" if value is None else number(value)

    rows = [[part, told(plan, key), told(memory.breakdown, key)] for part, key in keys.items()]
    return Table(t("Parts of memory in MiB"), ["", t("planned"), t("vLLM's log")], rows)


def sweep_charts(plot: str, t: Words) -> list[Chart]:
    """Return the picture of a sweep as it stands beside REPORT.md, where there is one; the table beneath has its numbers."""
    title = t("Router accuracy against latency, the model's size as area")
    return [Chart("sweep-plot", title, "", [], [inlined(plot)], wide=True)] if plot else []


def inlined(svg: str) -> str:
    """Return a picture that stands in a file for use within the page, whose own style takes the place of the picture's."""
    return re.sub(r"<style>.*?</style>\n?", "", svg, flags=re.DOTALL)
