"""Sentences with values in them. The English text is the key by which a catalogue finds another language's, as in gettext."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

if TYPE_CHECKING:  # errors are messages, and `./inv --list` does without pydantic
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
    from pydantic_core import CoreSchema

Value: TypeAlias = "str | int | float"  # a str may be a Message, a Code or Digits
# Not str.format, which reads attributes: a message may come from a record that somebody else wrote.
NAME = re.compile(r"\{(\w+)\}")
WHOLE = {"messages": "whole"}


class Code(str):
    """Words that a shell, a program or a file has: shown as code."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return f"`{self!s}`"


class Digits(str):
    """A number as it is shown, whose decimal sign a language may change."""

    __slots__ = ()


class Message(str):
    """A sentence as English text that also knows its template, its values, and its template for a `count` other than 1.

    A record, which is dumped with the context WHOLE, holds it as plain text where it has no values, else as
    {"text", "plural", "values"}. All else that is dumped holds the English text.
    """

    template: str
    plural: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, values: Mapping[str, Value] | None = None, plural: str = "") -> "Message":
        held = dict(values or {})
        made = super().__new__(cls, filled(plural if plural and held.get("count") != 1 else template, held, lambda value: f"{value}"))
        made.template, made.plural, made.values = template, plural, held
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.template, dict(self.values), self.plural

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        dumped = core_schema.plain_serializer_function_ser_schema(data_of, info_arg=True, return_schema=core_schema.any_schema())
        return core_schema.no_info_plain_validator_function(message_of, serialization=dumped)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: "CoreSchema", handler: "GetJsonSchemaHandler") -> dict[str, Any]:
        return {"type": "string"}


Sentence: TypeAlias = Annotated[str, Message]  # a field that holds a Message, and takes plain text


def _(template: str, **values: Value) -> Message:
    """Return the message; `{name}` in the template stands for a value."""
    return Message(template, values)


def plural(one: str, many: str, count: int, **values: Value) -> Message:
    """Return the message for that `count`: `one` where it is 1, else `many`."""
    return Message(one, {"count": count, **values}, many)


def joined(separator: str, parts: Iterable[Value]) -> Message:
    """Return the parts with the separator between them; a single message stays itself."""
    values = {str(at): part for at, part in enumerate(parts)}
    if len(values) == 1 and isinstance(values["0"], Message):
        return values["0"]
    return Message(separator.join(f"{{{at}}}" for at in values), values)


def filled(template: str, values: Mapping[str, Value], shown: Callable[[Value], str]) -> str:
    """Return the template with each `{name}` that has a value replaced by how it is shown; without values it is taken literally."""
    return NAME.sub(lambda found: shown(values[found[1]]) if found[1] in values else found[0], template) if values else template


def message_of(data: Any) -> Message:
    """Return the message that a record holds; ValueError where it holds none."""
    if isinstance(data, Message):
        return data
    if isinstance(data, str):
        return Message(data)
    if not (isinstance(data, Mapping) and isinstance(data.get("text"), str) and set(data) <= {"text", "plural", "values"}):
        raise ValueError("expected text, or a text with its values")
    values, many = data.get("values", {}), data.get("plural", "")
    if not isinstance(values, Mapping) or not isinstance(many, str):
        raise ValueError("expected the values of a text by their names")
    return Message(data["text"], {str(name): value_of(value) for name, value in values.items()}, many)


def value_of(data: Any) -> Value:
    """Return the value that a record holds; ValueError where it is of no kind that a message has."""
    if isinstance(data, Mapping):
        kind = {"code": Code, "digits": Digits}.get(next(iter(data), ""))
        return kind(data[next(iter(data))]) if kind is not None and len(data) == 1 else message_of(data)
    if isinstance(data, str | int | float):
        return data
    raise ValueError(f"expected text or a number, got {data!r}")


def data_of(message: str, info: "SerializationInfo") -> Any:
    """Return what stands for the message: itself in Python, in JSON its English text, with all that it knows where WHOLE asks for that."""
    if info.mode == "python":
        return message
    return held(message) if info.context == WHOLE and isinstance(message, Message) and message.values else str(message)


def held(value: Value) -> Any:
    """Return what a record holds for a value, by which it is known again."""
    if isinstance(value, Message):
        values = {"values": {name: held(inner) for name, inner in value.values.items()}} if value.values else {}
        return {"text": value.template, **({"plural": value.plural} if value.plural else {}), **values}
    if isinstance(value, Code | Digits):
        return {type(value).__name__.lower(): str(value)}
    return value
