"""Capacity: the steady rate of a closed loop, the plan of a trial, and the search for the highest rate that is sustained. Pure."""

from collections.abc import Callable, Sequence

from pipeline.measure.statistics import wilson

SERVICES = 10  # a trial lasts so many service times
CLOSE = 0.03  # the search ends when the highest rate that met and the lowest that did not are so close
TRIAL_RISE = 0.05  # of latency per second of arrivals, above which a trial counts as overloaded: the rate is 5 % too high


def steady_per_s(spans: Sequence[tuple[float, float]], concurrency: int) -> float | None:
    """Return the completions per second of a closed loop while it was full, from (send, end) in seconds of each good answer.

    It is full from the send that fills it until the last send, after which it drains. None if there is no such time.
    """
    sends = sorted(sent for sent, _ in spans)
    if len(sends) <= concurrency or sends[-1] <= sends[concurrency - 1]:
        return None
    begin, end = sends[concurrency - 1], sends[-1]
    return sum(begin < ended <= end for _, ended in spans) / (end - begin)


def least_requests(goodput_percent: float) -> int:
    """Return how many requests, all of them good, lift the Wilson lower bound of goodput to this share, which is below 100 %."""
    n = 1
    while 100 * wilson(n, n)[0] < goodput_percent:
        n += 1
    return n


def trial_s(rate_per_s: float, requests: int, least_s: float, service_s: float) -> float:
    """Return the seconds of arrivals of a trial, without the ramp: `least_s`, ten service times, and enough for `requests`."""
    return max(least_s, SERVICES * service_s, requests / rate_per_s)


def highest(
    meets: Callable[[float], bool], top: float, steps: int, seconds: Callable[[float], float], budget_s: float
) -> tuple[float, float | None]:
    """Return (highest rate that met the condition twice, or 0; lowest rate that did not meet it once, or None).

    The search begins at `top`, never goes above it, and halves the gap between what met and what did not until 3 % are left. Then
    the rate found is tried again; if it fails, the search goes on below it. It takes at most `steps` trials and `budget_s` in total by
    `seconds`, the duration of a trial at a rate, and keeps one trial for the confirmation.
    """
    met: list[float] = []  # ascending; each higher one that met has failed its second trial
    missed: float | None = None
    for left in range(steps, 0, -1):
        best = met[-1] if met else 0.0
        rate = top if missed is None else (best + missed) / 2
        confirming = bool(met) and (
            missed is None or missed - best <= CLOSE * missed or left == 1 or seconds(rate) + seconds(best) > budget_s
        )
        rate = best if confirming else rate
        if seconds(rate) > budget_s:
            break
        budget_s -= seconds(rate)
        if meets(rate):
            if confirming:
                return rate, missed
            met.append(rate)
        else:
            missed = rate
            if confirming:
                met.pop()
    return 0.0, missed


def most_s(top: float, steps: int, seconds: Callable[[float], float], budget_s: float) -> float:
    """Return the longest time that a search can take: every trial at a lower rate lasts at least as long."""
    return min(budget_s, sum(seconds(top / 2**step) for step in range(steps)))
