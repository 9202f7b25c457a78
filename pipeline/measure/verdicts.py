"""From a figure and a target to a verdict. Pure.

PASS: figure and confidence bound meet the target. INCONCLUSIVE: the figure does, its bound or its n does not.
FAIL: the figure does not, or not one request succeeded. NOT_MEASURED: there is no figure, with the reason. SIMULATED: not from a real vLLM.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.measure.digits import ends_of, shown
from pipeline.measure.figures import Figure

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
    """A verdict and the words for it."""

    verdict: Verdict
    reason: str


def judge(figure: Figure | None, comparator: str, target: float, min_n: int, by_bound: bool, simulated: bool) -> Judgement:
    """Return the verdict on `figure` against `target`."""
    if figure is None:
        return Judgement("NOT_MEASURED", "no such figure on record")
    if figure.value is None or not math.isfinite(figure.value):
        return Judgement("NOT_MEASURED", figure.reason or ("no value" if figure.value is None else f"{figure.value} is no measured value"))
    if simulated:
        return Judgement("SIMULATED", "not measured on a server proven to be a real vLLM")
    meets = COMPARE[comparator]
    said = shown(figure.value, figure.low, figure.high, (target, *ends_of(figure.unit)))
    if not meets(figure.value, target):
        return Judgement("FAIL", f"{said.value} is not {SIGNS[comparator]} {target:g}")
    if figure.n < min_n:
        return Judgement("INCONCLUSIVE", f"n = {figure.n}, at least {min_n} needed")
    if by_bound:
        bound = figure.high if comparator in ("<", "<=") else figure.low
        if bound is None or not math.isfinite(bound):
            return Judgement("INCONCLUSIVE", f"n = {figure.n} is too small for a confidence bound")
        if not meets(bound, target):
            return Judgement(
                "INCONCLUSIVE",
                f"the 95 % bound {said.high if comparator in ('<', '<=') else said.low} is not {SIGNS[comparator]} {target:g}",
            )
    return Judgement("PASS", "")


def digits(value: float) -> str:
    """Return `value` with four significant digits, whole from 1000 on."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def exit_code(judgements: Iterable[tuple[Judgement, bool]]) -> int:
    """Return 2 when a gate that counts was not measured or none counts, else 1 when one does not pass, else 0."""
    verdicts = {judgement.verdict for judgement, counts in judgements if counts}
    if not verdicts or verdicts & {"NOT_MEASURED", "SIMULATED"}:
        return 2
    return 1 if verdicts & {"FAIL", "INCONCLUSIVE"} else 0
