"""One figure of several starts of the server. Pure; plain Python."""

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

from pipeline.measure.comparison import student_quantile
from pipeline.measure.figures import Figure
from pipeline.measure.statistics import CONFIDENCE, share_figure


def over_starts(figures: Sequence[Figure]) -> Figure:
    """Return one figure of the same measurement at each of several starts; ValueError without any.

    A share is that of all answers together. Any other value is the median, its bounds the wider of two: the outermost bounds of
    a single start, and where a further start would lie, with 95 % confidence to either side (`next_start`). n and `failed` count
    over all starts. A start without a value, or with a contradicted one, makes the whole figure so.
    """
    if not figures:
        raise ValueError("no start")
    lacking = next((figure for figure in figures if figure.valid is None), None)
    if lacking is not None or len(figures) == 1:
        return (lacking or figures[0]).model_copy(update={"starts": len(figures)})
    values = [figure.value or 0.0 for figure in figures]
    counts = {"n": sum(figure.n for figure in figures), "failed": sum(figure.failed for figure in figures), "starts": len(figures)}
    if figures[0].unit == "%" and counts["n"]:
        right = sum(round(figure.n * value / 100) for figure, value in zip(figures, values, strict=True))
        return share_figure(right, counts["n"]).model_copy(update=counts)
    low, high = next_start(values)
    lows, highs = [figure.low for figure in figures], [figure.high for figure in figures]
    bounds = {
        "low": None if None in lows else min(low, *(bound for bound in lows if bound is not None)),
        "high": None if None in highs else max(high, *(bound for bound in highs if bound is not None)),
    }
    return figures[0].model_copy(update={"value": median(values), **bounds, **counts})


def next_start(values: Sequence[float]) -> tuple[float, float]:
    """Return the one-sided 95 % prediction bounds of one more value like these, which are at least two.

    mean ± t(0.95, k − 1) · s · √(1 + 1/k) (Hahn & Meeker, Statistical Intervals, 4.8), of the logarithms where all are positive.
    """
    logarithms = min(values) > 0
    scale = [math.log(value) for value in values] if logarithms else list(values)
    k = len(scale)
    reach = student_quantile(CONFIDENCE, k - 1) * stdev(scale) * math.sqrt(1 + 1 / k)
    ends = fmean(scale) - reach, fmean(scale) + reach
    return (math.exp(ends[0]), math.exp(ends[1])) if logarithms else ends
