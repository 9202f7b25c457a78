"""The engine: order, fingerprints, why, ensure. It knows records and signatures, not stages."""

import hashlib
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.engine.code import CodeDigests
from pipeline.engine.context import Context
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import BLOCKED, OLDER_FORM, SCHEMA_VERSION, Artifact, Failure, Measurement, Outcome, Store, digest, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeaninglessError, NewerRecordError, PipelineError, RecordError, machine_error

LOG_TAIL_LINES = 40
State = Literal["made", "unchanged", "left out", "failed", "blocked"]


@dataclass(frozen=True)
class Stage:
    """A stage is its function: parameters name what it needs, the return type names what it makes.

    `observes` marks a stage that looks at the world and so always runs. `present` tells from a record whether the
    thing that it describes (an environment, files, a running server) is still there; it is asked only before
    something that needs it runs. `called` names a stage that takes the place of another.
    """

    function: Callable[..., Artifact]
    observes: bool = False
    present: Callable[[Any, Workspace], bool] | None = None
    called: str | None = None

    @property
    def name(self) -> str:
        return self.called or self.function.__name__.replace("_", "-")

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(self.function)

    @cached_property
    def makes(self) -> type[Artifact]:
        return typing.cast(type[Artifact], self._hints["return"])

    @cached_property
    def needs(self) -> dict[str, type[Artifact]]:
        """Parameters that hold another stage's data and cannot do without it."""
        return {name: hint for name, hint in self._parameters if isinstance(hint, type) and issubclass(hint, Artifact)}

    @cached_property
    def reads(self) -> dict[str, type[Artifact]]:
        """Parameters that hold another stage's outcome, whatever it is."""
        return {name: typing.get_args(hint)[0] for name, hint in self._parameters if typing.get_origin(hint) is Outcome}

    @cached_property
    def contexts(self) -> dict[str, type[Context]]:
        """Parameters that hold what the command line, the machine or the moment gives."""
        return {name: hint for name, hint in self._parameters if isinstance(hint, type) and issubclass(hint, Context)}

    @cached_property
    def settings(self) -> dict[str, type[BaseModel]]:
        """Parameters that hold a section of the configuration."""
        return {
            name: hint
            for name, hint in self._parameters
            if isinstance(hint, type) and issubclass(hint, BaseModel) and not issubclass(hint, Artifact | Context)
        }

    @cached_property
    def gathers(self) -> list[str]:
        """Parameters that hold the outcomes of all other stages, whatever they are."""
        return [name for name, hint in self._parameters if hint is Outcomes]

    @cached_property
    def workspaces(self) -> list[str]:
        return [name for name, hint in self._parameters if hint is Workspace]

    @property
    def measures(self) -> bool:
        """Tell whether its record is a measurement."""
        return issubclass(self.makes, Measurement)

    @property
    def _parameters(self) -> list[tuple[str, Any]]:
        return [(name, hint) for name, hint in self._hints.items() if name != "return"]


@dataclass(frozen=True)
class Result:
    """What became of a stage in this run, and why."""

    stage: str
    state: State
    reason: str
    duration_s: float = 0.0


