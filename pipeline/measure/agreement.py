"""Agreement between repeated answers. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


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
