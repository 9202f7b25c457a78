"""Check whether a router answer is JSON and matches the schema. Pure."""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.message import Message, _

if TYPE_CHECKING:  # at run time the caller passes the validator
    from jsonschema import Draft202012Validator

ONE_I = str.maketrans("\u0130I\u0131", "iii")  # İ, I and ı

# Failure classes.
FAILED, TRUNCATED = _("failed request"), _("truncated")
FENCE, TRAILING, NOT_JSON = _("fence"), _("trailing text"), _("not JSON")
ECHOED, UNKNOWN, OUT_OF_BOUNDS = _("echoed choices"), _("unknown value"), _("out of bounds")
BY_KEYWORD = {"type": _("wrong type"), "required": _("missing key"), "additionalProperties": _("extra key")}  # by JSON Schema keyword


@dataclass(frozen=True)
class Checked:
    """Result for one answer: strict JSON, JSON after extraction, schema-valid; the failure class if invalid; the parsed object."""

    strict: bool
    lenient: bool
    valid: bool
    failure: Message | None
    value: dict[str, Any] | None


def check(text: str, finish_reason: str | None, validator: "Draft202012Validator") -> Checked:
    """Check `text`; it is valid only if the whole text is one JSON object that matches the schema.

    Strict means that `json.loads` of the raw text returns an object, without NaN and without duplicate keys.
    """
    value = strict_object(text)
    if value is not None:
        failure = schema_failure(value, validator)
        return Checked(True, True, failure is None, failure, value)
    if finish_reason == "length":
        return Checked(False, False, False, TRUNCATED, None)
    extracted = extract_object(text)
    if extracted is None:
        return Checked(False, False, False, NOT_JSON, None)
    return Checked(False, True, False, FENCE if "```" in text else TRAILING, extracted)


def strict_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that makes up the whole of `text`, or None."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def canonical(text: str) -> str:
    """Return a JSON object with sorted keys and no whitespace between tokens; return any other text unchanged."""
    value = strict_object(text)
    return text if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def extract_object(text: str) -> dict[str, Any] | None:
    """Return the first complete JSON object inside `text`, or None; objects nested in a malformed one do not count."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    start = text.find("{")
    while start >= 0:
        try:
            value = decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            start = text.find("{", closing_brace(text, start) + 1)
            continue
        return value if isinstance(value, dict) else None
    return None


def closing_brace(text: str, start: int) -> int:
    """Return the index of the brace that closes the one at `start`, or the length of the text if none does."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise ValueError on a duplicate key."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice")
    return result


def refuse_constant(name: str) -> Any:
    """Raise ValueError for NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")


def schema_failure(value: dict[str, Any], validator: "Draft202012Validator") -> Message | None:
    """Return the failure class of the first schema error, or None."""
    for error in validator.iter_errors(value):
        if error.validator in ("enum", "const"):
            return ECHOED if isinstance(error.instance, str) and "|" in error.instance else UNKNOWN
        return BY_KEYWORD.get(str(error.validator), OUT_OF_BOUNDS)
    return None


def is_right(value: Mapping[str, Any], golden: Mapping[str, Any]) -> bool:
    """Whether an answer has all that the golden one has; slots by `normalised` text, a plan in its order."""
    return all(same_slots(value.get(key), wanted) if key == "slots" else value.get(key) == wanted for key, wanted in golden.items())


def same_slots(slots: Any, golden: Mapping[str, str]) -> bool:
    """Whether the slots are the golden ones, each value of the same normalised text."""
    if not isinstance(slots, dict) or slots.keys() != golden.keys():
        return False
    return all(isinstance(slots[name], str) and normalised(slots[name]) == normalised(wanted) for name, wanted in golden.items())


def normalised(text: str) -> str:
    """Return the text in NFC, casefolded, each run of white space one blank, none at the ends.

    I, İ, ı and i all become i. Which pairs with which depends on the language, and a text may mix Turkish with English: so "İzmir"
    equals "izmir", "IŞIK" equals "ışık" and "Interview" equals "interview". Words that differ in this dot alone count as the same.
    """
    folded = unicodedata.normalize("NFC", text).translate(ONE_I).casefold().replace("i\u0307", "i")
    return " ".join(unicodedata.normalize("NFC", folded).split())
