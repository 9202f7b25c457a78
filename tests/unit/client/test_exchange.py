"""A response from bytes that come in pieces of any size."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.answer import Answer, RawAnswer, read_answer
from pipeline.client.endpoint import Endpoint
from pipeline.load.generator import Connection, Route

EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "gü"}}]},
    {"choices": [{"delta": {"content": "zel"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
]
BODY = b"".join(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in EVENTS) + b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (30, BODY[:30], len(BODY) - 30, BODY[30:])
LONG = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
UNARY_BODY = json.dumps(
    {
        "choices": [{"message": {"content": "güzel"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    }
).encode()
UNARY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(UNARY_BODY) + UNARY_BODY


class Deaf(asyncio.Transport):
    """A transport that hears nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def fed(loop: asyncio.AbstractEventLoop, blocks: list[bytes], lost: Exception | None = None) -> Answer:
    """Return the answer to these blocks, after which the connection ends."""
    connection = Connection()
    connection.connection_made(Deaf())
    ended = loop.create_future()
    connection.ask(b"", ended)
    for block in blocks:
        connection.data_received(block)
    connection.connection_lost(lost)
    assert ended.done()
    return read_answer(RawAnswer(0, connection.status, connection.blocks, connection.error, 0, connection.streamed))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % len(data) for place in places} - {0})
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def facts(answer: Answer) -> tuple[Any, ...]:
    return answer.error, answer.text, answer.finish_reason, answer.prompt_tokens, answer.tokens, len(answer.chunk_ns)


@given(st.sampled_from([CHUNKED, LONG]), st.lists(st.integers(0, 10_000), max_size=20))
def test_cutting_a_response_anywhere_changes_nothing_but_the_stamps(
    loop: asyncio.AbstractEventLoop, response: bytes, places: list[int]
) -> None:
    answer = fed(loop, cut(response, places))
    assert facts(answer) == ("", "güzel", "stop", 9, 2, 2)
    assert answer.first_byte_ns <= answer.first_ns <= answer.last_ns


EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Type: text/html\r\nLink: </a>\r\n\r\n"
UNFRAMED = HEAD + b"\r\n" + BODY


@given(st.sampled_from([CHUNKED, LONG, UNFRAMED]), st.lists(st.integers(0, 10_000), max_size=9))
def test_informational_responses_come_first_unnoticed(loop: asyncio.AbstractEventLoop, response: bytes, places: list[int]) -> None:
    assert facts(fed(loop, cut(EARLY + response, places))) == ("", "güzel", "stop", 9, 2, 2)


@given(st.lists(st.integers(0, 10_000), max_size=9))
def test_a_body_that_ends_with_the_connection_is_whole(loop: asyncio.AbstractEventLoop, places: list[int]) -> None:
    assert facts(fed(loop, cut(UNFRAMED, places))) == ("", "güzel", "stop", 9, 2, 2)
    assert facts(fed(loop, [b"HTTP/1.1 200 OK\r\n\r\n" + UNARY_BODY])) == ("", "güzel", "stop", 9, 2, 1)


@pytest.mark.parametrize("response", [EARLY, b"HTTP/1.1 100 Continue\r\n\r\n", UNFRAMED[: UNFRAMED.index(b"zel")], HEAD])
def test_a_connection_that_ends_before_the_answer_is_whole_is_a_failure(loop: asyncio.AbstractEventLoop, response: bytes) -> None:
    assert not fed(loop, [response]).ok


def test_a_broken_connection_ends_no_body(loop: asyncio.AbstractEventLoop) -> None:
    assert fed(loop, [UNFRAMED], ConnectionResetError("reset by peer")).error == "ConnectionResetError: reset by peer"


def test_a_second_answer_is_no_part_of_the_first_and_spoils_the_connection(loop: asyncio.AbstractEventLoop) -> None:
    connection = Connection()
    connection.connection_made(Deaf())
    connection.ask(b"", loop.create_future())
    connection.data_received(CHUNKED + CHUNKED)
    assert sum(len(block) for _, block in connection.blocks) == len(BODY)
    assert not connection.reusable


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_an_answer_in_one_piece_is_stamped_when_it_is_whole(loop: asyncio.AbstractEventLoop, places: list[int]) -> None:
    answer = fed(loop, cut(UNARY, places))
    assert facts(answer) == ("", "güzel", "stop", 9, 2, 1)
    assert answer.cached_tokens == 4
    assert answer.first_ns == answer.last_ns == answer.chunk_ns[0]


@pytest.mark.parametrize("response", [CHUNKED, LONG, UNARY])
@given(place=st.integers(0, 10_000))
def test_a_response_that_ends_early_is_a_failure(loop: asyncio.AbstractEventLoop, response: bytes, place: int) -> None:
    answer = fed(loop, [response[: place % len(response)]])
    assert "the connection ended" in answer.error
    assert answer.tokens == 0


@given(st.lists(st.binary(max_size=80), max_size=6))
def test_garbage_is_a_failure_never_an_exception_or_a_number(loop: asyncio.AbstractEventLoop, blocks: list[bytes]) -> None:
    answer = fed(loop, blocks)
    assert answer.error
    assert (answer.tokens, answer.chunk_ns) == (0, [])


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (CHUNKED.replace(b"1e\r\n", b"zz\r\n"), "not HTTP"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nwait", "HTTP 503: wait"),
        (UNARY.replace(b"choices", b"chances"), "no content"),
        (UNARY.replace(b"usage", b"sugar"), "no usage"),
        (UNARY.replace(b'{"choices', b'["choices'), "unreadable answer"),
        (UNARY.replace(b'"prompt_tokens": 9', b'"prompt_tokens":"?"'), "unreadable answer"),
    ],
)
def test_what_is_no_answer_is_told(loop: asyncio.AbstractEventLoop, response: bytes, says: str) -> None:
    assert says in fed(loop, [response]).error


def test_a_lost_connection_is_told_unless_the_answer_is_whole(loop: asyncio.AbstractEventLoop) -> None:
    lost = ConnectionResetError("reset by peer")
    assert fed(loop, [CHUNKED[:200]], lost).error == "ConnectionResetError: reset by peer"
    assert fed(loop, [CHUNKED], lost).ok


@pytest.mark.parametrize(
    ("url", "host", "port", "line", "tls"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n", False),
        ("http://[::1]:8000", "::1", 8000, b"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1]:8000\r\n", False),
        ("https://llm.example/base", "llm.example", 443, b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: llm.example\r\n", True),
        ("http://llm.example", "llm.example", 80, b"POST /v1/chat/completions HTTP/1.1\r\nHost: llm.example\r\n", False),
    ],
)
def test_a_request_goes_where_the_url_says(url: str, host: str, port: int, line: bytes, tls: bool) -> None:
    route = Route.to(Endpoint(url, api_key="a-key"))
    assert (route.host, route.port, route.context is not None) == (host, port, tls)
    request = route.request({"text": "ğ"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(line)
    assert b"Authorization: Bearer a-key" in head
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert json.loads(body) == {"text": "ğ"}
    assert b"Authorization" not in Route.to(Endpoint(url)).request({})
