"""Comparison of predicted labels with golden ones: confusion, macro-F1, majority baseline, McNemar's test. Pure."""

import math
from collections import Counter
from collections.abc import Sequence

Confusion = dict[str, dict[str, int]]


def confusion(golden: Sequence[str], predicted: Sequence[str]) -> Confusion:
    """Return the counts as {golden: {predicted: count}}, the golden labels in alphabetical order."""
    counts = Counter(zip(golden, predicted, strict=True))
    return {
        label: {guess: counts[label, guess] for guess in sorted(set(predicted)) if counts[label, guess]} for label in sorted(set(golden))
    }


def macro_f1(golden: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the unweighted mean of F1 = 2 tp / (2 tp + fp + fn) over the golden labels, from 0 to 1; raise ValueError without any."""
    labels = sorted(set(golden))
    if not labels:
        raise ValueError("no labels to compare")
    pairs = Counter(zip(golden, predicted, strict=True))
    correct = {label: pairs[label, label] for label in labels}
    golden_counts, predicted_counts = Counter(golden), Counter(predicted)
    return sum(2 * correct[label] / (golden_counts[label] + predicted_counts[label]) for label in labels) / len(labels)


def majority_share(golden: Sequence[str]) -> tuple[str, int]:
    """Return the most common golden label and its count; raise ValueError without any."""
    if not golden:
        raise ValueError("no labels to count")
    return max(sorted(Counter(golden).items()), key=lambda entry: entry[1])


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the two-sided exact p of McNemar's test (McNemar 1947; binomial on the discordant pairs)."""
    n = only_first + only_second
    tail: float = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)
