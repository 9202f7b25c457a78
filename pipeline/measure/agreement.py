"""Do repeated answers agree? Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """N answers to one prompt: how many agree with the commonest, how many differ, where the first difference is."""

    runs: int
    agreeing: int
    distinct: int
    first_divergence: int | None

    @property
    def all_agree(self) -> bool:
        return self.agreeing == self.runs


def agreement(answers: Sequence[Sequence[int]]) -> Agreement:
    """Return the agreement of token-id sequences; ValueError without any."""
    if not answers:
        raise ValueError("no answers to compare")
    counts = Counter(tuple(answer) for answer in answers)
    (common, agreeing), *_ = counts.most_common()
    others = [first_difference(common, answer) for answer in counts if answer != common]
    return Agreement(len(answers), agreeing, len(counts), min(others) if others else None)


def against(reference: Sequence[int], answers: Sequence[Sequence[int]]) -> Agreement:
    """Return how the answers agree with `reference`, which is not counted itself; ValueError without any."""
    if not answers:
        raise ValueError("no answers to compare")
    same = tuple(reference)
    others = [first_difference(same, answer) for answer in answers if tuple(answer) != same]
    distinct = len({same, *(tuple(answer) for answer in answers)})
    return Agreement(len(answers), len(answers) - len(others), distinct, min(others) if others else None)


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the index of the first token that differs; the shorter length when one continues the other."""
    return next((index for index, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), min(len(a), len(b)))
