"""The requests that make a GPU server compile what it would compile in mid-run."""

from pipeline.client.endpoint import Endpoint
from pipeline.vllm.warm_up import KINDS, payloads, warm_up
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


def test_each_kind_is_sent_alone_and_in_company() -> None:
    with FakeVllm(Script()) as fake:
        assert warm_up(Endpoint(fake.base_url), fake.model, 256, 4096) == len(KINDS) * (1 + 3 + 16 + 2) + 2 * 3


def test_a_server_that_takes_one_request_gets_one() -> None:
    with FakeVllm(Script()) as fake:
        assert warm_up(Endpoint(fake.base_url), fake.model, 1, 4096) == len(KINDS) + 2


def test_what_the_stages_send_is_among_the_kinds() -> None:
    sent = {name for payload in payloads("m", 1, 4096) for name in payload}
    assert {"logprobs", "top_logprobs", "return_token_ids", "response_format", "seed", "ignore_eos"} <= sent
    assert {payload["temperature"] > 0 for payload in payloads("m", 1, 4096)} == {False, True}


def test_in_company_the_kinds_share_a_batch_and_a_long_prompt_is_also_constrained() -> None:
    sent = list(payloads("m", 3, 4096))
    *_, long, constrained = sent
    assert long["messages"] == constrained["messages"]
    assert [payload["temperature"] > 0 for payload in sent[-len(KINDS) - 2 : -2]] == [kind.get("temperature", 0) > 0 for kind in KINDS]
    assert "response_format" in constrained
    assert "response_format" not in long


def test_a_short_context_gets_no_long_prompt() -> None:
    assert len(list(payloads("m", 1, 1024))) == len(KINDS)
