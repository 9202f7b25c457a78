"""The laws that the shipped suites and lists of prompts obey."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.measure.answers import normalised
from pipeline.suite import Case, load_prompts, load_suite

SUITES = Path(__file__).resolve().parents[2] / "suites"
LANGUAGES = ("en", "tr")
ROUTES = {"calendar", "smalltalk", "unknown"}
PLANS = {
    "create": ["calendar.create"],
    "modify": ["calendar.update"],
    "cancel": ["calendar.delete"],
    "query": ["calendar.list"],
    "none": [],
}


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cases(language: str) -> list[Case]:
    return load_suite(SUITES / f"router-{language}").cases


def test_ids_are_consecutive_and_the_cases_enough(language: str, cases: list[Case]) -> None:
    assert [case.id for case in cases] == [f"{language}-{number:03}" for number in range(1, len(cases) + 1)]
    assert len(cases) >= 128


def test_no_two_texts_are_the_same(cases: list[Case]) -> None:
    assert [text for text, count in Counter(normalised(case.text) for case in cases).items() if count > 1] == []


@pytest.mark.parametrize("first", [16, 24, 64, None])
def test_routes_are_spread_from_the_start(cases: list[Case], first: int | None) -> None:
    some = cases[:first]
    assert set.union(*(case.routes for case in some)) == ROUTES
    assert {case.route for case in some} == ROUTES
    assert max(Counter(route for case in some for route in case.routes).values()) <= 0.4 * len(some)


def test_every_intent_is_there(cases: list[Case]) -> None:
    assert {case.calendar_intent for case in cases} == set(PLANS)


def test_a_right_answer_agrees_with_itself_and_with_the_prompts_table(language: str, cases: list[Case]) -> None:
    validator = load_suite(SUITES / f"router-{language}").validator
    for case in cases:
        for answer in case.answers:
            assert (answer["route"] == "calendar") == (answer["calendar_intent"] != "none"), case.id
            assert answer["tool_plan"] == PLANS[answer["calendar_intent"]], case.id
            assert answer["route"] == "calendar" or answer["slots"] == {}, case.id
            assert validator.is_valid({**answer, "confidence": 1, "assistant_reply": "ok"}), case.id


def test_slots_are_copied_from_the_text(cases: list[Case]) -> None:
    for case in cases:
        for value in (value for answer in case.answers for value in answer["slots"].values()):
            assert normalised(value) in normalised(case.text), case.id
            assert value == value.strip() != "", case.id
            assert not normalised(value).startswith(("the ", "my ")), case.id


def test_alternatives_are_few_and_say_something_else(cases: list[Case]) -> None:
    assert sum(bool(case.alternatives) for case in cases) <= 0.05 * len(cases)
    for case in cases:
        assert all(case.answers.count(answer) == 1 for answer in case.answers), case.id


def test_prompts_of_the_determinism_test_are_distinct_and_enough(language: str) -> None:
    prompts = load_prompts(SUITES / f"determinism-{language}.txt")
    assert len(prompts) == 32
    assert len({normalised(prompt) for prompt in prompts}) == 32
