"""A stage that takes every record, and contexts, which are given and not set."""

from pathlib import Path

import pytest

from pipeline.engine.context import Context
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Artifact, Failure, Measurement, Outcome, Store, now
from pipeline.engine.stage import Stage
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.terminal import Silent


class Base(Artifact):
    tens: int


class Speed(Measurement):
    """A record with figures."""


class Note(Artifact):
    text: str


class Summary(Artifact):
    words: list[str]


class Day(Context):
    name: str = "Monday"


def base(day: Day) -> Base:
    return Base(tens=len(day.name))


def speed(base: Base) -> Speed:
    if base.tens > 6:
        raise ServerError("it broke")
    return Speed(launch_id="L1", simulated=False, figures={})


def summary(outcomes: Outcomes) -> Summary:
    base, note = outcomes[Base], outcomes[Note]
    told = [outcome.stage for outcome in outcomes]
    return Summary(words=[*told, f"{base.data and base.data.tens}", note.data.text if note.data else "no note"])


def pipeline(root: Path, day: Day | None = None) -> Pipeline:
    stages = [Stage(summary), Stage(speed), Stage(base)]
    return Pipeline(stages, Workspace(root, Silent()), lambda kind: kind(), {Note: "note"}, lambda _kind: day or Day())


def words(root: Path) -> list[str]:
    made = pipeline(root).outcome(Summary).data
    assert isinstance(made, Summary)
    return made.words


def test_it_runs_last_and_takes_every_record_and_note_by_its_type(tmp_path: Path) -> None:
    results = pipeline(tmp_path).ensure(["summary"])
    assert [result.stage for result in results] == ["base", "speed", "summary"]
    assert words(tmp_path) == ["base", "speed", "note", "6", "no note"]
    Store(tmp_path / "artifacts").write("note", {}, now(), 1.0, Note(text="hello"))
    assert pipeline(tmp_path).why(pipeline(tmp_path).stage("summary")).startswith("note changed: never ran → ok ")
    pipeline(tmp_path).ensure(["summary"])
    assert words(tmp_path)[-1] == "hello"


def test_it_runs_also_where_a_stage_failed_and_says_so_in_its_fingerprint(tmp_path: Path) -> None:
    made = pipeline(tmp_path, Day(name="Saturday"))
    assert [result.state for result in made.ensure(["summary"])] == ["made", "failed", "made"]
    assert made.because(made.stage("summary"))["speed"] == "failed: it broke"


def test_its_fingerprint_is_that_of_one_parameter_for_each_record(tmp_path: Path) -> None:
    def each(base: Outcome[Base], speed: Outcome[Speed], note: Outcome[Note]) -> Summary:
        return Summary(words=[])

    each.__module__ = summary.__module__
    pipeline(tmp_path).ensure(["speed"])
    other = Pipeline(
        [Stage(each), Stage(speed), Stage(base)], Workspace(tmp_path), lambda kind: kind(), {Note: "note"}, lambda _kind: Day()
    )
    made = pipeline(tmp_path)
    assert made.because(made.stage("summary")) == other.because(other.stage("each"))


def test_a_context_is_a_reason_to_run_under_the_name_of_its_parameter(tmp_path: Path) -> None:
    pipeline(tmp_path).ensure(["base"])
    made = pipeline(tmp_path, Day(name="Tuesday"))
    assert made.because(made.stage("base"))["day"] == {"name": "Tuesday"}
    assert made.why(made.stage("base")) == "day.name changed: Monday → Tuesday"


def test_outcomes_know_the_edges_and_which_stages_measure(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    outcomes = made.outcomes(made.stage("summary"))
    assert outcomes.edges == [("base", "speed")]
    assert [outcome.stage for outcome in outcomes.stages] == ["base", "speed"]
    assert [outcome.stage for outcome in outcomes.measuring] == ["speed"]
    assert [made.stage(name).measures for name in ("base", "speed")] == [False, True]


def test_outcomes_are_found_by_name_and_replaced(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    outcomes = made.outcomes(made.stage("summary"))
    failed: Outcome[Note] = Outcome("note", None, None, Failure(kind="k", message="m"))
    changed = outcomes.having({"note": failed})
    assert changed[Note] is failed
    assert changed[Base] is outcomes[Base]
    assert (changed.named("note"), changed.named("nowhere")) == (failed, None)
    with pytest.raises(KeyError):
        outcomes[Summary]
