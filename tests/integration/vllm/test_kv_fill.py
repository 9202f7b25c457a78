"""The KV cache is filled once: how far, with what, when it ends, and what it says where it cannot go on."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.vllm.kv_fill import GOAL, Fill, Room, fill_kv_cache, flag, room_of, wait_until_idle
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

ROOM = Room(kv_tokens=4000, sequences=4, max_model_len=4096, batched_tokens=2048)
SLOW = 0.02  # seconds a token: no answer ends by itself


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm(Script()) as made:
        yield made


def filled(fake: FakeVllm, room: Room = ROOM, limit_s: float = 60.0, **script: Any) -> Fill:
    fake.script = Script(**{"inter_token_s": SLOW, **script})
    return fill_kv_cache(Endpoint(fake.base_url), fake.model, room, limit_s)


def test_it_ends_at_the_goal_and_hangs_up(fake: FakeVllm) -> None:
    found = filled(fake, kv_usage=0.93)
    assert (found.percent, found.why, found.preempted) == (93, "", 0)
    assert found.readings > 0
    sent = fake.ledger.requests[1:]  # after the one that tells how long a word is
    assert 0 < len(sent) == found.requests <= 4
    assert all(request["ignore_eos"] and request["stream"] for request in sent)
    assert len({request["messages"][0]["content"].split()[0] for request in sent}) == len(sent), "no prompt begins as another does"
    assert fake.ledger.in_flight == 0


def test_prompts_are_as_long_as_the_servers_tokens_say(fake: FakeVllm) -> None:
    filled(fake, kv_usage=0.93)
    lengths = [1 + (len(request["messages"][0]["content"]) + 3) // 4 for request in fake.ledger.requests[1:]]
    assert lengths == pytest.approx([ROOM.prompt_tokens] * len(lengths), rel=0.05)


def test_a_cache_larger_than_all_requests_is_filled_as_far_as_they_reach(fake: FakeVllm) -> None:
    found = filled(fake, Room(kv_tokens=32768, sequences=4, max_model_len=4096, batched_tokens=2048), kv_usage=0.46)
    assert (found.percent, found.why) == (46, "4 requests of 4096 tokens are 50 % of it")


def test_time_is_bounded_and_the_reason_is_told(fake: FakeVllm) -> None:
    found = filled(fake, kv_usage=0.4, limit_s=0.5)
    assert (found.percent, found.why) == (40, "0.5 s were over")


def test_what_it_preempts_is_counted_apart(fake: FakeVllm) -> None:
    found = filled(fake, kv_usage=0.93, preemptions=3, preempts=4)
    assert (found.percent, found.preempted) == (93, 4)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"status": 503}, "HTTP 503"),
        ({"metrics_status": 500}, "the server's metrics do not tell"),
        ({"by_prompt": {"1 river": {"status": 400}, "2 river": {"status": 400}}, "kv_usage": 0.1, "inter_token_s": 0.0}, "HTTP 400"),
        ({"kv_usage": 0.1, "inter_token_s": 0.0}, "all its requests were answered before"),
    ],
)
def test_a_server_that_cannot_be_filled_says_why_and_is_not_asked_for_ever(script: dict[str, Any], why: str, fake: FakeVllm) -> None:
    found = filled(fake, Room(kv_tokens=300, sequences=4, max_model_len=64, batched_tokens=64), **script)
    assert why in found.why
    assert len(fake.ledger.requests) <= 1 + 4 * 4
    assert found.percent is None or found.percent < 90


def test_a_server_that_stays_busy_is_waited_for_a_while_only(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.vllm.kv_fill.EMPTY_S", 0.2)
    fake.ledger.in_flight = 1
    naps: list[float] = []
    wait_until_idle(Control(fake.base_url), naps.append)
    assert naps
    fake.ledger.in_flight = 0
    naps.clear()
    wait_until_idle(Control(fake.base_url), naps.append)
    assert naps == []


@given(st.integers(500, 3_000_000), st.integers(1, 1024), st.integers(256, 131_072), st.integers(256, 16_384))
def test_prompts_fit_and_with_their_answers_reach_the_goal(kv_tokens: int, sequences: int, length: int, batch: int) -> None:
    room = Room(kv_tokens, sequences, length, batch)
    prompt, answer = room.prompt_tokens, room.answer_tokens
    assert prompt >= 1
    assert prompt + answer <= length
    assert prompt * sequences <= 0.85 * kv_tokens or prompt == 1, "prompts alone overfill nothing"
    if prompt > 1:
        assert sequences * (prompt + answer + 1) >= GOAL * room.share * kv_tokens - sequences


def test_the_room_is_what_the_command_says() -> None:
    words = ["python", "--max-num-seqs", "16", "--max-num-batched-tokens=1152", "--max-num-seqs", "8"]
    assert room_of(words, 46_000, 4096) == Room(46_000, 8, 4096, 1152)
    assert room_of([], 46_000, 4096) == Room(46_000, 256, 4096, 2048)
    mixed = ["--max-num-seqs=16", "--max_num_seqs", "8"]
    assert flag(mixed, "--max-num-seqs") == 8, "the last one counts, however it is written"
    assert flag(["--data-parallel-size", "x"], "--data-parallel-size") is None
