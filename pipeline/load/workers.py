"""Load clients on a Ray cluster: placed on its nodes and started together; losing one fails the measurement."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from pipeline.cluster import NICENESS, join_cluster, pack
from pipeline.config.schema import BenchConfig, is_loopback
from pipeline.errors import MachineError, MeasureError, first_line
from pipeline.load import on_node
from pipeline.load.clocks import Clock, clock_between, clock_by
from pipeline.load.generator import LIVENESS_CHECK_S
from pipeline.load.spread import LEAD_NS, ClientResult, Crew, Task
from pipeline.measure.digits import counted

PACKAGE = Path(__file__).resolve().parents[1]
BOOT = Path("/proc/sys/kernel/random/boot_id")
PLACED_S = 60.0
CLOSED_S = 5.0
TRIPS = 10  # the shortest of them gives the clock
SETTING = "bench.ray_address"
INSTALL = "install it with `.venv/bin/python -m pipeline.packages requirements/ray.txt`, or leave bench.ray_address empty"
RUN_AGAIN = (
    "see Ray's logs there (/tmp/ray/session_latest/logs), then run the same command: what was measured without it would be another load"
)


class Workers:
    """A crew of `count` load clients on the Ray cluster at `address`."""

    def __init__(self, address: str, count: int, urls: Sequence[str], say: Callable[[str], None]) -> None:
        self.count = count
        self._ray = join_cluster(address, SETTING, INSTALL)
        self._holders: list[Any] = []
        self._names: list[str] = []
        try:
            self._place(address)
            self._report_placement(urls, say)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _place(self, address: str) -> None:
        cores = sum(node["Resources"].get("CPU", 0.0) for node in self._ray.nodes() if node["Alive"])
        if cores < self.count:
            raise MachineError(
                f"the Ray cluster at {address} has {cores:g} CPUs, and bench.ray_clients asks for {self.count} load clients, a CPU each",
                "take fewer clients, or join more nodes to it",
            )
        self._ray.cloudpickle.register_pickle_by_value(on_node)
        package = self._ray.put(pack(PACKAGE.parent, [PACKAGE.name]))
        # One thread waits for the client; another must be free to end it.
        options = {"num_cpus": 1, "max_concurrency": 2, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        holder = self._ray.remote(on_node.Holder).options(**options)
        self._holders = [holder.remote(package) for _ in range(self.count)]
        self._names = ["a node not known yet"] * self.count
        location_calls = [holder.where.remote() for holder in self._holders]
        _, waiting = self._ray.wait(location_calls, num_returns=self.count, timeout=PLACED_S)
        if waiting:
            raise MachineError(
                f"the Ray cluster at {address} has room for {self.count - len(waiting)} of {self.count} load clients now",
                "wait until others there give their CPUs back, or set bench.ray_clients lower",
            )
        self._locations = [self._result_of(number, call) for number, call in enumerate(location_calls)]
        self._names = [f"{where['host']} (node {where['node'][:8]})" for where in self._locations]

    def _report_placement(self, urls: Sequence[str], say: Callable[[str], None]) -> None:
        """Report where the clients are; raise MeasureError if they cannot reach the servers."""
        say(f"bench: {counted(self.count, 'load client')} on {counted(self.nodes, 'node')}: {', '.join(sorted(set(self._names)))}")
        own = BOOT.read_text(encoding="ascii").strip()
        refuse_unreachable(urls, [where["host"] for where in self._locations if where["boot"] != own])
        niceness = max(where["niceness"] for where in self._locations)
        if niceness > os.getpriority(os.PRIO_PROCESS, 0):
            say(f"bench: load clients run with niceness {niceness}, so others' work delays them: start Ray there with {NICENESS}=0")

    @property
    def nodes(self) -> int:
        return len({where["node"] for where in self._locations})

    def run(self, tasks: Sequence[Task], alive: Callable[[], bool]) -> list[ClientResult | None]:
        """Run each task in a new process on its client's node, as described in `Crew.run`."""
        holders = self._holders[: len(tasks)]
        start_calls = [holder.start.remote(pickle.dumps(task)) for holder, task in zip(holders, tasks, strict=True)]
        for number, reference in enumerate(start_calls):
            trouble = self._result_of(number, reference)
            if trouble:
                raise MeasureError(
                    f"the load client on {self._names[number]} did not start: {trouble}",
                    "every node needs the same Python and this checkout's .venv",
                )
        before = [self._clock(number) for number in range(len(tasks))]
        start_ns = time.perf_counter_ns() + LEAD_NS
        run_calls = [holder.go.remote(start_ns + clock.ahead_ns) for holder, clock in zip(holders, before, strict=True)]
        results: dict[int, bytes] = {}
        gone = False
        while len(results) < len(tasks) and not gone:
            waiting = [reference for number, reference in enumerate(run_calls) if number not in results]
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=LIVENESS_CHECK_S)
            gone = not alive()
            if gone:  # requests without a result from their client by then count as failed
                self._ray.wait([holder.end.remote() for holder in holders], num_returns=len(holders), timeout=CLOSED_S)
                ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=CLOSED_S)
            for reference in ready:
                number = run_calls.index(reference)
                results[number], trouble = self._result_of(number, reference)
                if trouble and not gone:
                    raise MeasureError(f"the load client on {self._names[number]} ended in mid-measurement: {trouble}", RUN_AGAIN)
        clocks = before if gone else [clock_between(clock, self._clock(number)) for number, clock in enumerate(before)]
        ordered = [results.get(number) for number in range(len(tasks))]
        return [ClientResult(pickle.loads(result), clock) if result else None for result, clock in zip(ordered, clocks, strict=True)]

    def _clock(self, number: int) -> Clock:
        """Return the clock of a client's host, measured by round trips through Ray."""
        trips = []
        for _ in range(TRIPS):
            sent_ns = time.perf_counter_ns()
            their_ns = self._result_of(number, self._holders[number].clock.remote())
            trips.append((sent_ns, their_ns, time.perf_counter_ns()))
        return clock_by(trips)

    def _result_of(self, number: int, reference: Any) -> Any:
        """Return the result of a call to a client; raise MeasureError if it failed or the client is lost."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise MeasureError(
                f"the load client on {self._names[number]} failed: {str(error).strip().splitlines()[-1]}", RUN_AGAIN
            ) from error
        except self._ray.exceptions.RayError as error:
            raise MeasureError(f"the load client on {self._names[number]} was lost: {first_line(error)}", RUN_AGAIN) from error

    def close(self) -> None:
        """End the clients and what they started, and leave the cluster."""
        with suppress(Exception):
            close_calls = [holder.close.remote() for holder in self._holders]
            if close_calls:
                self._ray.wait(close_calls, num_returns=len(close_calls), timeout=CLOSED_S)
        for holder in self._holders:
            with suppress(Exception):
                self._ray.kill(holder)
        self._ray.shutdown()


@contextmanager
def crew_of(settings: BenchConfig, urls: Sequence[str], say: Callable[[str], None]) -> Iterator[Crew | None]:
    """Provide the configured load clients inside the block; None if no cluster is configured."""
    if settings.ray_address is None:
        yield None
        return
    with Workers(settings.ray_address, settings.ray_clients, urls, say) as workers:
        yield workers


def refuse_unreachable(urls: Sequence[str], hosts: Sequence[str]) -> None:
    """Raise MeasureError if a server has a loopback address and there are clients on other `hosts`."""
    own = next((url for url in urls if is_loopback(urlsplit(url).hostname or "")), None)
    if own is not None and hosts:
        raise MeasureError(
            f"{own} is this machine's own address, and there are load clients on {', '.join(sorted(set(hosts)))}",
            "start the server with serve.host 0.0.0.0, and measure it with --attach http://THIS-HOST:PORT",
        )
