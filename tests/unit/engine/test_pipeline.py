"""The engine, on toy stages: order, and what runs when."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.engine import migrations
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Artifact, Outcome
from pipeline.engine.stage import Stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from tests.builders.toys import Base, KnobConfig, Note, Orphan, Other, Thing, ToyHouse, Use


def pipeline_of(folder: Path, *functions: Callable[..., Artifact]) -> Pipeline:
    return Pipeline([Stage(function) for function in functions], Workspace(folder), lambda kind: kind())


def test_order_comes_from_signatures(house: ToyHouse) -> None:
    house.run()
    assert house.calls == ["base", "thing", "use", "other", "summary"]


def test_only_what_a_stage_needs_runs(house: ToyHouse) -> None:
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


def test_second_run_does_nothing(house: ToyHouse) -> None:
    house.run()
    assert set(house.run().values()) == {"unchanged"}
    assert house.calls == []


def test_same_outcome_upstream_stops_the_wave(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=11)
    states = house.run()
    assert states.pop("base") == "made"
    assert set(states.values()) == {"unchanged"}


def test_changed_outcome_upstream_runs_all_that_depend(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert set(house.run().values()) == {"made"}


def test_failed_stage_leaves_a_failure_record_with_the_end_of_its_log(house: ToyHouse) -> None:
    house.failing = {"thing"}
    assert house.run("thing")["thing"] == "failed"
    failure = house.pipeline().outcome(Thing).failure
    assert failure is not None
    assert (failure.kind, failure.message, failure.hint, failure.log) == ("server", "thing broke", "mend it", "server.log")
    assert failure.log_tail == [f"line {number}" for number in range(60, 100)]


def test_failed_stage_blocks_its_dependants_but_not_others(house: ToyHouse) -> None:
    house.failing = {"thing"}
    states = house.run()
    assert states == {"base": "made", "thing": "failed", "use": "blocked", "other": "made", "summary": "made"}
    blocked = house.pipeline().outcome(Use).failure
    assert blocked is not None
    assert (blocked.kind, blocked.message) == ("blocked", "needs thing, which failed")


def test_failure_replaces_the_data_of_an_earlier_success(house: ToyHouse) -> None:
    house.run()
    house.failing = {"thing"}
    house.run("thing", force=["thing"])
    assert house.pipeline().outcome(Thing).data is None


def test_failed_stage_runs_again_and_says_why(house: ToyHouse) -> None:
    house.failing = {"thing"}
    house.run()
    assert house.why("thing") == "failed last time: thing broke"
    house.failing = set()
    states = house.run()
    assert (states["thing"], states["use"], states["summary"]) == ("made", "made", "made")


def test_outcome_inputs_get_data_failures_and_notes(house: ToyHouse) -> None:
    house.failing = {"thing"}
    house.run()
    use, other, note = house.seen
    assert use.data is None
    assert use.failure is not None
    assert other.data == Other(tens=1)
    assert (note.stage, note.data, note.failure) == ("note", None, None)


def test_changed_failure_renders_the_summary_again(house: ToyHouse) -> None:
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


def test_absent_thing_stays_absent_when_nothing_downstream_runs(house: ToyHouse) -> None:
    house.run()
    house.gone = True
    assert set(house.run().values()) == {"unchanged"}
    assert house.gone


def test_absent_thing_is_revived_before_something_that_needs_it_runs(house: ToyHouse) -> None:
    house.run()
    house.gone = True
    house.run("use", force=["use"])
    assert house.calls == ["thing", "use"]
    assert ("thing", "made", "no longer there") in [(result.stage, result.state, result.reason) for result in house.reported]


def test_absent_thing_is_not_revived_for_one_that_does_without(house: ToyHouse) -> None:
    house.run()
    house.gone = True
    house.run("other", force=["other"])
    assert house.calls == ["other"]


def test_present_revives_the_named_stage(house: ToyHouse) -> None:
    house.run()
    house.gone = True
    assert house.run("thing", present=True)["thing"] == "made"
    assert house.run("thing", present=True)["thing"] == "unchanged"


def test_failed_revival_blocks_what_needed_it(house: ToyHouse) -> None:
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


def test_force_runs_only_the_forced_stage(house: ToyHouse) -> None:
    house.run()
    states = house.run("use", force=["use"])
    assert states == {"base": "unchanged", "thing": "unchanged", "use": "made"}
    assert house.calls == ["use"]


def test_alone_takes_upstream_as_it_is(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert house.run("summary", force=["summary"], alone=True) == {"summary": "made"}
    assert house.calls == ["summary"]


def test_alone_runs_with_nothing_on_record(house: ToyHouse) -> None:
    assert house.run("summary", alone=True) == {"summary": "made"}
    assert [outcome.data for outcome in house.seen] == [None, None, None]


def test_interrupt_leaves_no_record(house: ToyHouse) -> None:
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


def test_unreadable_note_is_told_not_overlooked(house: ToyHouse) -> None:
    (house.root / "artifacts").mkdir()
    (house.root / "artifacts" / "note.json").write_text("{", encoding="utf-8")
    house.run()
    failure = house.pipeline().outcome(Note).failure
    assert failure is not None
    assert "note.json is not readable JSON" in failure.message


def test_a_disk_that_refuses_is_a_failure_of_the_stage(house: ToyHouse) -> None:
    house.troubled["use"] = PermissionError(errno.EACCES, "Permission denied", "models/x")
    assert house.run()["use"] == "failed"
    failure = house.pipeline().store.read("use")
    assert failure is not None
    assert failure.failure is not None
    assert (failure.failure.kind, failure.failure.message) == ("machine", "models/x: Permission denied")
    assert "chown" in failure.failure.hint


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), PermissionError(errno.EPERM, "not permitted")])
def test_any_other_trouble_of_the_system_is_a_bug(house: ToyHouse, error: OSError) -> None:
    house.troubled["use"] = error
    with pytest.raises(OSError, match=str(error.strerror)):
        house.run()


def test_record_of_no_known_form_runs_the_stage_again(house: ToyHouse) -> None:
    house.run()
    path = house.root / "artifacts" / "use.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"tens"', '"zehner"'), encoding="utf-8")
    assert house.why("use") == "its record has no form that this program knows"
    assert house.run()["use"] == "made"


def test_record_of_an_older_form_stands_while_its_inputs_do(house: ToyHouse, monkeypatch: pytest.MonkeyPatch) -> None:
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
