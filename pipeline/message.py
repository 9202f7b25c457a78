"""Sentences with values. The English text is the key under which a catalogue has the translation, as in gettext."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

if TYPE_CHECKING:  # errors hold messages, and `./inv` imports them before pydantic is installed
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
    from pydantic_core import CoreSchema

Value: TypeAlias = "str | int | float"  # a str may be a Message, a Code or Digits
# Not str.format, which reads attributes: a message may come from a record that someone else wrote.
NAME = re.compile(r"\{(\w+)\}")
WHOLE = {"messages": "whole"}


class Code(str):
    """Text from a shell, a program or a file, shown as code."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return f"`{self!s}`"


class Digits(str):
    """A formatted number, whose decimal sign depends on the language."""

    __slots__ = ()


class Message(str):
    """An English sentence that also knows its template, its values, and its template for a `count` other than 1.

    A record, which is dumped with the context WHOLE, holds it as plain text if it has no values, else as {"text", "plural", "values"}.
    Any other dump holds the English text.
    """

    template: str
    plural: str
    values: Mapping[str, Value]

    def __new__(cls, template: str, values: Mapping[str, Value] | None = None, plural: str = "") -> "Message":
        data = dict(values or {})
        message = super().__new__(cls, filled(plural if plural and data.get("count") != 1 else template, data, lambda value: f"{value}"))
        message.template, message.plural, message.values = template, plural, data
        return message

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


Sentence: TypeAlias = Annotated[str, Message]  # a field that holds a Message and accepts plain text


def _(template: str, **values: Value) -> Message:
    """Return the message; `{name}` in the template stands for a value."""
    return Message(template, values)


def plural(one: str, many: str, count: int, **values: Value) -> Message:
    """Return the message for that `count`: `one` if it is 1, else `many`."""
    return Message(one, {"count": count, **values}, many)


def joined(separator: str, parts: Iterable[Value]) -> Message:
    """Return the parts joined by the separator; a single message is returned as it is."""
    values = {str(at): part for at, part in enumerate(parts)}
    if len(values) == 1 and isinstance(values["0"], Message):
        return values["0"]
    return Message(separator.join(f"{{{at}}}" for at in values), values)


def filled(template: str, values: Mapping[str, Value], shown: Callable[[Value], str]) -> str:
    """Return the template with each `{name}` replaced by its value as `shown` formats it; without values the template is literal."""
    return NAME.sub(lambda found: shown(values[found[1]]) if found[1] in values else found[0], template) if values else template


def message_of(data: Any) -> Message:
    """Return the message that a record holds; ValueError if it holds none."""
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
    """Return the value that a record holds; ValueError if no message can have it."""
    if isinstance(data, Mapping):
        kind = {"code": Code, "digits": Digits}.get(next(iter(data), ""))
        return kind(data[next(iter(data))]) if kind is not None and len(data) == 1 else message_of(data)
    if isinstance(data, str | int | float):
        return data
    raise ValueError(f"expected text or a number, got {data!r}")


def data_of(message: str, info: "SerializationInfo") -> Any:
    """Return the message's serialized form: itself in Python; in JSON its English text, or with the context WHOLE all its parts."""
    if info.mode == "python":
        return message
    return held(message) if info.context == WHOLE and isinstance(message, Message) and message.values else str(message)


def held(value: Value) -> Any:
    """Return the form in which a record holds the value; `value_of` reads it."""
    if isinstance(value, Message):
        values = {"values": {name: held(inner) for name, inner in value.values.items()}} if value.values else {}
        return {"text": value.template, **({"plural": value.plural} if value.plural else {}), **values}
    if isinstance(value, Code | Digits):
        return {type(value).__name__.lower(): str(value)}
    return value
