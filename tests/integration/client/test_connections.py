"""The client's connections: which are used again, which are replaced, and that no request is sent twice."""

import asyncio

import pytest

from pipeline.client.answer import Answer, RawAnswer, read_answer
from pipeline.client.endpoint import Endpoint
from pipeline.load import generator
from pipeline.load.generator import NO_ANSWER, Channel, Route, closed_loop
from pipeline.load.stamps import first_ms
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script
from tests.integration.client.test_client import TEXT, TIMEOUT_S, payload


def test_requests_share_their_connections() -> None:
    with FakeVllm(Script(texts=(TEXT,))) as fake:
        closed_loop(Endpoint(fake.base_url), [payload() for _ in range(6)], 2, TIMEOUT_S)
        assert fake.ledger.connections == 2


def test_a_request_whose_connection_dies_unanswered_is_failed_and_never_sent_again() -> None:
    with FakeVllm(Script(texts=(TEXT,), tires_after=3)) as fake:  # takes the fourth request of a connection and hangs up unanswered
        answers, _ = closed_loop(Endpoint(fake.base_url), [payload() for _ in range(8)], 1, TIMEOUT_S)
        assert [answer.ok for answer in answers] == [True] * 3 + [False] + [True] * 3 + [False]
        assert answers[3].error == NO_ANSWER
        assert len(fake.ledger.requests) == 6, "those that it answered"
        assert [answer.replaced for answer in answers] == [0] * 8, "a connection that took a request is not replaced"


def test_a_server_that_drops_every_fifth_request_shows_a_fifth_of_failures_and_no_time_of_theirs() -> None:
    with FakeVllm(Script(texts=(TEXT,), first_token_s=0.01, drop_every=5)) as fake:
        answers, _ = closed_loop(Endpoint(fake.base_url), [payload() for _ in range(20)], 1, TIMEOUT_S)
        assert len(fake.ledger.requests) == 20, "each was sent once"
    assert [not answer.ok for answer in answers] == [number % 5 == 4 for number in range(20)]
    assert len(first_ms(answers)) == 16
    assert min(first_ms(answers)) >= 10


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced_and_counted() -> None:
    with FakeVllm(Script(texts=(TEXT,), idle_s=0.05)) as fake:
        answers = exchanges(fake.base_url, 3, pause_s=0.5)
        assert fake.ledger.connections == 3
    assert [(answer.error, answer.replaced) for answer in answers] == [("", 0), ("", 1), ("", 1)]


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "IDLE_MOST_S", 0.05)
    with FakeVllm(Script(texts=(TEXT,))) as fake:
        answers = exchanges(fake.base_url, 3, pause_s=0.2)
        assert fake.ledger.connections == 3
    assert [(answer.error, answer.replaced) for answer in answers] == [("", 0)] * 3, "it was ours to close"


def exchanges(base_url: str, count: int, pause_s: float) -> list[Answer]:
    """Return the answers to requests of one channel with pauses between them."""

    async def several() -> list[RawAnswer]:
        channel = Channel(Route.to(Endpoint(base_url)), TIMEOUT_S)
        raws = []
        for _ in range(count):
            raws.append(await channel.exchange(channel.route.request(payload())))
            await asyncio.sleep(pause_s)
        channel.close()
        return raws

    return [read_answer(raw) for raw in asyncio.run(several())]


def test_a_server_that_hangs_up_on_a_new_connection_is_a_failure() -> None:
    with FakeVllm(Script(tires_after=0)) as fake:
        (answer,), _ = closed_loop(Endpoint(fake.base_url), [payload()], 1, TIMEOUT_S)
    assert "the connection ended without an answer" in answer.error
