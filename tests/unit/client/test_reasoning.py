"""Reasoning apart from the answer, and a streamed answer read as the same answer in one piece."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer, RawAnswer, read_answer

USAGE = {"prompt_tokens": 9, "completion_tokens": 5}


def streamed(*deltas: dict[str, Any]) -> Answer:
    """Return the answer to deltas that arrive at 10, 20, 30, … after a send at 0."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}]
    blocks = [(10 * at, b"data: " + json.dumps(chunk).encode() + b"\n\n") for at, chunk in enumerate(chunks, 1)]
    return read_answer(RawAnswer(0, 200, [*blocks, (10**6, b"data: [DONE]\n\n")], ""))


def unary(message: dict[str, Any]) -> Answer:
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}).encode()
    return read_answer(RawAnswer(0, 200, [(10, body)], "", streamed=False))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_that_the_server_tells_apart_is_no_part_of_the_answer(field: str) -> None:
    made = streamed({"role": "assistant", "content": ""}, {field: "Hm, "}, {field: "yes."}, {"content": "\n\n"}, {"content": "Yes."})
    assert (made.reasoning, made.text) == ("Hm, yes.", "Yes.")
    assert (made.first_ns, made.answer_ns, made.last_ns) == (20, 50, 50)


def test_reasoning_within_the_content_is_no_part_of_the_answer() -> None:
    made = streamed({"content": "<th"}, {"content": "ink>Hm"}, {"content": ".</think>\n"}, {"content": "\nY"}, {"content": "es."})
    assert (made.reasoning, made.text) == ("Hm.", "Yes.")
    assert (made.first_ns, made.answer_ns) == (10, 40)


def test_the_answer_may_begin_in_the_chunk_that_ends_the_reasoning() -> None:
    assert streamed({"content": "<think>Hm."}, {"content": "</think>Yes."}).answer_ns == 20


def test_reasoning_that_the_chat_template_opened_is_no_part_of_the_answer() -> None:
    thought, answer = 'Perhaps {"route": "a"}', '{"route": "b"}'
    made = streamed({"content": thought[:9]}, {"content": f"{thought[9:]}</thi"}, {"content": "nk>\n\n"}, {"content": answer})
    whole = unary({"content": f"{thought}</think>\n\n{answer}"})
    assert (made.reasoning, made.text) == (whole.reasoning, whole.text) == (thought, answer)
    assert (made.first_ns, made.answer_ns) == (10, 40)


@pytest.mark.parametrize("text", ["Yes.", " <thinking> is hard", "I <think>so</think>", "<thin", "\n{}"])
def test_where_nothing_is_thought_the_answer_begins_with_the_first_token(text: str) -> None:
    made = streamed({"content": text[:2]}, {"content": text[2:]})
    assert (made.text, made.reasoning) == (text, "")
    assert made.first_ns == made.answer_ns == 10


@pytest.mark.parametrize("delta", [{"content": "<think>Hm."}, {"reasoning": "Hm."}, {"content": "<think>Hm.</think>\n"}])
def test_an_answer_that_is_all_reasoning_never_begins(delta: dict[str, Any]) -> None:
    made = streamed(delta)
    assert made.ok
    assert (made.text, made.answer_ns, made.first_ns, made.reasoning) == ("", 0, 10, "Hm.")


def call(index: int | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    return {"index": index, "id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_the_arguments_of_tool_calls_are_the_answer() -> None:
    made = streamed(
        {"reasoning": "Hm."},
        {"tool_calls": [call(0, "route", None)]},
        {"tool_calls": [call(0, None, '{"a":')]},
        {"tool_calls": [call(1, "other", "{}")]},
        {"tool_calls": [call(0, None, " 1}")]},
    )
    whole = unary({"reasoning": "Hm.", "content": None, "tool_calls": [call(None, "route", '{"a": 1}'), call(None, "other", "{}")]})
    assert made.text == whole.text == '{"a": 1}{}'
    assert (made.first_ns, made.answer_ns) == (10, 20)


texts = st.text(max_size=30)
places = st.lists(st.integers(0, 200), max_size=8)


def cut(text: str, at: list[int]) -> list[str]:
    ends = sorted(place % (len(text) + 1) for place in at)
    return [text[begin:end] for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(texts, texts, texts, st.sampled_from(["reasoning", "reasoning_content", "content", "opened"]), places, places, places)
def test_an_answer_split_anywhere_is_the_same_answer_in_one_piece(
    thought: str, answer: str, arguments: str, field: str, first: list[int], second: list[int], third: list[int]
) -> None:
    content = {"content": f"<think>{thought}</think>{answer}", "opened": f"{thought}</think>{answer}"}.get(field, answer)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if field not in ("content", "opened"):
        deltas += [{field: part} for part in cut(thought, first)]
        message[field] = thought
    deltas += [{"content": part} for part in cut(content, second)]
    if arguments:
        deltas += [{"tool_calls": [call(0, None, part)]} for part in cut(arguments, third)]
        message["tool_calls"] = [call(None, "route", arguments)]
    made, whole = streamed(*deltas), unary(message)
    assert (made.error, made.text, made.reasoning, made.finish_reason) == (whole.error, whole.text, whole.reasoning, whole.finish_reason)
    assert bool(made.answer_ns) == bool(whole.answer_ns)
    assert made.first_ns <= made.answer_ns or not made.answer_ns


def test_what_the_chat_template_opened_ends_with_a_tag_of_its_own() -> None:
    made = streamed({"content": 'Hm, {"a": 1}?'}, {"content": " No.</thi"}, {"content": "nk>\n"}, {"content": '{"a": 2}'})
    assert (made.reasoning, made.text) == ('Hm, {"a": 1}? No.', '{"a": 2}')
    assert (made.first_ns, made.answer_ns) == (10, 40)


@pytest.mark.parametrize("text", ['{"a": "</think>"}', "I <think>so</think> too"])
def test_a_tag_within_an_answer_ends_no_thought(text: str) -> None:
    assert (streamed({"content": text}).text, streamed({"content": text}).reasoning) == (text, "")


def test_a_tag_after_reasoning_that_the_server_tells_apart_is_text() -> None:
    made = streamed({"reasoning": "Hm."}, {"content": "a </think> b"})
    assert (made.reasoning, made.text) == ("Hm.", "a </think> b")
