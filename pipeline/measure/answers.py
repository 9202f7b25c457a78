"""Check one router answer: is it JSON, does it fit the schema, is it right? Pure."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # at run time the validator comes ready made
    from jsonschema import Draft202012Validator

FailureClass = Literal[
    "failed request",
    "truncated",
    "fence",
    "trailing text",
    "not JSON",
    "echoed choices",
    "wrong type",
    "unknown value",
    "missing key",
    "extra key",
    "out of bounds",
]


@dataclass(frozen=True)
class Checked:
    """What one answer is: strictly JSON, JSON after extraction, valid against the schema; the failure class if not valid."""

    strict: bool
    lenient: bool
    valid: bool
    failure: FailureClass | None
    value: dict[str, Any] | None


def check(text: str, finish_reason: str | None, validator: "Draft202012Validator") -> Checked:
    """Return what `text` is. Schema-valid means: strictly a JSON object that fits.

    Strict is `json.loads` of the raw text giving an object, without NaN and without repeated keys.
    """
    value = strict_object(text)
    if value is not None:
        failure = schema_failure(value, validator)
        return Checked(True, True, failure is None, failure, value)
    if finish_reason == "length":
        return Checked(False, False, False, "truncated", None)
    extracted = extract_object(text)
    if extracted is None:
        return Checked(False, False, False, "not JSON", None)
    return Checked(False, True, False, "fence" if "```" in text else "trailing text", extracted)


def strict_object(text: str) -> dict[str, Any] | None:
    """Return the object that the whole of `text` is, or None."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def canonical(text: str) -> str:
    """Return the JSON object that `text` is with sorted keys and no free space; any other text as it is."""
    value = strict_object(text)
    return text if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def extract_object(text: str) -> dict[str, Any] | None:
    """Return the first whole object inside `text`, whatever stands round it, or None; a part of a broken one is none."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", closing_brace(text, start) + 1)
            continue
        return value if isinstance(value, dict) else None
    return None


def closing_brace(text: str, start: int) -> int:
    """Return where the brace at `start` is closed, braces counted; the end of the text when it never is."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; ValueError when a key comes twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice")
    return result


def refuse_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")


def schema_failure(value: dict[str, Any], validator: "Draft202012Validator") -> FailureClass | None:
    """Return the class of the first schema error in document order, or None."""
    classes: dict[str, FailureClass] = {"type": "wrong type", "required": "missing key", "additionalProperties": "extra key"}
    for error in validator.iter_errors(value):
        if error.validator in ("enum", "const"):
            return "echoed choices" if isinstance(error.instance, str) and "|" in error.instance else "unknown value"
        return classes.get(str(error.validator), "out of bounds")
    return None
