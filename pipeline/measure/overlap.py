"""Was the load there while a request lived? Pure."""

import itertools
from collections.abc import Sequence

Reading = tuple[float, int]  # when (s), how many requests ran


def readings_within(readings: Sequence[Reading], begin_s: float, end_s: float) -> int:
    """Return how many of the readings were taken in that span."""
    return sum(begin_s <= at <= end_s for at, _ in readings)


def loaded_share(readings: Sequence[Reading], begin_s: float, end_s: float, least: int, apart_s: float) -> float:
    """Return the share of the span in which at least `least` requests ran, as far as the readings prove it; 0 for an empty span.

    `readings` are in the order of time. A stretch between two neighbours counts when both show the load and lie at most `apart_s`
    or a tenth of the span apart, whichever is longer; before the first reading and after the last nothing is proven.
    """
    span = end_s - begin_s
    if span <= 0:
        return 0.0
    longest = max(apart_s, span / 10)
    loaded = 0.0
    for (left, before), (right, after) in itertools.pairwise(readings):
        if min(before, after) >= least and right - left <= longest:
            loaded += max(0.0, min(right, end_s) - max(left, begin_s))
    return loaded / span
