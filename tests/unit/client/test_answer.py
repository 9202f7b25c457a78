"""A streamed answer read from stamped blocks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer, RawAnswer, read_answer
from pipeline.client.payloads import streamed

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
DONE = b"data: [DONE]\n\n"


def content(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def answer(*events: Any, status: int = 200, error: str = "") -> Answer:
    """Return the answer to events that arrive at 10, 20, 30, … after a send at 0."""
    blocks = [(10 * at, part if isinstance(part, bytes) else event(part)) for at, part in enumerate(events, 1)]
    return read_answer(RawAnswer(0, status, blocks, error))


def test_good_answer_has_text_stamps_counts_and_reason() -> None:
    made = answer(ROLE, content("a"), content("b"), content("c"), FINISH, USAGE, DONE)
    assert made == Answer(0, 20, 40, [20, 30, 40], "abc", "stop", 9, 4, 3, "", first_byte_ns=10)
    assert made.ok


def test_role_chunk_and_empty_chunks_are_no_first_token() -> None:
    assert answer(ROLE, content(""), content("a"), USAGE, DONE).first_ns == 30


def test_finish_and_usage_chunks_do_not_extend_the_answer() -> None:
    assert answer(content("a"), content("b"), FINISH, USAGE, DONE).last_ns == 20


def test_empty_last_chunk_does_not_extend_the_answer() -> None:
    assert answer(content("a"), content(""), USAGE, DONE).last_ns == 10


@pytest.mark.parametrize("delta", [{"reasoning": "x"}, {"reasoning_content": "x"}, {"tool_calls": [{"index": 0}]}])
def test_reasoning_and_tool_calls_are_tokens(delta: dict[str, Any]) -> None:
    assert answer(ROLE, {"choices": [{"delta": delta}]}, content("a"), USAGE, DONE).first_ns == 20


def test_events_of_one_block_share_its_stamp() -> None:
    made = answer(event(ROLE) + event(content("a")), event(content("b")) + event(content("c")) + event(USAGE) + DONE)
    assert made.chunk_ns == [10, 20, 20]


def test_event_cut_between_blocks_has_the_stamp_of_its_end() -> None:
    whole = event(content("a"))
    assert answer(whole[:9], whole[9:], USAGE, DONE).first_ns == 20


def test_tokens_are_the_servers_count_not_the_chunks() -> None:
    made = answer(content("a"), content("b"), USAGE, DONE)
    assert (made.tokens, len(made.chunk_ns)) == (3, 2)


def test_usage_without_details_has_no_cached_tokens() -> None:
    made = answer(content("a"), {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": None}}, DONE)
    assert (made.ok, made.cached_tokens) == (True, 0)


def test_error_event_after_content_is_a_failure() -> None:
    made = answer(content("a"), {"error": {"message": "engine died"}}, DONE)
    assert not made.ok
    assert "engine died" in made.error


def test_cut_before_done_is_a_failure() -> None:
    assert answer(ROLE, content("a"), FINISH, USAGE).error == "cut off before [DONE]"


@pytest.mark.parametrize("events", [(), (b"",), (b"data: [DO",)])
def test_nothing_is_a_failure(events: tuple[Any, ...]) -> None:
    assert answer(*events).error == "cut off before [DONE]"


@pytest.mark.parametrize("status", [400, 404, 500, 503, 204, 0])
def test_http_error_is_a_failure_with_what_the_server_said(status: int) -> None:
    made = answer(b'{"error": "no such ', b'model"}', status=status)
    assert made.error == f'HTTP {status}: {{"error": "no such model"}}'


def test_http_error_with_a_perfect_stream_is_a_failure() -> None:
    assert not answer(ROLE, content("a"), USAGE, DONE, status=500).ok


def test_broken_connection_is_a_failure_whatever_came_before() -> None:
    made = answer(content("a"), USAGE, DONE, error="ConnectionResetError: reset")
    assert (made.error, made.text) == ("ConnectionResetError: reset", "")


@pytest.mark.parametrize("events", [(ROLE, USAGE, DONE), (USAGE, DONE), (DONE,), (ROLE, content(""), FINISH, USAGE, DONE)])
def test_answer_without_content_is_a_failure(events: tuple[Any, ...]) -> None:
    assert answer(*events).error == "no content"


def test_answer_without_usage_is_a_failure() -> None:
    assert answer(content("a"), DONE).error == "no usage chunk"


@pytest.mark.parametrize(
    "garbage", [b"data: {\n\n", b"data: nonsense\n\n", b"data: [1]\n\n", b"data: 5\n\n", b"data: null\n\n", b'data: {"choices": 5}\n\n']
)
def test_garbage_json_is_a_failure(garbage: bytes) -> None:
    made = answer(content("a"), garbage, USAGE, DONE)
    assert made.error.startswith("unreadable event")


@pytest.mark.parametrize(
    "garbage",
    [
        {"choices": [], "usage": [1]},
        {"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": 3}},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": None}},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": [1]}},
        {"choices": [{"delta": {"content": 5}}]},
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
    ids=["usage", "prompt_tokens", "completion_tokens", "details", "content", "nesting"],
)
def test_field_of_a_wrong_type_is_a_failure_not_a_crash(garbage: Any) -> None:
    usage = [] if isinstance(garbage, dict) and "usage" in garbage else [USAGE]
    assert not answer(content("a"), garbage, *usage, DONE).ok


@pytest.mark.parametrize("missing", ["prompt_tokens", "completion_tokens"])
def test_usage_without_a_count_is_a_failure_not_zero_tokens(missing: str) -> None:
    usage = {name: count for name, count in {"prompt_tokens": 9, "completion_tokens": 3}.items() if name != missing}
    assert not answer(content("a"), {"choices": [], "usage": usage}, DONE).ok


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer_never_an_exception(data: bytes) -> None:
    assert not answer(data).ok


def test_payload_is_greedy_without_the_models_own_penalty_and_asks_for_usage() -> None:
    payload = streamed("m", [{"role": "user", "content": "x"}], 7, ignore_eos=True)
    assert payload["temperature"] == 0
    assert payload["repetition_penalty"] == 1.0
    assert payload["stream_options"] == {"include_usage": True}
    assert (payload["model"], payload["max_tokens"], payload["stream"], payload["ignore_eos"]) == ("m", 7, True, True)


EVENTS = (ROLE, content("gü"), content("z"), content("el"), FINISH, USAGE)
BODY = b"".join(event(data) for data in EVENTS) + DONE


@given(st.lists(st.integers(0, len(BODY)), max_size=12), st.sampled_from([b"", b": keep-alive\n\n"]))
def test_stamps_are_those_of_the_block_that_ends_an_event_by_the_short_cut_and_by_the_parser(places: list[int], before: bytes) -> None:
    ends = sorted({*places, len(BODY)} - {0})
    blocks = [(end, BODY[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]
    made = read_answer(RawAnswer(0, 200, [(0, before), *blocks] if before else blocks, ""))
    first = len(event(ROLE))
    whole = [first + len(event(content("gü"))), first + len(event(content("gü")) + event(content("z"))), first]
    whole[2] = whole[1] + len(event(content("el")))
    assert made.chunk_ns == [min(end for end in ends if end >= at) for at in whole]
    assert (made.text, made.tokens) == ("güzel", 3)


@pytest.mark.parametrize(
    "garbage", [b"data: {},{}\n\n", b"data: {}\ndata: {}\n\n", b"data: \n\n"], ids=["two in a line", "two lines", "none"]
)
def test_an_event_is_one_chunk(garbage: bytes) -> None:
    assert answer(content("a"), garbage, USAGE, DONE).error.startswith("unreadable event")
