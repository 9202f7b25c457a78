"""The engine, on toy stages: order, why, and what runs when."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.engine import migrations
from pipeline.engine.pipeline import Pipeline, Result, Stage, content_digest, differences
from pipeline.engine.record import Artifact, Outcome
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.terminal import Silent


class KnobConfig(BaseModel):
    level: int = 10
    colour: str = "red"

    def files(self) -> tuple[str, ...]:
        return ("data",)


class Base(Artifact):
    tens: int


class Thing(Artifact):
    tens: int


class Use(Artifact):
    tens: int


class Other(Artifact):
    tens: int


class Summary(Artifact):
    words: str


class Note(Artifact):
    text: str


class Orphan(Artifact):
    pass


@dataclass
class House:
    """A project folder with toy stages: base → thing (a resource) → use, base → other, summary of use and other."""

    root: Path
    knob: KnobConfig = field(default_factory=KnobConfig)
    calls: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    interrupted: set[str] = field(default_factory=set)
    troubled: dict[str, OSError] = field(default_factory=dict)
    gone: bool = False
    seen: list[Outcome[Any]] = field(default_factory=list)
    reported: list[Result] = field(default_factory=list)

    def called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.interrupted:
            raise KeyboardInterrupt
        if name in self.troubled:
            raise self.troubled[name]
        if name in self.failing:
            log = self.root / "server.log"
            log.write_text("\n".join(f"line {number}" for number in range(100)), encoding="utf-8")
            raise ServerError(f"{name} broke", "mend it", log)

    def stages(self) -> list[Stage]:
        def base(settings: KnobConfig) -> Base:
            """Tens only, so that a small change of the level changes nothing downstream."""
            self.called("base")
            return Base(tens=settings.level // 10)

        def thing(base: Base) -> Thing:
            """A resource."""
            self.called("thing")
            self.gone = False
            return Thing(tens=base.tens)

        def use(thing: Thing, workspace: Workspace) -> Use:
            """Uses the resource."""
            assert workspace.root == self.root
            assert not self.gone
            self.called("use")
            return Use(tens=thing.tens)

        def other(base: Base) -> Other:
            """Does without the resource."""
            self.called("other")
            return Other(tens=base.tens)

        def summary(use: Outcome[Use], other: Outcome[Other], note: Outcome[Note]) -> Summary:
            """Takes whatever there is."""
            self.called("summary")
            self.seen = [use, other, note]
            return Summary(words=f"{use.data and use.data.tens} {other.data and other.data.tens}")

        # not in the order of their needs
        return [
            Stage(summary),
            Stage(use),
            Stage(thing, present=lambda _thing, _workspace: not self.gone),
            Stage(base),
            Stage(other),
        ]

    def pipeline(self) -> Pipeline:
        """Return a pipeline over the same folder, as each command makes one."""
        return Pipeline(self.stages(), Workspace(self.root, Silent()), lambda _kind: self.knob, {Note: "note"}, report=self.reported.append)

    def run(self, *names: str, **options: Any) -> dict[str, str]:
        """Run as one command; return each stage's state. `calls` and `reported` are those of this run."""
        self.calls.clear()
        self.reported.clear()
        return {result.stage: result.state for result in self.pipeline().ensure(names or ("summary",), **options)}

    def why(self, name: str) -> str:
        pipeline = self.pipeline()
        return pipeline.why(pipeline.stage(name))


@pytest.fixture
def house(tmp_path: Path) -> House:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a", encoding="utf-8")
    return House(tmp_path)


def pipeline_of(folder: Path, *functions: Callable[..., Artifact]) -> Pipeline:
    return Pipeline([Stage(function) for function in functions], Workspace(folder), lambda kind: kind())


def test_order_comes_from_signatures(house: House) -> None:
    house.run()
    assert house.calls == ["base", "thing", "use", "other", "summary"]


def test_only_what_a_stage_needs_runs(house: House) -> None:
    assert house.run("other") == {"base": "made", "other": "made"}


def test_stages_are_named_as_tasks(tmp_path: Path) -> None:
    def two_words() -> Base:
        """First line.

        More.
        """
        return Base(tens=1)

    stage = Stage(two_words)
    assert (stage.name, stage.summary, stage.makes) == ("two-words", "First line.", Base)


