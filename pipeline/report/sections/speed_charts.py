"""The charts of latency and throughput: the values they show, and tables of their numbers."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

from pipeline.measure.statistics import quantile
from pipeline.message import Message, _, joined
from pipeline.report.cells import Amount, Cell, Text, comma_separated, glued, number
from pipeline.report.drawing.charts import Caption, Series, bins, curves, distribution, end_of, histogram, per_bin
from pipeline.report.parts import Chart, Table
from pipeline.stages.bench import BenchResult

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Each chart: its id, its title, and the names of its series by figure.
LATENCY: tuple[tuple[str, Text, dict[str, Text]], ...] = (
    ("ttft", _("Time to first token (TTFT)"), {"ttft_ms": _("cold prefix cache"), "ttft_warm_ms": _("warm prefix cache")}),
    ("itl", _("Gaps between chunks (ITL)"), {"itl_ms": _("concurrency 1")}),
    ("e2e", _("End-to-end latency (E2E)"), {"e2e_ms": _("concurrency 1")}),
)


def speed_charts(data: BenchResult, latencies: Mapping[str, Sequence[float]]) -> list[Chart]:
    """Return the distributions of TTFT, ITL and E2E latency, and throughput; `latencies` holds the values (ms) behind the figures."""
    return [*(latency_chart(name, title, data, latencies, series) for name, title, series in LATENCY), throughput_chart(data)]


def latency_chart(name: str, title: Text, data: BenchResult, latencies: Mapping[str, Sequence[float]], series: Mapping[str, Text]) -> Chart:
    """Return the distribution of the values behind one kind of figure, or why it cannot be drawn."""
    drawable: list[Series] = []
    notes: list[Text] = []
    for base, label in series.items():
        values = latencies.get(base, ())
        reason = obstacle(data, base, label, values)
        if reason:
            notes.append(reason)
        else:
            drawable.append(Series(label, sorted(values)))
    if not drawable:
        return Chart(name, title, _("Not drawn: {reason}.", reason=joined("; ", notes)))
    highest = end_of(drawable)
    beyond = [value for one in drawable for value in one.values if value > highest]
    if beyond:
        notes.append(
            _(
                "{count} values beyond {limit} ms are not drawn, the highest {most} ms",
                count=len(beyond),
                limit=number(highest),
                most=number(max(beyond)),
            )
        )
    edges = bins(drawable, highest)
    about = joined("; ", [summary(one) for one in drawable])
    return Chart(
        name,
        title,
        glued(joined("; ", notes), ".") if notes else "",
        [one.name for one in drawable],
        [
            partial(histogram, Caption(f"{name}-histogram", _("{title}: histogram", title=title), about), drawable, edges),
            partial(distribution, Caption(f"{name}-ecdf", _("{title}: cumulative distribution", title=title), about), drawable, edges),
        ],
        [quantiles(title, drawable), counts(title, drawable, edges)],
    )


def obstacle(data: BenchResult, base: str, series: Text, values: Sequence[float]) -> Text:
    """Return why the values behind a figure cannot be drawn; empty if they can."""
    figure = data.figures.get(f"{base}_p50")
    if figure is None or figure.value is None:
        return joined(": ", [series, figure.reason if figure else _("not measured")])
    if figure.invalid:
        return joined(": ", [series, "INVALID", figure.invalid])
    if not values:
        return _("{series}: the raw stamps ({file}) are gone or cannot be read", series=series, file=data.raw)
    if len(values) != figure.n or not math.isclose(quantile(values, 0.5), figure.value, rel_tol=1e-6):
        return _("{series}: the raw stamps ({file}) are not those of the figures", series=series, file=data.raw)
    return ""


def summary(series: Series) -> Message:
    """Return a summary of the series: n, range, median and p95."""
    return _(
        "{series}: n = {n}, from {low} to {high} ms, median {mid} ms, p95 {p95} ms",
        series=series.name,
        n=len(series.values),
        low=number(series.values[0]),
        high=number(series.values[-1]),
        mid=number(quantile(series.values, 0.5)),
        p95=number(quantile(series.values, 0.95)),
    )


def quantiles(title: Text, series: Sequence[Series]) -> Table:
    """Return a table of each series' quantiles."""
    header: list[Text] = ["", "n", _("lowest"), *(f"p{100 * share:.0f}" for share in SHARES), _("highest")]
    rows: list[list[Cell]] = [
        [
            one.name,
            len(one.values),
            *(number(value) for value in (one.values[0], *(quantile(one.values, share) for share in SHARES), one.values[-1])),
        ]
        for one in series
    ]
    return Table(_("{title}: quantiles in ms", title=title), header, rows)


def counts(title: Text, series: Sequence[Series], edges: Sequence[float]) -> Table:
    """Return a table of the histogram's bins, without those empty in every series."""
    counts_by_series = [per_bin(one.values, edges) for one in series]
    rows: list[list[Cell]] = [
        [Amount(f"{begin:g} – {end:g}", begin), *bin_counts]
        for (begin, end), bin_counts in zip(pairwise(edges), zip(*counts_by_series, strict=True), strict=True)
        if any(bin_counts)
    ]
    return Table(_("{title}: values in each bin", title=title), ["ms", *(one.name for one in series)], rows)


def throughput_chart(data: BenchResult) -> Chart:
    """Return system throughput against concurrency, for the valid closed loops."""
    title = _("Throughput against concurrency")
    valid = [entry for entry in data.levels if not entry.invalid]
    left_out = [entry.concurrency for entry in data.levels if entry.invalid]
    note: Text = _("Left out as INVALID: concurrency {levels}.", levels=comma_separated(left_out)) if left_out else ""
    if not valid:
        return Chart("throughput", title, note or _("Not drawn: no closed loop was measured."))
    whole, full = _("whole loop"), _("while full")
    lines = {
        whole: [(float(entry.concurrency), entry.throughput_tok_s) for entry in valid],
        full: [(float(entry.concurrency), entry.steady_tok_s) for entry in valid if entry.steady_tok_s is not None],
    }
    lines = {name: points for name, points in lines.items() if points}
    about = joined("; ", [glued(name, ": ", comma_separated(speed_words(*point) for point in points)) for name, points in lines.items()])
    rows: list[list[Cell]] = [
        [entry.concurrency, number(entry.throughput_tok_s), number(entry.steady_tok_s) if entry.steady_tok_s is not None else "–"]
        for entry in valid
    ]
    table = Table(_("Throughput by concurrency in tok/s"), [_("Concurrency"), whole, full], rows)
    drawing = partial(curves, Caption("throughput-curve", title, about), list(lines.values()))
    return Chart("throughput", title, note, list(lines), [drawing], [table])


def speed_words(concurrency: float, tok_s: float) -> Message:
    """Return the text of a point of the curve."""
    return glued(f"{concurrency:g}: ", number(tok_s), " tok/s")
