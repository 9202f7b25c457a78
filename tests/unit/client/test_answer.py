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


def content(text: str, tokens: int | None = None) -> dict[str, Any]:
    ids = None if tokens is None else list(range(tokens))
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": ids}]}


def usage(tokens: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def answer(*events: Any, status: int = 200, error: str = "") -> Answer:
    """Return the answer to events that arrive at 10, 20, 30, … after a send at 0."""
    blocks = [(10 * at, part if isinstance(part, bytes) else event(part)) for at, part in enumerate(events, 1)]
    return read_answer(RawAnswer(0, status, blocks, error))


def test_good_answer_has_text_stamps_counts_and_reason() -> None:
    made = answer(ROLE, content("a"), content("b"), content("c"), FINISH, USAGE, DONE)
    assert made == Answer(0, 20, 40, [20, 30, 40], "abc", "stop", 9, 4, 3, "", first_byte_ns=10, answer_ns=20)
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


@pytest.mark.parametrize("events", [(ROLE, content("a")), (ROLE, content("a"), USAGE)])
def test_a_stream_with_neither_a_finish_reason_nor_done_is_a_failure(events: tuple[Any, ...]) -> None:
    assert answer(*events).error == "cut off before [DONE]"


def test_a_stream_with_a_finish_reason_and_without_done_is_whole() -> None:
    assert answer(ROLE, content("a"), FINISH, USAGE).ok
    assert answer(ROLE, content("a"), FINISH).error == "no usage chunk"


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r", b"data: [DONE]\r\n"])
def test_a_missing_last_blank_line_is_no_failure(end: bytes) -> None:
    assert answer(ROLE, content("a"), USAGE, end).ok
    assert answer(ROLE, content("a"), FINISH, event(USAGE)[:-1]).ok


def test_half_a_last_event_is_none() -> None:
    assert answer(ROLE, content("a"), FINISH, event(USAGE)[:-9]).error == "no usage chunk"


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b": ping\n\n", b"event: message\nid: 7\nretry: 5\n"])
def test_lines_may_end_in_any_way_and_other_fields_and_a_byte_order_mark_may_stand_before(ends: bytes, before: bytes) -> None:
    body = (before + event(ROLE) + event(content("gü")) + event(USAGE) + DONE).replace(b"\n", ends)
    assert answer(body).text == "gü"
    assert answer(*(bytes([byte]) for byte in body.replace(b"data: ", b"data:"))).text == "gü"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_a_failure(reason: str) -> None:
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    assert answer(ROLE, content("a"), finish, USAGE, DONE).error == f"finish_reason: {reason}"


OLD_ERROR = {"object": "error", "message": "engine died", "type": "InternalServerError", "param": None, "code": 500}


def test_the_error_of_an_older_server_is_a_failure_in_a_stream_and_in_a_body() -> None:
    assert "engine died" in answer(ROLE, content("a"), OLD_ERROR, USAGE, DONE).error
    body = json.dumps(OLD_ERROR).encode()
    assert "engine died" in read_answer(RawAnswer(0, 200, [(1, body)], "", streamed=False)).error


def test_several_choices_are_a_failure() -> None:
    two = {"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]}
    assert answer(two, USAGE, DONE).error == "several choices in one answer"
    second = {"choices": [{"index": 1, "delta": {"content": "b"}}]}
    assert answer(content("a"), second, USAGE, DONE).error == "several choices in one answer"


def test_chunks_without_text_that_carry_tokens_are_stamped_and_do_not_begin_the_answer() -> None:
    made = answer(ROLE, content("", 1), content("a", 1), content("", 1), content("b", 2), content("", 3), usage(8), DONE)
    assert (made.first_ns, made.last_ns, made.chunk_ns) == (30, 60, [20, 30, 40, 50, 60])
    assert made.chunk_tokens == [1, 1, 1, 2, 3]
    assert not made.contradicts_itself


def test_text_before_the_first_token_does_not_begin_the_answer_where_the_server_tells_tokens() -> None:
    made = answer(ROLE, content(" ", 0), content("a", 1), content("b", 2), usage(3), DONE)
    assert (made.first_ns, made.answer_ns) == (30, 30)
    assert answer(ROLE, content(" "), content("a"), content("b"), USAGE, DONE).first_ns == 20
    assert answer(ROLE, content("", 1), content("a", 0), usage(1), DONE).first_ns == 30, "it shows a token that came before"
    assert answer(ROLE, content("a", 0), usage(3), DONE).first_ns == 20, "its usage contradicts it"


@pytest.mark.parametrize(("said", "wrong"), [(4, False), (3, True), (5, True), (0, True), (10**9, True)])
def test_usage_that_is_not_what_the_chunks_carried_is_a_contradiction(said: int, wrong: bool) -> None:
    made = answer(content("a", 1), content("b", 3), usage(said), DONE)
    assert (made.ok, made.contradicts_itself) == (True, wrong)


@pytest.mark.parametrize(("said", "wrong"), [(4, False), (1, False), (0, True)])
def test_where_chunks_tell_no_tokens_only_none_at_all_is_a_contradiction(said: int, wrong: bool) -> None:
    made = answer(content("a"), content("b"), usage(said), DONE)
    assert made.contradicts_itself == wrong
    assert made.tokens_by_chunk == [said / 2, said / 2], "spread evenly"


@pytest.mark.parametrize("said", [-1, 3.0, 3.5, "3", None, True, [3]])
def test_a_token_count_that_is_none_is_a_failure(said: Any) -> None:
    assert answer(content("a"), usage(said), DONE).error.startswith("unreadable event")


@pytest.mark.parametrize("ids", [5, "12", [1.5], ["1"], {}])
def test_token_ids_of_a_wrong_type_are_a_failure(ids: Any) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": ids}]}
    assert answer(chunk, USAGE, DONE).error.startswith("unreadable event")


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
    assert payload["return_token_ids"] is True
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
