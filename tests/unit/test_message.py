"""Messages: English text that keeps its template and values, through a record and back; hostile templates read nothing."""

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.message import WHOLE, Code, Digits, Message, Value, _, joined, plural

TEXT = st.text(max_size=20)
PLAIN = st.one_of(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False))
KINDS: list[Callable[[str], Value]] = [str, Code, Digits, Message, lambda text: Message("{n} of {n}", {"n": Code(text)})]


class Holder(BaseModel):
    message: Message


def test_a_message_is_its_english_text() -> None:
    message = _("{n} of {what}", n=3, what=_("{count} samples", count=4))
    assert message == "3 of 4 samples"
    assert f"{message}." == "3 of 4 samples."
    assert message.template == "{n} of {what}"


def test_code_has_its_marks_in_plain_text_alone() -> None:
    message = _("run {command}", command=Code("./inv stop"))
    assert message == "run `./inv stop`"
    assert message.values["command"] == "./inv stop"


@pytest.mark.parametrize(("count", "text"), [(0, "0 kernels"), (1, "1 kernel"), (2, "2 kernels")])
def test_a_count_chooses_the_template(count: int, text: str) -> None:
    assert plural("{count} kernel", "{count} kernels", count) == text


@pytest.mark.parametrize("template", ["{n.__class__}", "{n!r}", "{0}", "{other}", "{n:>99999999}"])
def test_a_hostile_template_reads_nothing(template: str) -> None:
    assert Message(template, {"n": 1}) == template


def test_text_without_values_is_taken_literally() -> None:
    assert Message("{n}") == "{n}"


def test_what_is_no_record_holds_the_english_text() -> None:
    holder = Holder(message=_("run {command}", command=Code("./inv stop")))
    assert holder.model_dump(mode="json") == {"message": "run `./inv stop`"}
    assert holder.model_dump()["message"] is holder.message
    assert Holder.model_json_schema(mode="serialization")["properties"]["message"] == {"title": "Message", "type": "string"}


def test_parts_are_joined_to_one_message_that_knows_them() -> None:
    parts = [_("range {value} MiB", value=Digits("70")), _("{n} preemptions", n=2)]
    assert joined(", ", parts) == "range 70 MiB, 2 preemptions"
    assert list(joined(", ", parts).values.values()) == parts
    assert joined(", ", parts[:1]) is parts[0]
    assert joined(", ", []) == ""


@given(TEXT, TEXT, st.dictionaries(st.sampled_from(["n", "count", "what"]), PLAIN, max_size=3), st.sampled_from(KINDS))
def test_a_record_gives_the_same_message_back(template: str, many: str, values: dict[str, Value], kind: Callable[[str], Value]) -> None:
    held = {name: kind(value) if isinstance(value, str) else value for name, value in values.items()}
    message = Message(template, held, many)
    for again in (
        Holder.model_validate_json(Holder(message=message).model_dump_json(context=WHOLE)).message,
        pickle.loads(pickle.dumps(message)),
    ):
        assert str(again) == str(message)
        if held:
            assert (again.template, again.plural, dict(again.values)) == (template, many, held)
            assert [type(value) for value in again.values.values()] == [type(value) for value in held.values()]


@pytest.mark.parametrize(
    "data", [None, 3, [], {}, {"text": 1}, {"text": "a", "more": 1}, {"text": "a", "values": 1}, {"text": "a", "values": {"n": None}}]
)
def test_a_record_that_holds_no_message_is_refused(data: object) -> None:
    with pytest.raises(ValidationError, match="expected"):
        Holder.model_validate({"message": data})
