"""Inputs of tests, checked on load: router suites (prompt template, schema, golden cases) and lists of prompts."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.values import Frozen

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


class SuiteFile(Frozen):
    """suite.yaml: what the suite is and the files it consists of."""

    name: str
    language: Literal["en", "tr"]
    description: str
    prompt: str
    schema_file: str
    cases: str


class Case(Frozen):
    """One utterance with its golden answer."""

    id: str
    text: str
    route: str
    calendar_intent: str
    slots: dict[str, str]
    tags: list[str] = []


@dataclass(frozen=True)
class Suite:
    """A checked suite; `prompt` is the rendered system prompt."""

    name: str
    language: str
    prompt: str
    schema: dict[str, Any]
    cases: list[Case]

    @cached_property
    def validator(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.schema)

    def messages(self, case: Case) -> list[dict[str, str]]:
        """Return the chat messages, the stable part first so that the prefix cache can serve it."""
        return [{"role": "system", "content": self.prompt}, {"role": "user", "content": case.text}]


def load_suite(folder: Path) -> Suite:
    """Return the suite in `folder`; ConfigError names file, line and what is wrong."""
    path = folder / "suite.yaml"
    try:
        raw = yaml.safe_load(text_of(path))
        if isinstance(raw, dict) and "schema" in raw:
            raw["schema_file"] = raw.pop("schema")  # pydantic's models reserve the name `schema`
        suite = SuiteFile.model_validate(raw)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: {error.problem or 'not YAML'}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {complaint(error)}") from error
    schema = load_schema(folder / suite.schema_file)
    return Suite(suite.name, suite.language, render(folder / suite.prompt), schema, load_cases(folder / suite.cases, schema))


def load_schema(path: Path) -> dict[str, Any]:
    """Return the JSON Schema in `path`; ConfigError if it is not a valid one."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema = json.loads(text_of(path))
        Draft202012Validator.check_schema(schema)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except SchemaError as error:
        raise ConfigError(f"{path}: not a JSON Schema: {error.message}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path}: expected a JSON Schema object")
    return schema


def load_cases(path: Path, schema: dict[str, Any]) -> list[Case]:
    """Return the cases in `path`, one JSON object a line; ids must be unique, and `schema` must allow the golden answers."""
    from jsonschema import Draft202012Validator

    allowed = Draft202012Validator({"properties": schema.get("properties", {})})
    cases: list[Case] = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            case = Case.model_validate_json(line)
        except ValidationError as error:
            raise ConfigError(f"{path}:{number}: {complaint(error)}") from error
        if any(case.id == known.id for known in cases):
            raise ConfigError(f"{path}:{number}: id {case.id!r} is used twice")
        golden = case.model_dump(include={"route", "calendar_intent", "slots"})
        for problem in allowed.iter_errors(golden):
            where = problem.json_path.removeprefix("$.")
            raise ConfigError(f"{path}:{number}: {where}: {problem.message}", "the suite's schema allows no such golden answer")
        cases.append(case)
    if not cases:
        raise ConfigError(f"{path}: no cases", "write one JSON object a line")
    return cases


def load_prompts(path: Path) -> list[str]:
    """Return the prompts in `path`, one a line; ConfigError if one is repeated."""
    prompts: list[str] = []
    for number, line in enumerate(text_of(path, "write one prompt a line").split("\n"), 1):
        if line.strip() in prompts:
            raise ConfigError(f"{path}:{number}: the prompt is there twice")
        if line.strip():
            prompts.append(line.strip())
    if not prompts:
        raise ConfigError(f"{path}: no prompts", "write one prompt a line")
    return prompts


def render(path: Path) -> str:
    """Return the rendered prompt template."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)
    try:
        return environment.from_string(text_of(path)).render().strip()
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.message}") from error
    except jinja2.UndefinedError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def text_of(path: Path, hint: str = "a suite is a folder with suite.yaml, a prompt, a schema and cases") -> str:
    """Return the file's text; ConfigError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint) from error


def complaint(error: ValidationError) -> str:
    """Return pydantic's first complaint as `key: what is wrong`."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
