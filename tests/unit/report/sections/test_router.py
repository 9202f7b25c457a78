"""The router section: examples and confusion."""

from tests.builders.house import House
from tests.builders.records import (
    router_result,
)
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
