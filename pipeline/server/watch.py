"""Detection of a server's death while it is measured."""

import time
from collections.abc import Iterator, Mapping
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

TELLS_S = 2.0  # an API server reports the death of its engine on /health within this time


class Watch:
    """A watch on the processes of a launch: the API server's death counts at once, another's only when /health fails."""

    def __init__(self, leader: Handle | Launch, control: Control) -> None:
        self._leader = leader
        self._control = control
        self._others = [(process.pid, state.created_s(process.pid)) for process in state.session(leader.pid, leader.created)]
        self._doubt_since: float | None = None
        self._dead = False

    def alive(self) -> bool:
        """Tell whether the server lives, engine and workers included; a helper may end without harm."""
        self._dead = self._dead or self._dies()
        return not self._dead

    def _dies(self) -> bool:
        if self._leader.pid is None:
            return not self._control.answers()
        if state.process(self._leader.pid, self._leader.created) is None:
            return True
        remaining = [entry for entry in self._others if state.process(*entry) is not None]
        if len(remaining) < len(self._others):
            self._doubt_since = self._doubt_since or time.monotonic()
            if not self._control.answers():
                return True
            if time.monotonic() - self._doubt_since > TELLS_S:
                self._others, self._doubt_since = remaining, None
        return False


def served_models(control: Control) -> dict[str, str] | None:
    """Return the folder of each model that the server names, and its version; None where it does not tell."""
    try:
        return {"vLLM": control.version(), **{card.id: f"{card.root}" for card in control.models()}}
    except MeasureError:
        return None


def insist_on_same(before: Mapping[str, str] | None, control: Control) -> None:
    """Raise MeasureError if the server no longer serves what it served `before`; a model that was added does not matter."""
    after = served_models(control)
    if before is None or after is None:
        return
    changed = next((name for name, folder in before.items() if after.get(name) != folder), None)
    if changed is not None:
        raise MeasureError(
            f"the server changed while it was measured: {changed} was {before[changed]}, then {after.get(changed, 'gone')}",
            "measure again while nobody changes the server",
        )


@contextmanager
def watched(handle: Handle, workspace: Workspace, who: str = "") -> Iterator[Endpoint]:
    """Yield the endpoint to measure; if the server dies meanwhile, raise its cause of death instead of the failed requests' error.

    MeasureError also if the server serves another model or version afterwards. With a sender's name in `who`, its load on a launch
    of ours is recorded beside the launch's samples.
    """
    key = key_of(handle, workspace)
    control = Control(handle.base_url, key, handle.request_fields)
    watch = Watch(handle, control)
    before = served_models(control)
    notebook = Notebook((workspace.root / handle.samples).with_name(LOADS_FILE), who) if who and handle.samples else None
    failure: MeasureError | None = None
    try:
        target = Endpoint(handle.base_url, watch.alive, key, fields=handle.request_fields)
        yield replace(target, loaded=notebook.span) if notebook else target
        insist_on_same(before, control)
    except MeasureError as error:
        failure = error
    if notebook and failure is None:
        with suppress(MeasureError, KeyError):
            notebook.preemptions(time.monotonic(), int(control.metrics()[PREEMPTIONS]))
    dead = not watch.alive()
    if handle.pid is None or handle.created is None:
        if dead:
            raise ServerError(f"the server at {handle.base_url} no longer answers", "ask whoever runs it") from failure
        if failure is not None:
            raise failure
        return
    # After an engine's death /health fails at once; the API server ends a moment later, and only then is the log complete.
    if state.dies_within(handle.pid, handle.created, DEATH_S if dead or not control.answers() else 0) or dead:
        raise died(workspace.root / handle.log, "died while it was measured") from failure
    if failure is not None:
        raise failure
