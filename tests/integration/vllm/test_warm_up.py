"""The requests that make a GPU server compile what it would compile in mid-run."""

from pipeline.client.endpoint import Endpoint
from pipeline.vllm.warm_up import KINDS, payloads, warm_up
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


def test_each_kind_is_sent_alone_and_in_company() -> None:
    with FakeVllm(Script()) as fake:
        assert warm_up(Endpoint(fake.base_url), fake.model, 256, 4096) == len(KINDS) * (1 + 3 + 16) + 3


def test_a_server_that_takes_one_request_gets_one() -> None:
    with FakeVllm(Script()) as fake:
        assert warm_up(Endpoint(fake.base_url), fake.model, 1, 4096) == len(KINDS) + 1


def test_what_the_stages_send_is_among_the_kinds() -> None:
    sent = {name for payload in payloads("m", 1, 4096) for name in payload}
    assert {"logprobs", "top_logprobs", "return_token_ids", "response_format", "seed", "ignore_eos"} <= sent
    assert {payload["temperature"] > 0 for payload in payloads("m", 1, 4096)} == {False, True}


def test_a_short_context_gets_no_long_prompt() -> None:
    assert len(list(payloads("m", 1, 1024))) == len(KINDS)