def test_circle_is_a_type_error(tmp_path: Path) -> None:
    def one(use: Use) -> Thing:
        return Thing(tens=1)

    def two(thing: Thing) -> Use:
        return Use(tens=1)

    with pytest.raises(TypeError, match="circle: one, two"):
        pipeline_of(tmp_path, one, two)


def test_circle_through_an_outcome_is_a_type_error(tmp_path: Path) -> None:
    def one(use: Outcome[Use]) -> Thing:
        return Thing(tens=1)

    def two(thing: Thing) -> Use:
        return Use(tens=1)

    with pytest.raises(TypeError, match="circle"):
        pipeline_of(tmp_path, one, two)


def test_missing_maker_is_a_type_error(tmp_path: Path) -> None:
    def one(orphan: Orphan) -> Thing:
        return Thing(tens=1)

    with pytest.raises(TypeError, match="one needs Orphan, which no stage makes"):
        pipeline_of(tmp_path, one)


def test_second_run_does_nothing(house: House) -> None:
    house.run()
    assert set(house.run().values()) == {"unchanged"}
    assert house.calls == []


def test_fresh_stage_never_ran(house: House) -> None:
    assert house.why("base") == "never ran"


def test_why_is_empty_when_nothing_changed(house: House) -> None:
    house.run()
    assert house.why("base") == ""


