"""Agreement between repeated answers. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.statistics import share_figure
from pipeline.message import Sentence, _

LEAST_UNLIKE = 0.1  # of the prompts: so many must get another answer by another seed


@dataclass(frozen=True)
class Agreement:
    """Comparison of N answers: how many equal the most common one (or a reference), how many are distinct, the first differing token."""

    runs: int
    agreeing: int
    distinct: int
    first_divergence: int | None

    @property
    def all_agree(self) -> bool:
        return self.agreeing == self.runs


def agreement(answers: Sequence[Sequence[int]]) -> Agreement:
    """Return the agreement of token-id sequences; raise ValueError if there are none."""
    if not answers:
        raise ValueError("no answers to compare")
    counts = Counter(tuple(answer) for answer in answers)
    (common, agreeing), *_ = counts.most_common()
    others = [first_difference(common, answer) for answer in counts if answer != common]
    return Agreement(len(answers), agreeing, len(counts), min(others) if others else None)


def against(reference: Sequence[int], answers: Sequence[Sequence[int]]) -> Agreement:
    """Return the agreement of the answers with `reference`; raise ValueError if there are no answers.

    `distinct` counts the reference, `runs` and `agreeing` do not.
    """
    if not answers:
        raise ValueError("no answers to compare")
    expected = tuple(reference)
    others = [first_difference(expected, answer) for answer in answers if tuple(answer) != expected]
    distinct = len({expected, *(tuple(answer) for answer in answers)})
    return Agreement(len(answers), len(answers) - len(others), distinct, min(others) if others else None)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the index of the first differing token, or the shorter length if one sequence continues the other."""
    return next((index for index, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), min(len(a), len(b)))


def prompts_share(arms: Sequence[Mapping[str, bool]]) -> Figure:
    """Return the share of the prompts that agree in each arm, of those that are in all of them or differ in one.

    Prompts, not answers, are what n counts: repeated answers to one prompt are not independent.
    """
    differing = {prompt for arm in arms for prompt, agrees in arm.items() if not agrees}
    agreeing = set[str].intersection(*map(set, arms)) - differing if arms else set[str]()
    if not agreeing and not differing:
        return not_measured("%", _("no prompt was answered in every arm"))
    return share_figure(len(agreeing), len(agreeing) + len(differing))


def control_doubt(same: Mapping[str, bool]) -> Sentence:
    """Return why equal answers prove nothing, by which prompts get the same answer from other seeds too; empty where few do."""
    equal = sum(same.values())
    if len(same) - equal >= max(1, math.ceil(LEAST_UNLIKE * len(same))):
        return ""
    return _(
        "equal answers prove nothing: with a temperature, other seeds give the same answer too for {same} of {prompts} prompts",
        same=equal,
        prompts=len(same),
    )
