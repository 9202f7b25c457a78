"""Server-sent events from bytes cut anywhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.sse import SseParser, plain_events

STREAM = (
    b": keep-alive\n\n"
    b'data: {"text": "\xc4\x9f\xc3\xbczel"}\n\n'
    b"event: ping\r\ndata: one\r\ndata: two\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b"data:no space\n\n"
    b"data: cr\rdata: only\r\rdata\r\r"
    b"data: [DONE]\n\n"
    b"data: never ended\n"
)
EVENTS = ['{"text": "ğüzel"}', "one\ntwo", "no space", "cr\nonly", "", "[DONE]"]


def events(*blocks: bytes) -> list[str]:
    parser = SseParser()
    return [event.decode("utf-8", errors="replace") for block in blocks for event in parser.feed(block)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def test_events_of_a_whole_stream() -> None:
    assert events(STREAM) == EVENTS


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_cutting_the_stream_anywhere_changes_nothing(places: list[int]) -> None:
    assert events(*cut(STREAM, places)) == EVENTS


def test_byte_by_byte_changes_nothing() -> None:
    assert events(*(bytes([byte]) for byte in STREAM)) == EVENTS


@given(st.lists(st.text(), max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 10_000), max_size=9))
def test_any_json_payload_survives_any_cut(texts: list[str], ending: bytes, places: list[int]) -> None:
    data = b"".join(b"data: " + json.dumps(text, ensure_ascii=False).encode() + ending * 2 for text in texts)
    assert [json.loads(event) for event in events(*cut(data, places))] == texts


def test_event_comes_out_with_the_block_that_ends_it() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [b"a"]


def test_comments_and_other_fields_are_no_events() -> None:
    assert events(b": comment\n\nevent: x\n\nid: 1\n\n") == []


def test_comment_inside_an_event_does_not_break_it() -> None:
    assert events(b"data: a\n: comment\ndata: b\n\n") == ["a\nb"]


@pytest.mark.parametrize(
    ("line", "data"), [(b"data:x", "x"), (b"data: x", "x"), (b"data:  x", " x"), (b"data: ", ""), (b"data: x: y", "x: y")]
)
def test_one_leading_space_is_dropped(line: bytes, data: str) -> None:
    assert events(line + b"\n\n") == [data]


def test_blank_lines_make_no_events() -> None:
    assert events(b"\n\n\r\n\r\n\n") == []


def test_unfinished_event_is_given_at_the_end_alone() -> None:
    parser = SseParser()
    assert parser.feed(b"data: half") == []
    assert parser.end() == [b"half"]
    assert SseParser().end() == []


@given(st.lists(st.integers(0, 10_000), max_size=9))
def test_a_byte_order_mark_leads_the_stream_and_nothing_else(places: list[int]) -> None:
    assert events(*cut(b"\xef\xbb\xbfdata: a\n\n", places)) == ["a"]
    assert events(*cut(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", places)) == ["a"]


def test_invalid_utf8_becomes_the_replacement_character() -> None:
    assert events(b"data: \xff\n\n") == ["\ufffd"]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_garbage_never_raises_and_does_not_depend_on_its_cuts(blocks: list[bytes]) -> None:
    assert events(*blocks) == events(b"".join(blocks))


@given(st.binary(max_size=200))
def test_a_good_event_after_garbage_is_found(garbage: bytes) -> None:
    assert events(garbage, b"\n\ndata: good\n\n")[-1] == "good"


lines = st.sampled_from([b"data: a", b"data: ", b"data:", b"data", b"data: b\r", b": x", b"", b"", b"event: y", b"data: {}"])


@given(st.one_of(st.binary(max_size=60), st.lists(lines, max_size=12).map(b"\n".join)))
def test_the_short_cut_gives_what_the_parser_gives_or_nothing(body: bytes) -> None:
    made = plain_events(body)
    assert made is None or made == SseParser().feed(body)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        (b"", False),
        (b"data: a\n\ndata: b\n\n", True),
        (b"data: \n\n", True),
        (STREAM, False),
        (b"data: a\r\n\r\n", False),
        (b"data: a\n", False),
    ],
)
def test_the_short_cut_is_for_plain_streams(body: bytes, taken: bool) -> None:
    assert (plain_events(body) is not None) == taken
