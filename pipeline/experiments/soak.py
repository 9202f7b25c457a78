"""soak: the load of measure-vram for hours; the record is rewritten each minute, so that an interrupted soak can be continued."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pipeline.client.endpoint import Endpoint
from pipeline.config.schema import VramConfig
from pipeline.engine.fingerprint import differences
from pipeline.engine.record import SOAK_NOTE as NOTE
from pipeline.engine.record import Outcome, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, MeasureError, NothingAnsweredError
from pipeline.measure.memory import S_PER_H
from pipeline.measure.verdicts import Judgement, exit_code, judge
from pipeline.report.cells import measured
from pipeline.report.formats.plain import Plain
from pipeline.report.sections.soak import LABELS
from pipeline.server.watch import watched
from pipeline.stages.check_gpu import Machine
from pipeline.stages.measure_vram import SLICE_S, LaunchMemory, Load, Soak, SoakState, apply_load, budget_of, memory_use, with_readings
from pipeline.stages.serve import Server
from pipeline.vllm.meter import metered

LEAST_LOAD_S = 300  # as the shipped gates on stability ask


def parse_hours(hours: str) -> float:
    """Return the number of hours; ConfigError for anything but a finite number above 0."""
    try:
        value = float(hours)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--hours: expected a number above 0, got {hours!r}", "for example --hours 4, or --hours 0.5")
    return value


def because(settings: VramConfig, server: Server) -> dict[str, Any]:
    """Return what must stay the same for a soak to be continued."""
    return {"launch": server.handle.launch_id, "concurrency": settings.concurrency}


def begun(settings: VramConfig, server: Server, anew: bool, workspace: Workspace) -> tuple[Load, datetime]:
    """Return the load so far and when it began; a record that cannot be continued is kept under another name."""
    store = Store(workspace.artifacts)
    path = store.path(NOTE)
    if not path.exists():
        return Load(preempted=0), now()
    outcome: Outcome[Soak] = store.outcome(NOTE, Soak)
    why = "asked to" if anew else "the old record is of another form"
    if outcome.data is not None and outcome.envelope is not None and not anew:
        why = "; ".join(differences(outcome.envelope.because, because(settings, server)))
        if not why:
            workspace.say(f"soak: going on after {outcome.data.load.seconds / S_PER_H:.3g} h of load")
            return outcome.data.load, outcome.envelope.started
    kept = store.path(free_name(store, datetime.fromtimestamp(path.stat().st_mtime, UTC)))
    path.rename(kept)
    workspace.say(f"soak: starting anew ({why}); the old record is kept as {workspace.relative(kept)}")
    return Load(preempted=0), now()


def free_name(store: Store, written_at: datetime) -> str:
    """Return an unused name for keeping a record that was last written at that time."""
    name = f"{NOTE}-{written_at:%Y%m%d-%H%M%S}"
    return next(free for number in range(1000) if not store.path(free := f"{name}-{number}" if number else name).exists())


def soak(
    settings: VramConfig,
    hours: float,
    anew: bool,
    machine: Machine,
    server: Server,
    workspace: Workspace,
    on_write: Callable[[Soak], None] = lambda _soak: None,
) -> Soak:
    """Keep load on the server until the total is reached; `on_write` is called with each record written."""
    load, started = begun(settings, server, anew, workspace)
    total_s, before_s = hours * S_PER_H, load.seconds
    on_progress = workspace.progress("soak, seconds of load", round(total_s - before_s))
    watch = LaunchMemory(server.handle, workspace)
    with watched(server.handle, workspace, NOTE) as target, metered(target) as meter:

        def write_record(state: SoakState, load: Load) -> Soak:
            meter.read()
            use = memory_use(with_readings(load, meter), budget_of(settings), meter.preemptions, machine, server, watch)
            record = Soak.model_validate({**dict(use), "asked_h": hours, "state": state})
            Store(workspace.artifacts).write(NOTE, because(settings, server), started, load.seconds, record)
            on_write(record)
            return record

        if before_s < total_s:
            began = time.monotonic()
            load = load.model_copy(update={"spans": [*load.spans, (began, began)]})
        try:
            while (left_s := total_s - load.seconds) > 0:
                seconds = min(left_s, SLICE_S)
                load = answered(
                    load, target, server.model, settings.concurrency, seconds, lambda load_s: on_progress(int(load_s - before_s))
                )
                write_record("running", load)
        except KeyboardInterrupt:
            *earlier, (begin, _) = load.spans
            with suppress(MeasureError):  # within the first moment there is no sample yet
                write_record("interrupted", load.model_copy(update={"spans": [*earlier, (begin, time.monotonic())]}))
            raise
        except NothingAnsweredError:
            if load.seconds > before_s:
                write_record("failed", load)
            raise
        return write_record("complete", load)


def answered(load: Load, target: Endpoint, model: str, concurrency: int, seconds: float, on_progress: Callable[[int], None]) -> Load:
    """Return `load` with another slice; NothingAnsweredError if every request of the slice failed.

    A last slice shorter than a request may send none, which is no failure.
    """
    after = apply_load(load, target, model, concurrency, seconds, on_progress)
    if 0 < after.requests - load.requests == after.failed - load.failed:
        raise NothingAnsweredError(f"soak: no request of the last {seconds:.3g} s succeeded: {after.error}", "see the server's log")
    return after


def verdict(record: Soak) -> Judgement:
    """Judge whether memory is stable: the GPU's, or the host's if no GPU was measured."""
    figure = record.figures["vram_stable" if record.figures["vram_peak_mib"].value is not None else "host_rss_stable"]
    judged = judge(figure, "==", 100, LEAST_LOAD_S, by_bound=False, simulated=record.simulated)
    return replace(judged, reason=figure.reason) if judged.verdict == "FAIL" else judged


def lines(record: Soak) -> list[str]:
    """Return the lines that the command ends with."""
    figures = [
        f"  {label}: {Plain().text(measured(record.figures[name]))}"
        for name, label in LABELS.items()
        if record.figures[name].value is not None
    ]
    judged = verdict(record)
    head = f"soak {record.state}: {record.load.seconds / S_PER_H:.3g} of {record.asked_h:g} h of load, {record.load.requests} requests"
    return [head, *figures, f"stable: {judged.verdict}{f' ({judged.reason})' if judged.reason else ''}"]


def code(record: Soak) -> int:
    """Return the exit code: 0 stable, 1 not stable or not shown to be, 2 not measured."""
    return exit_code([(verdict(record), True)])
