"""A suite is checked on load; each complaint says where."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.errors import ConfigError
from pipeline.suite import load_suite

ROOT = Path(__file__).resolve().parents[2]
SUITE = "name: toy\nlanguage: en\ndescription: d\nprompt: prompt.j2\nschema: schema.json\ncases: cases.jsonl\n"
CASE = {"id": "a", "text": "Hi", "route": "smalltalk", "calendar_intent": "none", "slots": {}}
SCHEMA = '{\n "type": "object"\n}\n'


def line(**changes: Any) -> str:
    return json.dumps(CASE | changes, ensure_ascii=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "prompt.j2").write_text("Route\n{% for word in ['a', 'b'] %}{{ word }}{% endfor %}\n\n", encoding="utf-8")
    (tmp_path / "schema.json").write_text(SCHEMA, encoding="utf-8")
    (tmp_path / "cases.jsonl").write_text(f"{line()}\n\n{line(id='b', tags=['t'])}\n", encoding="utf-8")
    return tmp_path


def trouble(folder: Path, name: str, content: str | bytes | None) -> str:
    """Return the complaint when the file `name` holds `content`, its folder left out."""
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_suite(folder)
    return caught.value.message.replace(f"{folder}/", "")


def test_good_suite_is_loaded(folder: Path) -> None:
    suite = load_suite(folder)
    assert (suite.name, suite.language, suite.prompt, suite.schema) == ("toy", "en", "Route\nab", {"type": "object"})
    assert [(case.id, case.tags) for case in suite.cases] == [("a", []), ("b", ["t"])]


def test_messages_begin_with_the_stable_part(folder: Path) -> None:
    suite = load_suite(folder)
    assert suite.messages(suite.cases[0]) == [{"role": "system", "content": "Route\nab"}, {"role": "user", "content": "Hi"}]


def test_validator_is_of_the_suites_schema(folder: Path) -> None:
    validator = load_suite(folder).validator
    assert validator.is_valid({})
    assert not validator.is_valid([])


@pytest.mark.parametrize("name", ["suite.yaml", "prompt.j2", "schema.json", "cases.jsonl"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    told = trouble(folder, name, None)
    assert told.startswith(f"{name}: ")
    assert "No such file" in told


@pytest.mark.parametrize("name", ["suite.yaml", "prompt.j2", "schema.json", "cases.jsonl"])
def test_file_that_is_not_utf8_is_named(folder: Path, name: str) -> None:
    assert trouble(folder, name, b"# \xff\n").startswith(f"{name}: 'utf-8' codec can't decode")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/suite\.yaml"):
        load_suite(tmp_path / "nowhere")


def test_bad_yaml_has_its_line(folder: Path) -> None:
    assert trouble(folder, "suite.yaml", "name: toy\nlanguage: [en\ncases: x\n").startswith("suite.yaml:3: ")


def test_unknown_key_of_the_suite_is_named(folder: Path) -> None:
    assert trouble(folder, "suite.yaml", f"{SUITE}colour: red\n").endswith("colour: Extra inputs are not permitted")


def test_missing_key_of_the_suite_is_named(folder: Path) -> None:
    told = trouble(folder, "suite.yaml", SUITE.replace("prompt: prompt.j2\n", ""))
    assert told.startswith("suite.yaml")
    assert told.endswith("prompt: Field required")


def test_language_that_we_do_not_have_is_refused(folder: Path) -> None:
    assert "language: " in trouble(folder, "suite.yaml", SUITE.replace("en", "xx"))


@pytest.mark.parametrize("content", ["", "5\n", "- a\n"])
def test_suite_that_is_no_mapping_is_refused(folder: Path, content: str) -> None:
    assert trouble(folder, "suite.yaml", content).startswith("suite.yaml")


def test_schema_that_is_not_json_has_its_line(folder: Path) -> None:
    assert trouble(folder, "schema.json", '{\n "type": object\n}\n').startswith("schema.json:2: not JSON: ")


@pytest.mark.parametrize("content", ['{"type": "objekt"}', '{"type": 5}', "[]", '{"required": "a"}'])
def test_schema_that_is_none_is_refused(folder: Path, content: str) -> None:
    assert trouble(folder, "schema.json", content).startswith("schema.json: not a JSON Schema: ")


@pytest.mark.parametrize("content", ["true", "false"])
def test_schema_that_is_a_boolean_is_refused(folder: Path, content: str) -> None:
    assert trouble(folder, "schema.json", content) == "schema.json: expected a JSON Schema object"


def test_syntax_error_of_the_prompt_has_its_line(folder: Path) -> None:
    assert trouble(folder, "prompt.j2", "a\nb\n{% if %}\n").startswith("prompt.j2:3: ")


def test_undefined_name_in_the_prompt_is_told(folder: Path) -> None:
    told = trouble(folder, "prompt.j2", "a\n{{ utterance }}\n")
    assert told.startswith("prompt.j2")
    assert "'utterance' is undefined" in told


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        (line(route=5), "route: Input should be a valid string"),
        (line(slots={"title": 5}), "slots.title: Input should be a valid string"),
        (line(mood="x"), "mood: Extra inputs are not permitted"),
        (json.dumps({"id": "x"}), "text: Field required"),
        (line(id="a"), "id 'a' is used twice"),
    ],
)
def test_bad_case_has_its_line(folder: Path, bad: str, told: str) -> None:
    message = trouble(folder, "cases.jsonl", f"{line()}\n\n{line(id='b')}\n{bad}\n")
    assert message.startswith("cases.jsonl:4: ")
    assert told in message


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_suite_without_cases_is_refused(folder: Path, content: str) -> None:
    assert trouble(folder, "cases.jsonl", content) == "cases.jsonl: no cases"


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\u0085"])
def test_line_separators_of_unicode_may_stand_inside_a_case(folder: Path, letter: str) -> None:
    (folder / "cases.jsonl").write_text(line(text=f"a{letter}b") + "\n", encoding="utf-8")
    assert load_suite(folder).cases[0].text == f"a{letter}b"


def test_alternatives_are_merged_over_the_golden_answer(folder: Path) -> None:
    others = [{"route": "unknown"}, {"slots": {}, "tool_plan": ["x"]}]
    (folder / "cases.jsonl").write_text(line(slots={"title": "t"}, alternatives=others) + "\n", encoding="utf-8")
    (case,) = load_suite(folder).cases
    golden = {"route": "smalltalk", "calendar_intent": "none", "slots": {"title": "t"}}
    assert case.answers == [golden, golden | {"route": "unknown"}, golden | {"slots": {}, "tool_plan": ["x"]}]
    assert case.routes == {"smalltalk", "unknown"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"route": "weather"}, "route: 'weather' is not one of"),
        ({"slots": {"colour": "red"}}, "slots: Additional properties are not allowed"),
        ({"tool_plan": ["x"]}, "tool_plan[0]: 'x' is not one of"),
        ({"alternatives": [{"route": "unknown"}, {"route": "weather"}]}, "alternatives.1.route: 'weather' is not one of"),
        ({"alternatives": [{"slots": {"colour": "red"}}]}, "alternatives.0.slots: Additional properties are not allowed"),
        ({"alternatives": [{"mood": "x"}]}, "alternatives.0.mood: Extra inputs are not permitted"),
    ],
)
def test_right_answer_that_the_schema_forbids_has_its_line(folder: Path, changes: dict[str, Any], told: str) -> None:
    shutil.copy(ROOT / "suites" / "router-en" / "schema.json", folder)
    assert trouble(folder, "cases.jsonl", f"{line(id='b')}\n{line(**changes)}\n").startswith(f"cases.jsonl:2: {told}")


@pytest.mark.parametrize(
    ("written", "wanted", "roles"),
    [
        ("", "suite", ["system", "user"]),
        ("system: role\n", "suite", ["system", "user"]),
        ("system: user\n", "suite", ["user"]),
        ("system: user\n", "role", ["system", "user"]),
        ("", "user", ["user"]),
    ],
)
def test_system_prompt_stands_where_the_suite_or_the_setting_says(
    folder: Path, written: str, wanted: Literal["suite", "role", "user"], roles: list[str]
) -> None:
    (folder / "suite.yaml").write_text(SUITE + written, encoding="utf-8")
    suite = load_suite(folder, wanted)
    messages = suite.messages(suite.cases[0])
    assert [message["role"] for message in messages] == roles
    assert "\n\n".join(message["content"] for message in messages) == "Route\nab\n\nHi"


def test_place_of_the_system_prompt_that_we_do_not_know_is_refused(folder: Path) -> None:
    assert "system: Input should be 'role' or 'user'" in trouble(folder, "suite.yaml", f"{SUITE}system: top\n")
