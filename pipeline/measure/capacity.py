"""Search for the highest rate that still meets a condition. Pure except for the condition itself."""

from collections.abc import Callable


def highest(meets: Callable[[float], bool], top: float, steps: int) -> tuple[float, float | None]:
    """Return (highest rate that met the condition, lowest that did not or None) after at most `steps` trials of bisection.

    The first trial is at `top`. The condition is assumed to hold at 0, and below any rate at which it holds.
    """
    good, bad = 0.0, None
    rate = top
    for _ in range(steps):
        if meets(rate):
            good = rate
        else:
            bad = rate
        if bad is None:
            break
        rate = (good + bad) / 2
    return good, bad
