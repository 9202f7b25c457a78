"""Notice that the server died while something was measured on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.client.control import Control
from pipeline.errors import MeasureError
from pipeline.server import state
from pipeline.server.readiness import DEATH_S, died


@contextmanager
def watched(pid: int, created: float, base_url: str, log: Path) -> Iterator[None]:
    """Measure inside; a server that dies meanwhile is the failure, with its own cause, not the requests that it broke."""
    trouble: MeasureError | None = None
    try:
        yield
    except MeasureError as error:
        trouble = error
    # An engine that died takes its API server along a moment later; /health says so at once.
    if state.dies_within(pid, created, 0 if Control(base_url).answers() else DEATH_S):
        raise died(log, "died while it was measured") from trouble
    if trouble is not None:
        raise trouble
