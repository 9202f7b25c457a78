"""Verdict on a figure by its target. Pure.

PASS: the figure and its confidence bound meet the target. INCONCLUSIVE: the figure does, but its bound or its n does not. FAIL:
the figure does not, or no request succeeded. NOT_MEASURED: there is no figure, with the reason. SIMULATED: the server was not
proven to be a real vLLM.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.measure.digits import ends_of, shown
from pipeline.measure.figures import Figure
from pipeline.message import Digits, _

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED", "SIMULATED"]
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}

SIGNS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "==": "="}


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reason."""

    verdict: Verdict
    reason: str


def judge(figure: Figure | None, comparator: str, target: float, min_n: int, by_bound: bool, simulated: bool) -> Judgement:
    """Return the verdict on `figure` against `target`."""
    if figure is None:
        return Judgement("NOT_MEASURED", _("no such figure on record"))
    if figure.value is None or not math.isfinite(figure.value):
        none = _("no value") if figure.value is None else _("{value} is no measured value", value=Digits(figure.value))
        return Judgement("NOT_MEASURED", figure.reason or none)
    if simulated:
        return Judgement("SIMULATED", _("not measured on a server proven to be a real vLLM"))
    meets = COMPARE[comparator]
    text = shown(figure.value, figure.low, figure.high, (target, *ends_of(figure.unit)))
    limit = {"sign": SIGNS[comparator], "target": Digits(f"{target:g}")}
    if not meets(figure.value, target):
        return Judgement("FAIL", _("{value} is not {sign} {target}", value=text.value, **limit))
    if figure.n < min_n:
        return Judgement("INCONCLUSIVE", _("n = {n}, at least {needed} needed", n=figure.n, needed=min_n))
    if by_bound:
        bound = figure.high if comparator in ("<", "<=") else figure.low
        if bound is None or not math.isfinite(bound):
            return Judgement("INCONCLUSIVE", _("n = {n} is too small for a confidence bound", n=figure.n))
        if not meets(bound, target):
            edge = text.high if comparator in ("<", "<=") else text.low
            return Judgement("INCONCLUSIVE", _("the 95 % bound {value} is not {sign} {target}", value=edge, **limit))
    return Judgement("PASS", "")


def digits(value: float) -> Digits:
    """Return `value` with four significant digits, without decimals from 1000 on."""
    return Digits(f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}")


def exit_code(judgements: Iterable[tuple[Judgement, bool]]) -> int:
    """Return 2 if a gate that counts was not measured or no gate counts, else 1 if one does not pass, else 0."""
    verdicts = {judgement.verdict for judgement, counts in judgements if counts}
    if not verdicts or verdicts & {"NOT_MEASURED", "SIMULATED"}:
        return 2
    return 1 if verdicts & {"FAIL", "INCONCLUSIVE"} else 0
