"""Why a stage would run, in words, on toy stages: its fingerprint, and how two of them differ."""

from typing import Any

import pytest

from pipeline.engine.fingerprint import content_digest, differences
from pipeline.engine.pipeline import Pipeline
from pipeline.engine.record import Outcome
from pipeline.engine.stage import Stage
from pipeline.engine.workspace import Workspace
from tests.builders.toys import Base, KnobConfig, Note, ToyHouse, Use


def test_fresh_stage_never_ran(house: ToyHouse) -> None:
    assert house.why("base") == "never ran"


def test_why_is_empty_when_nothing_changed(house: ToyHouse) -> None:
    house.run()
    assert house.why("base") == ""


def test_why_names_the_setting_and_both_values(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    assert house.why("base") == "knob.level changed: 10 → 20"


def test_why_names_every_changed_setting(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=20, colour="blue")
    assert house.why("base") == "knob.level changed: 10 → 20; knob.colour changed: red → blue"


def test_why_names_the_changed_upstream(house: ToyHouse) -> None:
    house.run()
    house.knob = KnobConfig(level=20)
    house.run("base")
    assert house.why("thing") == "base changed"


def test_why_says_that_the_code_changed(house: ToyHouse) -> None:
    house.run()
    source = house.root.joinpath(*ToyHouse.__module__.split(".")).with_suffix(".py")
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n", encoding="utf-8")
    assert house.why("base") == "code changed"


@pytest.mark.parametrize(("name", "content"), [("a.txt", "b"), ("b.txt", "new")])
def test_why_names_the_folder_whose_content_changed(house: ToyHouse, name: str, content: str) -> None:
    house.run()
    (house.root / "data" / name).write_text(content, encoding="utf-8")
    assert house.why("base") == "knob file data changed"


def test_touched_file_with_the_same_content_changes_nothing(house: ToyHouse) -> None:
    house.run()
    (house.root / "data" / "a.txt").write_text("a", encoding="utf-8")
    assert house.why("base") == ""


def test_renamed_file_counts_as_changed(house: ToyHouse) -> None:
    before = content_digest(house.root / "data")
    (house.root / "data" / "a.txt").rename(house.root / "data" / "b.txt")
    assert content_digest(house.root / "data") not in (before, "missing")


def test_missing_file_has_a_digest_of_its_own(house: ToyHouse) -> None:
    assert content_digest(house.root / "nowhere") == "missing"


def test_unreadable_record_runs_the_stage_again(house: ToyHouse) -> None:
    house.run()
    (house.root / "artifacts" / "use.json").write_text("{", encoding="utf-8")
    assert house.why("use") == "its record cannot be read"
    assert house.run()["use"] == "made"


def test_fingerprint_is_pinned(house: ToyHouse) -> None:
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