def test_why_names_the_setting_and_both_values(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert house.why("base") == "knob.level changed: 10 → 20"


def test_why_names_every_changed_setting(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=20, colour="blue")
    assert house.why("base") == "knob.level changed: 10 → 20; knob.colour changed: red → blue"


def test_why_names_the_changed_upstream(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    house.run("base")
    assert house.why("thing") == "base changed"


def test_why_says_that_the_code_changed(house: House) -> None:
    house.run()
    source = house.root.joinpath(*__name__.split(".")).with_suffix(".py")
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n", encoding="utf-8")
    assert house.why("base") == "code changed"


@pytest.mark.parametrize(("name", "content"), [("a.txt", "b"), ("b.txt", "new")])
def test_why_names_the_folder_whose_content_changed(house: House, name: str, content: str) -> None:
    house.run()
    (house.root / "data" / name).write_text(content, encoding="utf-8")
    assert house.why("base") == "knob file data changed"


def test_touched_file_with_the_same_content_changes_nothing(house: House) -> None:
    house.run()
    (house.root / "data" / "a.txt").write_text("a", encoding="utf-8")
    assert house.why("base") == ""


def test_renamed_file_counts_as_changed(house: House) -> None:
    before = content_digest(house.root / "data")
    (house.root / "data" / "a.txt").rename(house.root / "data" / "b.txt")
    assert content_digest(house.root / "data") not in (before, "missing")


def test_missing_file_has_a_digest_of_its_own(house: House) -> None:
    assert content_digest(house.root / "nowhere") == "missing"


def test_same_outcome_upstream_stops_the_wave(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=11)
    states = house.run()
    assert states.pop("base") == "made"
    assert set(states.values()) == {"unchanged"}


def test_changed_outcome_upstream_runs_all_that_depend(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert set(house.run().values()) == {"made"}


def test_failed_stage_leaves_a_failure_record_with_the_end_of_its_log(house: House) -> None:
    house.failing = {"thing"}
    assert house.run("thing")["thing"] == "failed"
    failure = house.pipeline().outcome(Thing).failure
    assert failure is not None
    assert (failure.kind, failure.message, failure.hint, failure.log) == ("server", "thing broke", "mend it", "server.log")
    assert failure.log_tail == [f"line {number}" for number in range(60, 100)]


def test_failed_stage_blocks_its_dependants_but_not_others(house: House) -> None:
    house.failing = {"thing"}
    states = house.run()
    assert states == {"base": "made", "thing": "failed", "use": "blocked", "other": "made", "summary": "made"}
    blocked = house.pipeline().outcome(Use).failure
    assert blocked is not None
    assert (blocked.kind, blocked.message) == ("blocked", "needs thing, which failed")


def test_failure_replaces_the_data_of_an_earlier_success(house: House) -> None:
    house.run()
    house.failing = {"thing"}
    house.run("thing", force=["thing"])
    assert house.pipeline().outcome(Thing).data is None


def test_failed_stage_runs_again_and_says_why(house: House) -> None:
    house.failing = {"thing"}
    house.run()
    assert house.why("thing") == "failed last time: thing broke"
    house.failing = set()
    states = house.run()
    assert (states["thing"], states["use"], states["summary"]) == ("made", "made", "made")


def test_outcome_inputs_get_data_failures_and_notes(house: House) -> None:
    house.failing = {"thing"}
    house.run()
    use, other, note = house.seen
    assert use.data is None
    assert use.failure is not None
    assert other.data == Other(tens=1)
    assert (note.stage, note.data, note.failure) == ("note", None, None)


def test_changed_failure_renders_the_summary_again(house: House) -> None:
    house.failing = {"other"}
    house.run()
    house.failing = set()
    assert house.run()["summary"] == "made"


def test_stage_that_observes_always_runs(tmp_path: Path) -> None:
    calls = []

    def look() -> Base:
        calls.append(1)
        return Base(tens=1)

    def after(base: Base) -> Use:
        calls.append(2)
        return Use(tens=1)

    def run() -> None:
        Pipeline([Stage(look, observes=True), Stage(after)], Workspace(tmp_path), lambda kind: kind()).ensure(["after"])

    run()
    run()
    assert calls == [1, 2, 1]


def test_absent_thing_stays_absent_when_nothing_downstream_runs(house: House) -> None:
    house.run()
    house.gone = True
    assert set(house.run().values()) == {"unchanged"}
    assert house.gone


def test_absent_thing_is_revived_before_something_that_needs_it_runs(house: House) -> None:
    house.run()
    house.gone = True
    house.run("use", force=["use"])
    assert house.calls == ["thing", "use"]
    assert ("thing", "made", "no longer there") in [(result.stage, result.state, result.reason) for result in house.reported]


def test_absent_thing_is_not_revived_for_one_that_does_without(house: House) -> None:
    house.run()
    house.gone = True
    house.run("other", force=["other"])
    assert house.calls == ["other"]


def test_present_revives_the_named_stage(house: House) -> None:
    house.run()
    house.gone = True
    assert house.run("thing", present=True)["thing"] == "made"
    assert house.run("thing", present=True)["thing"] == "unchanged"


def test_failed_revival_blocks_what_needed_it(house: House) -> None:
    house.run()
    house.gone, house.failing = True, {"thing"}
    assert house.run("use", force=["use"])["use"] == "blocked"
    assert house.calls == ["thing"]


def test_failed_revival_is_tried_once_for_all_dependants(tmp_path: Path) -> None:
    calls: list[str] = []
    present = [True]

    def thing() -> Thing:
        calls.append("thing")
        if not present[0]:
            raise ServerError("does not start")
        return Thing(tens=1)

    def first(thing: Thing) -> Use:
        return Use(tens=1)

    def second(thing: Thing) -> Other:
        return Other(tens=1)

    def pipeline() -> Pipeline:
        stages = [Stage(thing, present=lambda _thing, _workspace: present[0]), Stage(first), Stage(second)]
        return Pipeline(stages, Workspace(tmp_path), lambda kind: kind())

    pipeline().ensure(["first", "second"])
    present[0] = False
    calls.clear()
    states = {result.stage: result.state for result in pipeline().ensure(["first", "second"], force=["first", "second"])}
    assert (states["first"], states["second"]) == ("blocked", "blocked")
    assert calls == ["thing"]


def test_force_runs_only_the_forced_stage(house: House) -> None:
    house.run()
    states = house.run("use", force=["use"])
    assert states == {"base": "unchanged", "thing": "unchanged", "use": "made"}
    assert house.calls == ["use"]


def test_alone_takes_upstream_as_it_is(house: House) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert house.run("summary", force=["summary"], alone=True) == {"summary": "made"}
    assert house.calls == ["summary"]


def test_alone_runs_with_nothing_on_record(house: House) -> None:
    assert house.run("summary", alone=True) == {"summary": "made"}
    assert [outcome.data for outcome in house.seen] == [None, None, None]


def test_interrupt_leaves_no_record(house: House) -> None:
    house.run()
    house.interrupted = {"use"}
    with pytest.raises(KeyboardInterrupt):
        house.run("use", force=["use"])
    assert not (house.root / "artifacts" / "use.json").exists()
    assert house.why("use") == "never ran"


def test_unexpected_error_leaves_no_record_and_is_not_hidden(tmp_path: Path) -> None:
    def buggy() -> Base:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pipeline_of(tmp_path, buggy).ensure(["buggy"])
    assert not (tmp_path / "artifacts" / "buggy.json").exists()


def test_unreadable_record_runs_the_stage_again(house: House) -> None:
    house.run()
    (house.root / "artifacts" / "use.json").write_text("{", encoding="utf-8")
    assert house.why("use") == "its record cannot be read"
    assert house.run()["use"] == "made"


def test_unreadable_note_is_told_not_overlooked(house: House) -> None:
    (house.root / "artifacts").mkdir()
    (house.root / "artifacts" / "note.json").write_text("{", encoding="utf-8")
    house.run()
    failure = house.pipeline().outcome(Note).failure
    assert failure is not None
    assert "note.json is not readable JSON" in failure.message


def test_a_disk_that_refuses_is_a_failure_of_the_stage(house: House) -> None:
    house.troubled["use"] = PermissionError(errno.EACCES, "Permission denied", "models/x")
    assert house.run()["use"] == "failed"
    failure = house.pipeline().store.read("use")
    assert failure is not None
    assert failure.failure is not None
    assert (failure.failure.kind, failure.failure.message) == ("machine", "models/x: Permission denied")
    assert "chown" in failure.failure.hint


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), PermissionError(errno.EPERM, "not permitted")])
def test_any_other_trouble_of_the_system_is_a_bug(house: House, error: OSError) -> None:
    house.troubled["use"] = error
    with pytest.raises(OSError, match=str(error.strerror)):
        house.run()


