"""The engine: order, fingerprints, reasons to run, and running. It knows records and signatures, not stages."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import partial
from typing import Any

from pydantic import BaseModel

from pipeline.engine.code import CodeDigests
from pipeline.engine.context import Context
from pipeline.engine.fingerprint import content_digest, differences
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import BLOCKED, UNKNOWN_FORM, Artifact, Failure, Outcome, Store, digest, now
from pipeline.engine.stage import Result, Stage
from pipeline.engine.stage_run import StageRun, each_ended
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, NewerRecordError, PipelineError, RecordError, machine_error
from pipeline.message import _

LOG_TAIL_LINES = 40
FINGERPRINT = 1  # raised when all stages must run again, regardless of their inputs


class Pipeline:
    """Stages over one store of records.

    `settings` returns the section of a type, `contexts` the context of a type. `notes` maps the type of each record that no stage makes
    (as that of a stop) to its name. `running` returns a context that holds while a stage runs. `report` is called with each Result.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        workspace: Workspace,
        settings: Callable[[type[BaseModel]], BaseModel],
        notes: dict[type[Artifact], str] | None = None,
        contexts: Callable[[type[Context]], Context] = lambda kind: kind(),
        running: Callable[[Stage, str], AbstractContextManager[None]] = lambda _stage, _reason: nullcontext(),
        report: Callable[[Result], None] = lambda _result: None,
    ) -> None:
        self.workspace = workspace
        self.store = Store(workspace.artifacts)
        self._settings = settings
        self._contexts = contexts
        self._notes = notes or {}
        self._running = running
        self._report = report
        self._code = CodeDigests(workspace.root / "pipeline", workspace.artifacts / ".code.json")
        self._makers = {stage.makes: stage for stage in stages}
        self.stages = self._sort(stages)

    def stage(self, name: str) -> Stage:
        """Return the stage with that task name."""
        return next(stage for stage in self.stages if stage.name == name)

    def upstream(self, stage: Stage) -> list[Stage]:
        """Return the stages whose records `stage` takes directly, in its signature's order."""
        kinds = (*stage.needs.values(), *stage.reads.values())
        found = [self._makers[kind] for kind in kinds if kind in self._makers]
        return [*found, *(other for other in self._makers.values() if other not in (stage, *found))] if stage.gathers else found

    def chain(self, names: Iterable[str]) -> list[Stage]:
        """Return the named stages and all stages upstream of them, in order."""
        selected: set[str] = set()
        waiting = [self.stage(name) for name in names]
        while waiting:
            stage = waiting.pop()
            if stage.name not in selected:
                selected.add(stage.name)
                waiting.extend(self.upstream(stage))
        return [stage for stage in self.stages if stage.name in selected]

    def outcome(self, kind: type[Artifact]) -> Outcome[Any]:
        """Return the outcome on record of the stage, or the note, that makes `kind`."""
        name = self._makers[kind].name if kind in self._makers else self._notes[kind]
        return self.store.outcome(name, kind)

    def outcomes(self, stage: Stage) -> Outcomes:
        """Return the outcomes on record of every other stage and of every note."""
        others = [other for other in self.stages if other != stage]
        edges = [(maker.name, other.name) for other in others for maker in self.upstream(other)]
        return Outcomes(
            {other.makes: self.outcome(other.makes) for other in others}, {kind: self.outcome(kind) for kind in self._notes}, edges
        )

    def because(self, stage: Stage) -> dict[str, Any]:
        """Return the readable fingerprint that a run of `stage` would have now."""
        result: dict[str, Any] = {"schema": FINGERPRINT, "code": self._code.digest(stage.function.__module__)}
        for kind in stage.settings.values():
            section = self._settings(kind)
            key = kind.__name__.removesuffix("Config").lower()
            result[key] = section.model_dump(mode="json")
            for file in getattr(section, "files", tuple)():
                result[f"{key} file {file}"] = content_digest(self.workspace.root / file)
        result |= {name: self._contexts(kind).model_dump(mode="json") for name, kind in stage.contexts.items()}
        for kind in stage.needs.values():
            data = self.outcome(kind).data
            result[self._makers[kind].name] = data.identity() if data else None
        read = [self.outcome(kind) for kind in stage.reads.values()]
        for outcome in [*read, *self.outcomes(stage)] if stage.gathers else read:
            status = f"ok {digest(outcome.data.identity())}" if outcome.data is not None else "never ran"
            result[outcome.stage] = f"failed: {outcome.failure.message}" if outcome.failure else status
        return result

    def why(self, stage: Stage) -> str:
        """Return why `stage` would run now, in words; empty if its record is up to date."""
        if stage.observes:
            return "looks at the machine each time"
        try:
            envelope = self.store.read(stage.name)
        except NewerRecordError:
            raise
        except RecordError:
            return "its record cannot be read"
        if envelope is None:
            return "never ran"
        left_out = envelope.failure is not None and envelope.failure.kind == MeaninglessError.kind
        if envelope.failure is not None and not left_out:
            return f"failed last time: {envelope.failure.message}"
        if self.outcome(stage.makes).data is None and not left_out:
            return UNKNOWN_FORM
        return "; ".join(differences(envelope.because, self.because(stage)))

    def ensure(self, names: Sequence[str], force: Iterable[str] = (), present: bool = False, alone: bool = False) -> list[Result]:
        """Bring the named stages and what they need up to date; return the result of each, in order.

        `force` names stages that run regardless of their records. `present` also restores what the named stages describe (starts the
        server of an up-to-date `serve`). `alone` uses the records of what they need as they are. Stages that are not exclusive run side
        by side if they do not need each other. A stage that fails leaves a failure record, blocks those that need it, and does not stop
        the others.
        """
        forced = set(force)
        broken: dict[str, str] = {}
        results: list[Result] = []
        waiting = [self.stage(name) for name in names] if alone else self.chain(names)
        order = [stage.name for stage in waiting]
        try:
            while waiting:
                group = self._startable(waiting)
                waiting = [stage for stage in waiting if stage not in group]
                starts = [self._start(stage, stage.name in forced, present and stage.name in names, broken) for stage in group]
                for result in (start for start in starts if isinstance(start, Result)):
                    results.append(result)
                    self._report(result)
                with closing(each_ended([start for start in starts if isinstance(start, StageRun)])) as ended:
                    for attempt in ended:
                        results.append(self._conclude(attempt, broken))
                        self._report(results[-1])
        finally:
            self._code.save()
        return sorted(results, key=lambda result: order.index(result.stage))

    def _startable(self, waiting: Sequence[Stage]) -> list[Stage]:
        """Return the next stage; if it is not exclusive, also all others that may run beside it because their inputs are ready."""
        ready = [stage for stage in waiting if not any(maker in waiting for maker in self.upstream(stage))]
        return ready[:1] if ready[0].exclusive else [stage for stage in ready if not stage.exclusive]

    def _start(self, stage: Stage, forced: bool, present: bool, broken: dict[str, str]) -> Result | StageRun:
        """Return an attempt at the stage, or its result if it does not run."""
        roots = [broken[maker.name] for maker in self.upstream(stage) if maker.makes in stage.needs.values() and maker.name in broken]
        if roots:
            return self._blocked(stage, roots[0], broken)
        reason = "forced" if forced else self.why(stage)
        if not reason:
            if not present or self._is_present(stage):
                return Result(stage.name, "unchanged", "")
            reason = "no longer there"
        return self._attempt(stage, reason, broken)

    def _attempt(self, stage: Stage, reason: str, broken: dict[str, str]) -> Result | StageRun:
        """Restore what the stage needs and return an attempt at it; a Result if something could not be restored."""
        for kind in stage.needs.values():
            maker = self._makers[kind]
            if not self._is_present(maker):
                revival = self._attempt(maker, "no longer there", broken)
                if isinstance(revival, StageRun):
                    revival.run()
                    revival = self._conclude(revival, broken)
                self._report(revival)
                if maker.name in broken:
                    return self._blocked(stage, broken[maker.name], broken)
        because = self.because(stage)
        self.store.remove(stage.name)
        return StageRun(stage, reason, because, partial(self._call, stage, reason, self._arguments(stage)))

    def _call(self, stage: Stage, reason: str, arguments: dict[str, Any]) -> Artifact:
        with self._running(stage, reason):
            return stage.function(**arguments)

    def _conclude(self, attempt: StageRun, broken: dict[str, str]) -> Result:
        """Record how the attempt ended; re-raise an error that is no failure of the stage, without a record."""
        stage, took_s = attempt.stage.name, attempt.took_s
        if attempt.data is not None:
            self.store.write(stage, attempt.because, attempt.started, took_s, attempt.data)
            return Result(stage, "made", attempt.reason, took_s)
        assert attempt.error is not None, "it ended"
        error = machine_error(attempt.error) if isinstance(attempt.error, OSError) else attempt.error
        if not isinstance(error, PipelineError):
            raise attempt.error
        self.store.write(stage, attempt.because, attempt.started, took_s, self._failure(error))
        broken[stage] = stage
        hint = f" ({error.hint})" if error.hint else ""
        return Result(stage, "left out" if error.kind == MeaninglessError.kind else "failed", f"{error.message}{hint}", took_s)

    def _blocked(self, stage: Stage, root: str, broken: dict[str, str]) -> Result:
        """Record that `stage` could not run because `root` failed."""
        broken[stage.name] = root
        failure = Failure(kind=BLOCKED, message=_("needs {stage}, which failed", stage=root))
        self.store.write(stage.name, {}, now(), 0.0, failure)
        return Result(stage.name, "blocked", failure.message)

    def _arguments(self, stage: Stage) -> dict[str, Any]:
        arguments: dict[str, Any] = {name: self._settings(kind) for name, kind in stage.settings.items()}
        arguments |= {name: self._contexts(kind) for name, kind in stage.contexts.items()}
        arguments |= {name: self.outcome(kind).data for name, kind in stage.needs.items()}
        arguments |= {name: self.outcome(kind) for name, kind in stage.reads.items()}
        arguments |= dict.fromkeys(stage.gathers, self.outcomes(stage)) if stage.gathers else {}
        arguments |= dict.fromkeys(stage.workspaces, self.workspace)
        return arguments

    def _is_present(self, stage: Stage) -> bool:
        if stage.present is None:
            return True
        data = self.outcome(stage.makes).data
        return data is not None and stage.present(data, self.workspace)

    def _failure(self, error: PipelineError) -> Failure:
        tail: list[str] = []
        if error.log is not None:
            with suppress(OSError):
                tail = error.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        log = self.workspace.relative(error.log) if error.log else None
        return Failure(kind=error.kind, message=error.message, hint=error.hint, log=log, log_tail=tail)

    def _sort(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return `stages` with makers first, otherwise in the given order; TypeError for a cycle or a missing maker."""
        result: list[Stage] = []
        waiting = list(stages)
        while waiting:
            ready = next((stage for stage in waiting if all(maker in result for maker in self.upstream(stage))), None)
            if ready is None:
                raise TypeError(f"stages need each other in a circle: {', '.join(stage.name for stage in waiting)}")
            missing = [kind.__name__ for kind in ready.needs.values() if kind not in self._makers]
            if missing:
                raise TypeError(f"{ready.name} needs {missing[0]}, which no stage makes")
            result.append(ready)
            waiting.remove(ready)
        return result
