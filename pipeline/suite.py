"""Inputs of tests, checked on load: router suites (prompt template, schema, golden cases) and lists of prompts."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import ValidationError

from pipeline.config.schema import RouterConfig
from pipeline.errors import ConfigError
from pipeline.values import Frozen

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator


FREE, BOUND = "prompt_only", "constrained"  # the ways to ask for JSON: by the prompt alone, or with the schema as a grammar
System = Literal["role", "user"]  # where the system prompt stands: in a message of its own role, or in front of the user's text


class SuiteFile(Frozen):
    """suite.yaml: what the suite is and the files it consists of."""

    name: str
    language: Literal["en", "tr"]
    description: str
    prompt: str
    schema_file: str
    cases: str
    system: System = "role"


class Alternative(Frozen):
    """What another right answer has in place of the golden answer's."""

    route: str | None = None
    calendar_intent: str | None = None
    slots: dict[str, str] | None = None
    tool_plan: list[str] | None = None


class Case(Frozen):
    """One utterance with its golden answer; without a `tool_plan` any plan is right."""

    id: str
    text: str
    route: str
    calendar_intent: str
    slots: dict[str, str]
    tool_plan: list[str] | None = None
    alternatives: list[Alternative] = []
    tags: list[str] = []

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Return every right answer, the golden one first, an alternative merged over it."""
        golden = self.model_dump(include={"route", "calendar_intent", "slots", "tool_plan"}, exclude_none=True)
        return [golden, *(golden | alternative.model_dump(exclude_none=True) for alternative in self.alternatives)]

    @property
    def routes(self) -> set[str]:
        """Return the routes that are right."""
        return {answer["route"] for answer in self.answers}


@dataclass(frozen=True)
class Suite:
    """A checked suite; `prompt` is the rendered system prompt."""

    name: str
    language: str
    prompt: str
    schema: dict[str, Any]
    cases: list[Case]
    system: System = "role"

    @cached_property
    def validator(self) -> "Draft202012Validator":
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.schema)

    def messages(self, case: Case) -> list[dict[str, str]]:
        """Return the chat messages, the stable part first so that the prefix cache serves it."""
        if self.system == "user":
            return [{"role": "user", "content": f"{self.prompt}\n\n{case.text}"}]
        return [{"role": "system", "content": self.prompt}, {"role": "user", "content": case.text}]

    @property
    def request_fields(self) -> dict[str, dict[str, Any]]:
        """Return the extra request fields of each way to ask."""
        response_format = {"type": "json_schema", "json_schema": {"name": "router", "schema": self.schema, "strict": True}}
        return {FREE: {}, BOUND: {"response_format": response_format}}


def suite_for(settings: RouterConfig, takes_system: bool, root: Path) -> Suite:
    """Return the suite; its system prompt is in front of the user's text also where the served model takes no system message."""
    in_front = settings.system == "suite" and not takes_system
    return load_suite(root / settings.suite, "user" if in_front else settings.system)


def load_suite(folder: Path, system: System | Literal["suite"] = "suite") -> Suite:
    """Return the suite in `folder`, its system prompt where `system` says; ConfigError names file, line and what is wrong."""
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
    prompt, cases = render(folder / suite.prompt), load_cases(folder / suite.cases, schema)
    return Suite(suite.name, suite.language, prompt, schema, cases, suite.system if system == "suite" else system)


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
    """Return the cases in `path`, one JSON object a line, ids unique, right answers such as `schema` allows."""
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
        for position, answer in enumerate(case.answers):
            for problem in allowed.iter_errors(answer):
                where = problem.json_path.removeprefix("$.") if position == 0 else f"alternatives.{position - 1}{problem.json_path[1:]}"
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