class Pipeline:
    """Stages over one store of records.

    `settings` returns the section of a type, `contexts` the context of a type. `notes` names the records that no stage makes
    (what a stop left) by type.
    `report` is told each Result as it happens; `running` is entered with each stage and why it runs, as long as it does.
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
        self.stages = self._ordered(stages)

    def stage(self, name: str) -> Stage:
        """Return the stage of that task name."""
        return next(stage for stage in self.stages if stage.name == name)

    def upstream(self, stage: Stage) -> list[Stage]:
        """Return the stages that `stage` takes directly from, in its signature's order."""
        kinds = (*stage.needs.values(), *stage.reads.values())
        found = [self._makers[kind] for kind in kinds if kind in self._makers]
        return [*found, *(other for other in self._makers.values() if other not in (stage, *found))] if stage.gathers else found

    def chain(self, names: Iterable[str]) -> list[Stage]:
        """Return the named stages and all that they take from, in order."""
        wanted: set[str] = set()
        waiting = [self.stage(name) for name in names]
        while waiting:
            stage = waiting.pop()
            if stage.name not in wanted:
                wanted.add(stage.name)
                waiting.extend(self.upstream(stage))
        return [stage for stage in self.stages if stage.name in wanted]

    def outcome(self, kind: type[Artifact]) -> Outcome[Any]:
        """Return what is on record for the stage, or the note, that makes `kind`."""
        name = self._makers[kind].name if kind in self._makers else self._notes[kind]
        return self.store.outcome(name, kind)

    def outcomes(self, stage: Stage) -> Outcomes:
        """Return what is on record for every other stage and for every note."""
        others = [other for other in self.stages if other != stage]
        edges = [(maker.name, other.name) for other in others for maker in self.upstream(other)]
        return Outcomes(
            {other.makes: self.outcome(other.makes) for other in others}, {kind: self.outcome(kind) for kind in self._notes}, edges
        )

    def because(self, stage: Stage) -> dict[str, Any]:
        """Return the readable fingerprint that a run of `stage` would have now."""
        result: dict[str, Any] = {"schema": SCHEMA_VERSION, "code": self._code.digest(stage.function.__module__)}
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
            made = f"ok {digest(outcome.data.identity())}" if outcome.data is not None else "never ran"
            result[outcome.stage] = f"failed: {outcome.failure.message}" if outcome.failure else made
        return result

    def why(self, stage: Stage) -> str:
        """Return why `stage` would run now, in words; empty when its record stands."""
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
            return OLDER_FORM
        return "; ".join(differences(envelope.because, self.because(stage)))

    def ensure(self, names: Sequence[str], force: Iterable[str] = (), present: bool = False, alone: bool = False) -> list[Result]:
        """Bring the named stages and what they need up to date; return what became of each.

        `force` names stages that run whatever their record says. `present` also revives the named stages' things
        (starts the server of an up-to-date `serve`). `alone` takes the records of what they need as they are. A stage
        that fails leaves a failure record, blocks those that need it, and does not stop the others.
        """
        forced = set(force)
        broken: dict[str, str] = {}
        results = []
        try:
            for stage in [self.stage(name) for name in names] if alone else self.chain(names):
                result = self._ensure_one(stage, stage.name in forced, present and stage.name in names, broken)
                results.append(result)
                self._report(result)
        finally:
            self._code.save()
        return results

    def _ensure_one(self, stage: Stage, forced: bool, present: bool, broken: dict[str, str]) -> Result:
        roots = [broken[maker.name] for maker in self.upstream(stage) if maker.makes in stage.needs.values() and maker.name in broken]
        if roots:
            return self._blocked(stage, roots[0], broken)
        reason = "forced" if forced else self.why(stage)
        if not reason:
            if not present or self._is_present(stage):
                return Result(stage.name, "unchanged", "")
            reason = "no longer there"
        return self._run(stage, reason, broken)

    def _run(self, stage: Stage, reason: str, broken: dict[str, str]) -> Result:
        for kind in stage.needs.values():
            maker = self._makers[kind]
            if not self._is_present(maker):
                revived = self._run(maker, "no longer there", broken)
                self._report(revived)
                if maker.name in broken:
                    return self._blocked(stage, broken[maker.name], broken)
        because = self.because(stage)
        self.store.remove(stage.name)
        started, clock = now(), time.perf_counter()
        try:
            with self._running(stage, reason):
                data = stage.function(**self._arguments(stage))
        except (PipelineError, OSError) as caught:
            error = machine_error(caught) if isinstance(caught, OSError) else caught
            if error is None:
                raise
            took = time.perf_counter() - clock
            self.store.write(stage.name, because, started, took, self._failure(error))
            broken[stage.name] = stage.name
            hint = f" ({error.hint})" if error.hint else ""
            return Result(stage.name, "left out" if error.kind == MeaninglessError.kind else "failed", f"{error.message}{hint}", took)
        took = time.perf_counter() - clock
        self.store.write(stage.name, because, started, took, data)
        return Result(stage.name, "made", reason, took)

    def _blocked(self, stage: Stage, root: str, broken: dict[str, str]) -> Result:
        """Record that `stage` could not run because `root` failed."""
        broken[stage.name] = root
        failure = Failure(kind=BLOCKED, message=f"needs {root}, which failed")
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

    def _ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return `stages` so that makers come first, otherwise as given; TypeError on a circle or a missing maker."""
        done: list[Stage] = []
        waiting = list(stages)
        while waiting:
            ready = next((stage for stage in waiting if all(maker in done for maker in self.upstream(stage))), None)
            if ready is None:
                raise TypeError(f"stages need each other in a circle: {', '.join(stage.name for stage in waiting)}")
            missing = [kind.__name__ for kind in ready.needs.values() if kind not in self._makers]
            if missing:
                raise TypeError(f"{ready.name} needs {missing[0]}, which no stage makes")
            done.append(ready)
            waiting.remove(ready)
        return done


def content_digest(path: Path) -> str:
    """Return a digest of the file, or of every file below the folder with its name; "missing" when there is none."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        return "missing"
    return digest([(str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """Return each difference of two fingerprints as words: "serve.port changed: 8000 → 8123"."""
    words: list[str] = []
    for key in [*new, *(key for key in old if key not in new)]:
        name = f"{at}.{key}" if at else key
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        opaque = name == "code" or key == "digest" or " file " in name
        if isinstance(before, dict) and isinstance(after, dict):
            words += differences(before, after, name)
        elif before is None:
            words.append(f"{name} is new" + ("" if opaque else f": {after}"))
        elif after is None:
            words.append(f"{name} is gone" + ("" if opaque else f" (was {before})"))
        elif opaque:
            words.append(f"{name.removesuffix('.digest')} changed")
        else:
            words.append(f"{name} changed: {before} → {after}")
    return words
