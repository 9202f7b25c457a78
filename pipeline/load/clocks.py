"""Conversion of stamps between hosts; each client stamps with its own host's monotonic clock. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.client.answer import Answer


@dataclass(frozen=True)
class Clock:
    """How far a clock is ahead of ours, and the largest possible error of that in either direction (ns)."""

    ahead_ns: int = 0
    bound_ns: int = 0


def clock_by(trips: Sequence[tuple[int, int, int]]) -> Clock:
    """Return the clock from the shortest of several round trips (our time at send, their time, our time at receipt), as NTP does.

    Their time was read at some moment in between, so the midpoint is off by half the round trip at most.
    """
    sent_ns, their_ns, received_ns = min(trips, key=lambda trip: trip[2] - trip[0])
    return Clock(their_ns - (sent_ns + received_ns) // 2, (received_ns - sent_ns + 1) // 2)


def clock_between(before: Clock, after: Clock) -> Clock:
    """Return the clock for the time between two readings; half the drift between them widens the error."""
    drift_ns = abs(after.ahead_ns - before.ahead_ns)
    return Clock((before.ahead_ns + after.ahead_ns) // 2, max(before.bound_ns, after.bound_ns) + (drift_ns + 1) // 2)


def apart_ns(clocks: Sequence[Clock]) -> int:
    """Return the largest possible error of the time between stamps of two clients; stamps of one client share a clock."""
    widest = sorted((clock.bound_ns for clock in clocks), reverse=True)[:2]
    return sum(widest) if len(widest) == 2 else 0


def by_ours(answer: Answer, clock: Clock) -> Answer:
    """Return the answer with all its stamps converted to our clock; its latencies stay the same."""
    ahead = clock.ahead_ns
    if not ahead:
        return answer
    moved = replace(answer, sent_ns=answer.sent_ns - ahead, scheduled_ns=answer.scheduled_ns - ahead)
    if not answer.ok:
        return moved
    return replace(
        moved,
        first_ns=answer.first_ns - ahead,
        last_ns=answer.last_ns - ahead,
        chunk_ns=[at - ahead for at in answer.chunk_ns],
        first_byte_ns=answer.first_byte_ns - ahead,
        answer_ns=answer.answer_ns - ahead if answer.answer_ns else 0,
    )
