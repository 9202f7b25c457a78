"""What happens beside the server: a neighbour on the client's core, and a wall clock that jumps."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from pipeline.load.generator import Connection

LATE_S = 0.003
JUMP_S = 3600.0


@contextmanager
def late_client() -> Iterator[None]:
    """Let the client stamp each block late, as where somebody else has its core when the block arrives."""
    punctual = Connection.data_received

    def late(self: Connection, data: bytes) -> None:
        time.sleep(LATE_S)
        punctual(self, data)

    with patch.object(Connection, "data_received", late):
        yield


@contextmanager
def wall_clock_jumps() -> Iterator[None]:
    """Let the wall clock jump by an hour between any two looks at it."""
    true_time, jumps = time.time, itertools.cycle((0.0, JUMP_S, -JUMP_S))
    with patch.object(time, "time", lambda: true_time() + next(jumps)):
        yield
