"""Cells on Ray: one on each node, or on each of its GPUs; retried when a node is lost; Ctrl-C ends them and all that they started."""

import io
import os
import secrets
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cluster import NICENESS, join_cluster, pack
from pipeline.errors import first_line
from pipeline.measure.units import MIB
from pipeline.sweep import node as on_node

POLL_S = 0.5
WORKER_S = 20.0  # for a worker to confirm that its cell is stopped
UNSTARTED = 5  # how often a cell is placed again when its node is lost before it starts
BELIEVED_S = 2.0  # the first pause before that, doubled each time: Ray believes in a dead node for up to half a minute
LEAST_CORES = 4  # of a cell beside others: API server, engine, worker and load client
PROJECT = ("tasks.py", "config.yaml", "pipeline", "templates", "suites", "requirements")


@dataclass(frozen=True)
class CellOrder:
    """A cell to run: its folder's name, the GPUs it needs, the instructions for its node, and whether it may share the node."""

    cell: str
    gpus: int
    instructions: dict[str, Any]
    shared: bool = False


@dataclass(frozen=True)
class Ended:
    """How a cell's run ended: its exit code or None, the node, the time, the losses of nodes, its message, and folders left on its node."""

    code: int | None
    where: str
    took_s: float | None
    lost: int
    said: str
    left: tuple[str, ...] = ()


@dataclass
class Placed:
    """A cell that Ray is placing or running; `slots` are the shares of its node that it has, by number, if it shares the node."""

    order: CellOrder
    actor: Any
    reference: Any
    where: str = ""
    node: str = ""
    slots: tuple[int, ...] = ()
    running: bool = False
    lost: int = 0
    unstarted: int = 0
    due_s: float = 0.0


class Nodes:
    """A Ray cluster: our own on this machine, or the one at `address`."""

    def __init__(self, address: str | None, gpus: int, object_store_mib: int) -> None:
        resources = {"num_cpus": os.cpu_count() or 1, "num_gpus": gpus, "object_store_memory": object_store_mib * MIB}
        install = "run it as `./inv sweep`, which installs it"
        self.ray: Any = join_cluster(address, "--ray-address", install, **({} if address else resources))
        self.ray.cloudpickle.register_pickle_by_value(on_node)

    def alive(self) -> list[Mapping[str, float]]:
        """Return the resources of each live node."""
        return [found["Resources"] for found in self.ray.nodes() if found["Alive"]]

    def gpus(self, node: str) -> int:
        """Return the number of GPUs of a node; 0 if it is gone."""
        return next((int(found["Resources"].get("GPU", 0.0)) for found in self.ray.nodes() if found["NodeID"] == node), 0)

    def cards(self) -> list[tuple[str, float]]:
        """Return (name, total MiB) of the GPUs of every node, from NVML on each."""
        nodes = [found for found in self.ray.nodes() if found["Alive"] and found["Resources"].get("GPU")]
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        remote_cards = self.ray.remote(num_cpus=0)(on_node.cards)
        references = [remote_cards.options(scheduling_strategy=strategy(found["NodeID"], soft=False)).remote() for found in nodes]
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=60) if references else ([], [])
        found: list[tuple[str, float]] = []
        for reference in ready:
            with suppress(self.ray.exceptions.RayError):
                found += self.ray.get(reference)
        return found

    def close(self) -> None:
        self.ray.shutdown()


def part_of(node: Mapping[str, float], gpus: int) -> float:
    """Return the cores of a node that belong to a group of so many of its GPUs, at least one."""
    return node.get("CPU", 0.0) // (node.get("GPU", 0.0) // gpus)


def shareable(nodes: Iterable[Mapping[str, float]], gpus: int) -> bool:
    """Tell whether a node has GPUs for two such cells, and cores enough for each."""
    return gpus > 0 and any(found.get("GPU", 0.0) >= 2 * gpus and part_of(found, gpus) >= LEAST_CORES for found in nodes)


