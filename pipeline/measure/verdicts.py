"""Verdict on a figure by its target. Pure.

PASS: the figure and its confidence bound meet the target. INCONCLUSIVE: the figure does, its bound or its n does not, or so many
requests failed that it is a figure of survivors. FAIL: the figure does not, or no request succeeded. INVALID: the measurement
contradicts itself. NOT_MEASURED: there is no figure, with the reason. SIMULATED: not from a real vLLM.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.measure.digits import ends_of, shown
from pipeline.measure.figures import Figure
from pipeline.message import Digits, _

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED", "INVALID", "SIMULATED"]
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}

UNKNOWN = frozenset({"NOT_MEASURED", "INVALID", "SIMULATED"})  # the verdicts that are no word on the server
TIMED = ("ms", "tok/s", "requests/s")
START_NOISE = 0.1  # by which a timed figure may move, relative, from one start of the server to the next
FAILED_SHARE = 0.01  # of the requests; where more fail, a percentile is of the survivors
SIGNS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "==": "="}


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reason."""

    verdict: Verdict
    reason: str


def judge(
    figure: Figure | None, comparator: str, target: float, min_n: int, by_bound: bool, simulated: bool, noise: float = START_NOISE
) -> Judgement:
    """Return the verdict on `figure` against `target`; `noise` is by how much starts of the server differ, relative."""
    if figure is None:
        return Judgement("NOT_MEASURED", _("no such figure on record"))
    if figure.value is None or not math.isfinite(figure.value):
        none = _("no value") if figure.value is None else _("{value} is no measured value", value=Digits(figure.value))
        return Judgement("NOT_MEASURED", figure.reason or none)
    if simulated:
        return Judgement("SIMULATED", _("not measured on a server proven to be a real vLLM"))
    if figure.invalid:
        return Judgement("INVALID", figure.invalid)
    meets = COMPARE[comparator]
    text = shown(figure.value, figure.low, figure.high, (target, *ends_of(figure.unit)))
    limit = {"sign": SIGNS[comparator], "target": Digits(f"{target:g}")}
    if not meets(figure.value, target):
        return Judgement("FAIL", _("{value} is not {sign} {target}", value=text.value, **limit))
    if figure.n < min_n:
        return Judgement("INCONCLUSIVE", _("n = {n}, at least {needed} needed", n=figure.n, needed=min_n))
    if figure.failed > FAILED_SHARE * (figure.n + figure.failed):
        sent = figure.n + figure.failed
        return Judgement(
            "INCONCLUSIVE", _("{failed} of {sent} requests failed, so this is a figure of survivors", failed=figure.failed, sent=sent)
        )
    if by_bound:
        bound = figure.high if comparator in ("<", "<=") else figure.low
        if bound is None or not math.isfinite(bound):
            return Judgement("INCONCLUSIVE", _("n = {n} is too small for a confidence bound", n=figure.n))
        if not meets(bound, target):
            edge = text.high if comparator in ("<", "<=") else text.low
            return Judgement("INCONCLUSIVE", _("the 95 % bound {value} is not {sign} {target}", value=edge, **limit))
    if comparator != "==" and figure.unit in TIMED and figure.starts == 1 and abs(figure.value - target) < noise * abs(target):
        return Judgement(
            "INCONCLUSIVE",
            _("within {noise} % of the target, by which starts of a server differ: set bench.starts to 3", noise=round(100 * noise)),
        )
    return Judgement("PASS", "")


def digits(value: float) -> Digits:
    """Return `value` with four significant digits, without decimals from 1000 on."""
    return Digits(f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}")


def exit_code(judgements: Iterable[tuple[Judgement, bool]]) -> int:
    """Return 2 when a gate that counts has no valid measurement or none counts, else 1 when one does not pass, else 0."""
    verdicts = {judgement.verdict for judgement, counts in judgements if counts}
    if not verdicts or verdicts & UNKNOWN:
        return 2
    return 1 if verdicts & {"FAIL", "INCONCLUSIVE"} else 0
