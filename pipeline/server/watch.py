"""Notice that the server died while something was measured on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, ServerError
from pipeline.server import state
from pipeline.server.keys import key_of
from pipeline.server.loads import LOADS_FILE, Notebook
from pipeline.server.readiness import DEATH_S, died
from pipeline.server.state import Handle, Launch
from pipeline.vllm.metrics import PREEMPTIONS

TELLS_S = 2.0  # an API server whose engine died says so on /health within this


class Watch:
    """Looks at the processes of a launch; the API server's death counts at once, another's when the server says that it matters."""

    def __init__(self, leader: Handle | Launch, control: Control) -> None:
        self._leader = leader
        self._control = control
        self._others = [(process.pid, state.created_s(process.pid)) for process in state.session(leader.pid, leader.created)]
        self._doubt_since: float | None = None
        self._fell = False

    def alive(self) -> bool:
        """Tell whether the server lives, engine and workers included; helpers that end by themselves do not matter."""
        self._fell = self._fell or self._falls()
        return not self._fell

    def _falls(self) -> bool:
        if self._leader.pid is None:
            return not self._control.answers()
        if state.process(self._leader.pid, self._leader.created) is None:
            return True
        left = [known for known in self._others if state.process(*known) is not None]
        if len(left) < len(self._others):
            self._doubt_since = self._doubt_since or time.monotonic()
            if not self._control.answers():
                return True
            if time.monotonic() - self._doubt_since > TELLS_S:
                self._others, self._doubt_since = left, None
        return False


@contextmanager
def watched(handle: Handle, workspace: Workspace, who: str = "") -> Iterator[Endpoint]:
    """Measure inside on the target; a server that dies meanwhile is the failure, with its own cause, not the requests that it broke.

    Where `who` names itself, the load that it puts on a launch of ours is on record beside the launch's samples.
    """
    key = key_of(handle, workspace)
    control = Control(handle.base_url, key)
    watch = Watch(handle, control)
    notes = Notebook((workspace.root / handle.samples).with_name(LOADS_FILE), who) if who and handle.samples else None
    trouble: MeasureError | None = None
    try:
        target = Endpoint(handle.base_url, watch.alive, key)
        yield replace(target, loaded=notes.span) if notes else target
    except MeasureError as error:
        trouble = error
    if notes and trouble is None:
        with suppress(MeasureError, KeyError):
            notes.preemptions(time.monotonic(), int(control.metrics()[PREEMPTIONS]))
    fell = not watch.alive()
    if handle.pid is None or handle.created is None:
        if fell:
            raise ServerError(f"the server at {handle.base_url} no longer answers", "ask whoever runs it") from trouble
        if trouble is not None:
            raise trouble
        return
    # An engine that died takes its API server along a moment later, and only then the log tells all; /health says so at once.
    if state.dies_within(handle.pid, handle.created, DEATH_S if fell or not control.answers() else 0) or fell:
        raise died(workspace.root / handle.log, "died while it was measured") from trouble
    if trouble is not None:
        raise trouble