def cores_for(nodes: Iterable[Mapping[str, float]], gpus: int, shared: bool = False) -> float:
    """Return how many cores a cell requests; 0 if no node can run it.

    A cell that shares its node requests the cores that belong to its GPUs, on the node where these are fewest. No two others fit
    on a node: each requests the core count of the smallest node with more than half of the largest one's, on equal nodes all cores.
    """
    usable = [found for found in nodes if found.get("GPU", 0.0) >= gpus]
    if shared:
        return min((count for count in (part_of(found, gpus) for found in usable) if count >= LEAST_CORES), default=0.0)
    cores = [found.get("CPU", 0.0) for found in usable]
    return min((count for count in cores if count > max(cores) / 2), default=0.0)


def slots(nodes: Sequence[Mapping[str, float]], orders: Iterable[CellOrder]) -> int:
    """Return how many cells may run at once: on each node one that can use it, or as many as share it."""
    kinds = {(order.gpus, order.shared) for order in orders}
    demands = [(gpus, shared, cores) for gpus, shared in kinds if (cores := cores_for(nodes, gpus, shared))]
    return sum(max((room(found, *demand) for demand in demands), default=0) for found in nodes)


def room(node: Mapping[str, float], gpus: int, shared: bool, cores: float) -> int:
    """Return how many cells of a kind fit on the node."""
    if node.get("GPU", 0.0) < gpus or node.get("CPU", 0.0) < cores:
        return 0
    return int(min(node["GPU"] // gpus, node["CPU"] // cores)) if shared else 1


@dataclass(frozen=True)
class Listener:
    """Callbacks for the progress of orders: lines to show, each start with its node, each end.

    The last returns an order that must follow when no cell shares a node any more; None if there is none.
    """

    say: Callable[[str], None]
    started: Callable[[CellOrder, str], None]
    ended: Callable[[CellOrder, Ended], CellOrder | None]


class Placing:
    """Runs orders on nodes."""

    def __init__(
        self,
        nodes: Nodes,
        root: Path,
        retries: int,
        stop_s: float,
        listener: Listener,
        shared: bool = True,
    ) -> None:
        self._nodes = nodes
        self._ray = nodes.ray
        self._root = root
        self._retries = retries
        self._stop_s = stop_s
        self._listener = listener
        self._token = root / on_node.SWEEPS / f".token.{os.getpid()}"
        self._word = secrets.token_hex(8) if shared else ""
        self._placed: list[Placed] = []
        self._following: list[CellOrder] = []
        self._project: Any = None

    def run(self, orders: Sequence[CellOrder]) -> None:
        """Run every order, first those that share nodes; on any exception, first end what runs on every node."""
        self._token.write_text(self._word or "not to be found", encoding="utf-8")
        alive = self._nodes.alive()
        sharing = [order for order in orders if order.shared and shareable(alive, order.gpus)]
        alone = [replace(order, shared=False) for order in orders if order not in sharing]
        try:
            self._run(sorted(sharing, key=lambda order: -order.gpus))  # small cells leave no room for a large one
            self._run([*alone, *self._following])
        except BaseException:
            self._end_all()
            raise
        finally:
            self._token.unlink(missing_ok=True)

    def _run(self, orders: Sequence[CellOrder]) -> None:
        """Run these orders."""
        waiting = deque(Placed(order, None, None) for order in orders)
        while waiting or self._placed:
            alive = self._nodes.alive()
            for placed in waiting:  # the nodes that could be shared may be lost meanwhile
                placed.order = replace(placed.order, shared=placed.order.shared and shareable(alive, placed.order.gpus))
            free = slots(alive, [placed.order for placed in (*waiting, *self._placed)]) - len(self._placed)
            due = [placed for placed in waiting if placed.due_s <= time.monotonic()]
            for placed in due[: max(free, 0)]:
                waiting.remove(placed)
                self._place(placed, alive)
            if due and not self._placed and free <= 0:
                waiting.remove(due[0])
                self._give_up(due[0], "no node that could run it is left")
                continue
            if not self._placed:
                time.sleep(POLL_S if waiting else 0)
                continue
            by_reference = {placed.reference: placed for placed in self._placed}
            ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=POLL_S)
            for reference in ready:
                retry = self._step(by_reference[reference])
                if retry is not None:
                    waiting.appendleft(retry)

    def _place(self, placed: Placed, alive: Sequence[Mapping[str, float]]) -> None:
        """Ask Ray for a worker on a node that no other cell uses, or for its part of one that is shared."""
        cores = cores_for(alive, placed.order.gpus, placed.order.shared)
        if not cores:
            self._give_up(placed, "no node that could run it is left")
            return
        # One thread runs the cell; another must be free to stop it.
        worker = self._ray.remote(on_node.Runner).options(num_cpus=cores, num_gpus=placed.order.gpus, max_concurrency=3, max_restarts=0)
        placed.actor = worker.remote()
        placed.reference = placed.actor.where.remote(str(self._token), self._word)
        placed.running, placed.slots = False, ()
        self._placed.append(placed)

    def _step(self, placed: Placed) -> Placed | None:
        """Process a worker's report; return the cell if it must be placed again."""
        try:
            report = self._ray.get(placed.reference)
        except self._ray.exceptions.RayTaskError as error:
            self._remove(placed)
            self._give_up(placed, f"the worker failed: {str(error).strip().splitlines()[-1]}")
            return None
        except self._ray.exceptions.RayError as error:
            self._remove(placed)
            return self._count_loss(placed, first_line(error))
        if not placed.running:
            placed.running = True
            placed.node, placed.where = report["node"], f"{report['host']} (node {report['node'][:8]})"
            instructions = placed.order.instructions
            if placed.order.shared:
                total = self._nodes.gpus(placed.node)
                taken = {slot for other in self._placed if other.node == placed.node for slot in other.slots}
                placed.slots = tuple(slot for slot in range(total) if slot not in taken)[: placed.order.gpus]
                placed.where += f", GPU {report['gpus']}"
                instructions = {**instructions, "slots": placed.slots, "slots_of": total}
            self._listener.started(placed.order, placed.where)
            if report["niceness"] > os.getpriority(os.PRIO_PROCESS, 0):
                behind = f"runs with niceness {report['niceness']}, so others' work slows it down: start Ray there with {NICENESS}=0"
                self._listener.say(f"{placed.order.cell}: {behind}")
            placed.reference = placed.actor.run.remote(instructions, None if report["shared"] else self._packed())
            return None
        self._remove(placed)
        if report["archive"] is not None:
            unpack(report["archive"], self._root / on_node.SWEEPS / placed.order.cell)
        how = Ended(report["code"], placed.where, report["took_s"], placed.lost, report["said"], tuple(report["left"]))
        following = self._listener.ended(placed.order, how)
        self._following += [following] if following is not None else []
        return None

    def _count_loss(self, placed: Placed, why: str) -> Placed | None:
        """Count the loss; return the cell if it may be tried again."""
        if placed.running:
            placed.lost += 1
        else:
            placed.due_s = time.monotonic() + BELIEVED_S * 2**placed.unstarted
            placed.unstarted += 1
        if placed.lost > self._retries or placed.unstarted > UNSTARTED:
            self._give_up(placed, f"its node was lost {placed.lost + placed.unstarted} times, the last time: {why}")
            return None
        where = f" on {placed.where}" if placed.where else ""
        self._listener.say(f"{placed.order.cell}: lost{where}, to be tried again: {why}")
        return placed

    def _give_up(self, placed: Placed, why: str) -> None:
        self._listener.ended(placed.order, Ended(None, placed.where, None, placed.lost, why))

    def _remove(self, placed: Placed) -> None:
        """Release the worker and its node."""
        self._placed.remove(placed)
        with suppress(Exception):
            self._ray.kill(placed.actor)

    def _end_all(self) -> None:
        """End every cell and everything it started, and wait for that; then kill the workers."""
        if not self._placed:
            return
        self._listener.say(f"stopping the cells that run ({len(self._placed)}), and what they started")
        stops = [placed.actor.stop.remote() for placed in self._placed]
        with suppress(KeyboardInterrupt):  # a second Ctrl-C: do not wait
            self._ray.wait(stops, num_returns=len(stops), timeout=self._stop_s + WORKER_S)
        for placed in self._placed:
            with suppress(Exception):
                self._ray.kill(placed.actor)

    def _packed(self) -> Any:
        """Return the packed project in the object store, for nodes that do not see its folder."""
        if self._project is None:
            self._project = self._ray.put(pack(self._root, PROJECT))
        return self._project


def unpack(archive: bytes, folder: Path) -> None:
    """Extract a node's archive into the cell's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")
