"""The router section: examples and confusion."""

from pipeline.measure.figures import not_measured
from tests.builders.house import House
from tests.builders.records import figure, router_result
from tests.builders.reports import line


def test_pipes_and_newlines_of_answers_stay_in_their_row(house: House) -> None:
    house.results["test-router"] = router_result('{"route": "calendar|smalltalk"}\n| x |\n<script>')
    row = line(house.text(), "| en-001 |")
    assert row.replace("\\|", "").count("|") == 5
    assert "calendar\\|smalltalk" in row
    assert row.endswith('| `{"route": "calendar\\|smalltalk"} \\| x \\| <script>` |'), "code is shown as it is"


def test_routes_are_shown_as_confusion_and_case_by_case(house: House) -> None:
    text = house.text()
    assert "| Golden | calendar | unknown |" in text
    assert "| calendar | 5 | 1 |" in text
    assert "| unknown | 10 | 0 |" in text
    assert "only prompt-only 0, only constrained 5, neither 11; McNemar's exact p of the difference 0.062." in text


def test_joint_accuracy_is_called_by_what_it_covers(house: House) -> None:
    measured = {"constrained_joint_accuracy": figure(50, "%", 16), "constrained_tool_plan_accuracy": figure(75, "%", 16)}
    made = router_result()
    house.results["test-router"] = made.model_copy(update={"figures": measured})
    text = house.text()
    assert line(text, "| constrained: tool plan right |")
    assert line(text, "| constrained: route, intent, slots and tool plan right |")
    none = {"constrained_tool_plan_accuracy": not_measured("%", "the suite's cases have no tool plan")}
    for figures in (measured | none, {"constrained_joint_accuracy": figure(50, "%", 16)}):
        house.results["test-router"] = made.model_copy(update={"figures": figures})
        assert line(house.text(), "| constrained: route, intent and slots right |")


def test_report_says_where_the_system_prompt_stood(house: House) -> None:
    said = "The system prompt stands in front of the user's text, in one message."
    house.results["test-router"] = router_result()
    assert said not in house.text()
    house.results["test-router"] = router_result().model_copy(update={"system": "user"})
    assert said in house.text()
