"""A real Ray cluster of several nodes on this machine, which can lose one."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class Cluster:
    """A head without cores, and two nodes with two cores each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        # A dead node is believed dead after 2 s instead of 15; one that is only slow has 10 s to answer.
        patience = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2, "health_check_timeout_ms": 10_000}
        self.ray: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": patience, **small})
        for _ in range(2):
            self.add()

    def add(self) -> None:
        os.environ.pop("RAY_worker_niceness", None)  # of a local sweep
        self.ray.add_node(num_cpus=2, object_store_memory=80 * 2**20)

    @contextmanager
    def gpus(self, count: int, cores: int, **variables: str) -> Iterator[None]:
        """Add a node that says it has so many GPUs and cores, with these environment variables, while the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_worker_niceness", "0")
            for name, value in variables.items():
                patch.setenv(name, value)
            node = self.ray.add_node(num_cpus=cores, num_gpus=count, object_store_memory=80 * 2**20)
        try:
            yield
        finally:
            self.ray.remove_node(node)

    def kill(self, beginning: str) -> None:
        """Kill the node whose id begins so, as a machine that loses its power."""
        (found,) = [one for one in self.ray.worker_nodes if one.node_id.startswith(beginning)]
        self.ray.remove_node(found, allow_graceful=False)


def in_the_background(action: Callable[[], None]) -> threading.Thread:
    """Do it in a thread."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread
