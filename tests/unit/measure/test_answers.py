"""One router answer: strict, lenient, valid, and the class of each failure."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline.measure.answers import check, extract_object, is_right, normalised, strict_object

SCHEMA = Path(__file__).resolve().parents[3] / "suites" / "router-en" / "schema.json"
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
GOOD: dict[str, Any] = {
    "route": "calendar",
    "calendar_intent": "create",
    "slots": {"title": "dentist"},
    "confidence": 0.9,
    "tool_plan": ["calendar.create"],
    "assistant_reply": "Adding it.",
}
TEXT = json.dumps(GOOD)


def failure_of(**changes: Any) -> str | None:
    """Return the failure class of the good answer with `changes`."""
    checked = check(json.dumps(GOOD | changes), "stop", VALIDATOR)
    assert checked.strict
    assert checked.valid == (checked.failure is None)
    return checked.failure


@pytest.mark.parametrize("text", [TEXT, f"  {TEXT}\n", json.dumps(GOOD, indent=4)])
def test_whole_object_is_strict_lenient_and_valid(text: str) -> None:
    checked = check(text, "stop", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid, checked.failure) == (True, True, True, None)
    assert checked.value == GOOD


@pytest.mark.parametrize("text", [f"```json\n{TEXT}\n```", f"```\n{TEXT}\n```", f"Sure!\n```json\n{TEXT}\n```"])
def test_fence_is_lenient_only(text: str) -> None:
    checked = check(text, "stop", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid, checked.failure) == (False, True, False, "fence")
    assert checked.value == GOOD


@pytest.mark.parametrize("text", [f"{TEXT} I hope this helps.", f"Here it is: {TEXT}", f"{TEXT}\n{TEXT}", f"{TEXT}}}"])
def test_text_round_the_object_is_lenient_only(text: str) -> None:
    checked = check(text, "stop", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid, checked.failure) == (False, True, False, "trailing text")
    assert checked.value == GOOD


@pytest.mark.parametrize("text", [TEXT[:-1], TEXT[:20], "", "```json\n{"])
def test_cut_off_answer_is_truncated(text: str) -> None:
    checked = check(text, "length", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid, checked.failure) == (False, False, False, "truncated")
    assert checked.value is None


@pytest.mark.parametrize(
    "text", [TEXT[:-1], "", "hello", "[1, 2]", "5", "null", '"text"', f"[{'1, ' * 50}1]", "\x00", "{'route': 'calendar'}"]
)
def test_other_text_is_not_json(text: str) -> None:
    checked = check(text, "stop", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid, checked.failure) == (False, False, False, "not JSON")


def test_part_of_a_broken_object_is_not_taken_for_the_answer() -> None:
    assert check(TEXT[:-1], "stop", VALIDATOR).value is None  # not {"title": "dentist"}, the slots inside it


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json_are_refused(constant: str) -> None:
    assert check(TEXT.replace("0.9", constant), "stop", VALIDATOR).failure == "not JSON"


def test_number_too_large_for_a_float_is_out_of_bounds() -> None:
    assert check(TEXT.replace("0.9", "1e999"), "stop", VALIDATOR).failure == "out of bounds"


def test_number_with_thousands_of_digits_does_not_raise() -> None:
    assert not check(TEXT.replace("0.9", "1" * 10_000), "stop", VALIDATOR).valid


@pytest.mark.parametrize("text", [TEXT[:-1] + ', "route": "calendar"}', TEXT.replace('"title"', '"title": "a", "title"')])
def test_repeated_key_is_not_strict(text: str) -> None:
    checked = check(text, "stop", VALIDATOR)
    assert (checked.strict, checked.lenient, checked.valid) == (False, False, False)


@pytest.mark.parametrize("changes", [{"route": "calendar|smalltalk"}, {"calendar_intent": "create|modify|cancel"}, {"tool_plan": ["a|b"]}])
def test_echoed_choices_are_a_class_of_their_own(changes: dict[str, Any]) -> None:
    assert failure_of(**changes) == "echoed choices"


@pytest.mark.parametrize("changes", [{"route": "weather"}, {"calendar_intent": ""}, {"tool_plan": ["calendar.explode"]}])
def test_unknown_value(changes: dict[str, Any]) -> None:
    assert failure_of(**changes) == "unknown value"


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": "0.9"},
        {"confidence": True},
        {"confidence": None},
        {"slots": []},
        {"slots": {"title": 5}},
        {"tool_plan": "x"},
        {"route": 5},
    ],
)
def test_wrong_type(changes: dict[str, Any]) -> None:
    assert failure_of(**changes) == "wrong type"


@pytest.mark.parametrize("key", sorted(GOOD))
def test_missing_key(key: str) -> None:
    rest = {name: value for name, value in GOOD.items() if name != key}
    assert check(json.dumps(rest), "stop", VALIDATOR).failure == "missing key"


@pytest.mark.parametrize("changes", [{"mood": "good"}, {"slots": {"weather": "rain"}}])
def test_extra_key(changes: dict[str, Any]) -> None:
    assert failure_of(**changes) == "extra key"


@pytest.mark.parametrize(
    "changes", [{"confidence": 1.01}, {"confidence": -0.1}, {"tool_plan": ["calendar.list"] * 3}, {"slots": {"title": "x" * 1000}}]
)
def test_out_of_bounds(changes: dict[str, Any]) -> None:
    assert failure_of(**changes) == "out of bounds"


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"slots": ['])
def test_deep_nesting_never_raises(opening: str) -> None:
    closing = opening.translate({ord("["): "]", ord("{"): "}"})[::-1]
    brackets = "".join(letter for letter in closing if letter in "]}")
    for depth in (10, 100, 2000):
        text = opening * depth + "1" + brackets * depth
        assert not check(text, "stop", VALIDATOR).valid
        assert not check(opening * depth, "stop", VALIDATOR).valid


def test_value_nested_as_deep_as_the_parser_allows_never_raises() -> None:
    for depth in range(700, 1010):  # the parser's limit lies in here, where writing the complaint could go deeper than parsing
        assert not check(f'{{"route": {"[" * depth}{"]" * depth}}}', "stop", VALIDATOR).valid


@given(st.text(alphabet='{}[]":,truefalsn01.-e`\\ \n', max_size=60), st.sampled_from(["stop", "length", None]))
def test_any_text_is_classified_without_raising(text: str, reason: str | None) -> None:
    checked = check(text, reason, VALIDATOR)
    assert checked.valid == (checked.failure is None)
    assert checked.lenient or not checked.strict
    assert checked.strict or not checked.valid
    assert (checked.value is not None) == checked.lenient


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_every_json_object_is_strict_and_kept(value: dict[str, Any]) -> None:
    assert strict_object(json.dumps(value)) == value


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.text(alphabet="abc ., \n`"), st.text(alphabet="abc ., \n`"))
def test_object_is_found_whatever_stands_round_it(value: dict[str, Any], before: str, after: str) -> None:
    assert extract_object(before + json.dumps(value) + after) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dentist", "dentist"),
        (" call\n with\u00a0 Sam ", "call with Sam"),
        ("İzmir", "izmir"),
        ("İzmir", "i\u0307zmir"),
        ("IŞIK", "ışık"),
        ("Interview", "interview"),
        ("İPTAL", "iptal"),
        ("STRASSE", "straße"),
        ("Ayşe", unicodedata.normalize("NFD", "ayşe")),
    ],
)
def test_case_white_space_and_composition_make_no_difference(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("dentist", "dentists"), ("dişçi", "disci"), ("3 pm", "3pm"), ("", "a")])
def test_other_words_remain_others(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"confidence": 0.1, "assistant_reply": ""}, True),
        ({"slots": {"title": " DENTİST"}}, True),
        ({"slots": {"title": "doctor"}}, False),
        ({"slots": {"title": "dentist", "time": "3"}}, False),
        ({"slots": {}}, False),
        ({"slots": {"title": 5}}, False),
        ({"slots": "dentist"}, False),
        ({"route": "Calendar"}, False),
        ({"calendar_intent": "modify"}, False),
        ({"tool_plan": []}, False),
        ({"tool_plan": ["calendar.create", "calendar.list"]}, False),
        ({"tool_plan": None}, False),
    ],
)
def test_answer_is_right_when_it_has_all_that_the_golden_one_has(changes: dict[str, Any], right: bool) -> None:
    golden = {key: GOOD[key] for key in ("route", "calendar_intent", "slots", "tool_plan")}
    assert is_right(GOOD | changes, golden) == right


def test_plan_counts_only_where_the_golden_answer_has_one_and_in_its_order() -> None:
    golden: dict[str, Any] = {"route": "calendar", "calendar_intent": "create", "slots": {"title": "dentist"}}
    assert is_right(GOOD | {"tool_plan": ["x"]}, golden)
    assert is_right(GOOD | {"tool_plan": ["x", "y"]}, golden | {"tool_plan": ["x", "y"]})
    assert not is_right(GOOD | {"tool_plan": ["y", "x"]}, golden | {"tool_plan": ["x", "y"]})