def test_record_of_no_known_form_runs_the_stage_again(house: House) -> None:
    house.run()
    path = house.root / "artifacts" / "use.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"tens"', '"zehner"'), encoding="utf-8")
    assert house.why("use") == "its record has no form that this program knows"
    assert house.run()["use"] == "made"


def test_record_of_an_older_form_stands_while_its_inputs_do(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.run()
    path = house.root / "artifacts" / "use.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"tens"', '"zehner"'), encoding="utf-8")
    before = path.read_bytes()
    monkeypatch.setattr(migrations, "STEPS", {"use": (lambda data, _because: {"tens": data["zehner"]},)})
    assert house.why("use") == ""
    assert house.run()["use"] == "unchanged"
    assert path.read_bytes() == before
    house.knob = house.knob.model_copy(update={"level": 20})
    assert house.run()["use"] == "made"


def test_fingerprint_is_pinned(house: House) -> None:
    house.run("base")

    def pinned(settings: KnobConfig, base: Base, missing: Outcome[Note]) -> Use:
        return Use(tens=1)

    pinned.__module__ = "pipeline.nowhere"
    stages = [*house.stages()[2:], Stage(pinned)]
    pipeline = Pipeline(stages, Workspace(house.root), lambda _kind: house.knob, {Note: "note"})
    assert pipeline.because(pipeline.stage("pinned")) == {
        "schema": 1,
        "code": "6e3c1e4e07394131",
        "knob": {"level": 10, "colour": "red"},
        "knob file data": "134da3ae809aac0b",
        "base": {"digest": "54c97657f48781d8"},
        "note": "never ran",
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {"a": 1}, ["a is new: 1"]),
        ({"a": None}, {"a": 1}, ["a is new: 1"]),
        ({"a": 1}, {}, ["a is gone (was 1)"]),
        ({"a": 1}, {"a": None}, ["a is gone (was 1)"]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["a.b.c changed: 1 → 2"]),
        ({"a": {"digest": "x"}}, {"a": {"digest": "y"}}, ["a changed"]),
        ({"code": "x"}, {"code": "y"}, ["code changed"]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 2}, ["a changed: 1 → 2"]),
        ({"a": 1}, {"a": 1}, []),
    ],
)
def test_differences_in_words(old: dict[str, Any], new: dict[str, Any], words: list[str]) -> None:
    assert differences(old, new) == words
