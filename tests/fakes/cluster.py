"""A real Ray cluster of several nodes on this machine, which can lose one."""

import os
import threading
from collections.abc import Callable
from typing import Any


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

    def kill(self, beginning: str) -> None:
        """Kill the node whose id begins so, as a machine that loses its power."""
        (found,) = [one for one in self.ray.worker_nodes if one.node_id.startswith(beginning)]
        self.ray.remove_node(found, allow_graceful=False)


def in_the_background(action: Callable[[], None]) -> threading.Thread:
    """Do it in a thread."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread
