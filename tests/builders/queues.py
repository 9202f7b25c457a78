"""A server of c slots, computed event by event: its clock is simulated, so that an hour of load takes a moment and is always the same."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.client.answer import Answer
from pipeline.load.spread import Batch
from pipeline.measure.arrivals import schedule

Service = Literal["deterministic", "erlang", "exponential"]


@dataclass
class SlotServer:
    """A first-come, first-served queue with `slots` servers; its capacity is `slots` / `service_s`.

    Erlang services (of 4 phases) are as regular as those of a real server; deterministic and exponential ones are the two ends.
    """

    slots: int
    service: Service = "deterministic"
    service_s: float = 1.0
    seed: int = 0
    trials: list[float] = field(default_factory=list)

    @property
    def capacity_per_s(self) -> float:
        return self.slots / self.service_s

    def __post_init__(self) -> None:
        self.source = random.Random(self.seed)

    def serve_s(self) -> float:
        """Draw a service time."""
        if self.service == "deterministic":
            return self.service_s
        phases = 1 if self.service == "exponential" else 4
        return self.source.gammavariate(phases, self.service_s / phases)

    def open_loop(self, due_s: Sequence[float]) -> Batch:
        """Return the answers to requests that arrive by a schedule."""
        free = [0.0] * self.slots
        answers = []
        for due in due_s:
            end = max(heapq.heappop(free), due) + self.serve_s()
            heapq.heappush(free, end)
            answers.append(answered(due, end))
        return Batch(answers, max(free), 0.0)

    def closed_loop(self, concurrency: int, requests: int, seconds: float) -> Batch:
        """Return the answers of a closed loop of at least so many requests and seconds."""
        free, sends = [0.0] * self.slots, [0.001 * number for number in range(concurrency)]
        answers: list[Answer] = []
        while sends:
            send = heapq.heappop(sends)
            if len(answers) >= requests and send >= seconds:
                continue
            end = max(heapq.heappop(free), send) + self.serve_s()
            heapq.heappush(free, end)
            heapq.heappush(sends, end)
            answers.append(answered(send, end))
        return Batch(answers, max(free), 0.0)

    def trial(self, rate_per_s: float, requests: int, seed: int) -> Batch:
        """Return the answers to Poisson arrivals, as `find_capacity` asks for them."""
        self.trials.append(rate_per_s)
        return self.open_loop(schedule("poisson", rate_per_s, requests, seed))


def answered(send_s: float, end_s: float) -> Answer:
    """Return an answer of two tokens, the first of them halfway between the last moment in the queue and the end."""
    send, end = int(send_s * 1e9), int(end_s * 1e9)
    return Answer(send, end - 1, end, [end - 1, end], tokens=2, scheduled_ns=send)
