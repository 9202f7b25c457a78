"""test-determinism against servers that only look deterministic, and the router suite's requests in its arms."""

import itertools
import json
from collections.abc import Callable, Iterator

import pytest

from pipeline.client import tokens
from pipeline.client.endpoint import Endpoint
from pipeline.client.tokens import Asker, TokenRequest
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError
from pipeline.load import background
from pipeline.measure.verdicts import judge
from pipeline.stages import test_determinism as determinism
from pipeline.stages.serve import Server
from tests.builders.stages import ARMS, CASES, DETERMINISM, ROUTER, SCHEMA, forgive_the_machine
from tests.fakes.environment import until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

CONSTRAINED = DETERMINISM.model_copy(update={"constrained": 3, "constrained_runs": 3})
LONG = "".join(f"{number:04}" for number in range(40))  # no token twice, more than max_tokens


def test_an_honest_server_is_not_doubted(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=(LONG,))
    result = determinism.test_determinism(CONSTRAINED, ROUTER, server, workspace)
    assert {name: figure.invalid for name, figure in result.figures.items() if figure.invalid} == {}
    assert result.figures["d5_same_seed_identical"].value == 100
    assert result.figures["d5_other_seed_identical"].value == 0


def test_a_server_that_ignores_the_seed_at_a_temperature_proves_nothing(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(heeds_seed=False)
    result = determinism.test_determinism(CONSTRAINED, ROUTER, server, workspace)
    for name in ("identical", "tarr", "tara", "constrained_identical"):
        assert result.figures[name].value == 100
        assert "other seeds give the same answer too for 2 of 2 prompts" in result.figures[name].invalid
        assert judge(result.figures[name], "==", 100, 1, by_bound=False, simulated=False).verdict == "INVALID"
    assert result.figures["d5_other_seed_identical"].value == 100


def test_a_seed_that_decides_nothing_leaves_greedy_answers_alone(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    numbers = itertools.count()

    class Random(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            warm = fake.ledger.requests[number]["temperature"]
            return Script(texts=(f"{next(numbers)} times",) if warm else ("the same",), heeds_seed=False)

    fake.script = Random()
    figures = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace).figures
    assert (figures["identical"].value, figures["identical"].invalid) == (100, "")
    assert (figures["d5_same_seed_identical"].value, figures["d5_same_seed_identical"].invalid) == (0, "")
    assert figures["d5_other_seed_identical"].invalid == "the same seed gives other answers too"


def test_a_store_that_asks_for_the_messages_alone_is_found_by_the_length(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    """It keeps what is asked at temperature 0, so that the controls see nothing."""

    class Stored(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            payloads = fake.ledger.requests
            payload = payloads[number]
            first = next(each for each in payloads if all(each[name] == payload[name] for name in ("messages", "temperature", "seed")))
            payload["max_tokens"] = first["max_tokens"]
            return Script(texts=(LONG,))

    fake.script = Stored()
    figures = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace).figures
    assert figures["d5_other_seed_identical"].value == 0
    assert "cut off at 16 tokens where 17 were allowed" in figures["identical"].invalid


def test_a_store_that_asks_for_the_whole_request_answers_only_the_exact_repetitions(
    fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    """Every other answer is computed anew, and so tells a server that answers at random from one that does not."""
    seen: dict[str, int] = {}

    class Random(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            key = json.dumps(fake.ledger.requests[number])
            return Script(texts=(f"take {seen.setdefault(key, len(seen))}",), heeds_seed=False)

    fake.script = Random()
    result = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
    assert [(prompt.agreeing, prompt.distinct) for prompt in result.prompts] == [(2, 3), (2, 3)]
    assert result.figures["identical"].value == 0


def test_a_store_that_takes_like_prompts_for_the_same_is_found(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    class Alike(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            fake.ledger.requests[number]["messages"][-1]["content"] = prompt.partition(" ")[0]
            return Script()

    fake.script = Alike()
    figures = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace).figures
    assert "two prompts came back with the same token ids" in figures["identical"].invalid


def test_each_request_beside_the_exact_repetitions_is_like_no_other(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None)
    determinism.test_determinism(CONSTRAINED.model_copy(update={"cache_runs": 2}), ROUTER, server, workspace)
    own = [
        (payload["user"], payload["max_tokens"], json.dumps(payload["messages"])) for payload in fake.ledger.requests if "user" in payload
    ]
    assert len({(length, messages) for _, length, messages in own}) == len(own), "by its length alone, whatever the rest"
    exact = [json.dumps(payload) for payload in fake.ledger.requests if "user" not in payload and not payload["temperature"]]
    assert [exact.count(each) for each in dict.fromkeys(exact)] == [2, 2, 2, 2, 2, 1], "two prompts, three cases, one word more"


def test_the_suite_is_asked_as_the_router_test_asks(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None)
    settings = CONSTRAINED.model_copy(update={"cache_runs": 1})
    result = determinism.test_determinism(settings, ROUTER, server, workspace)
    asked = [payload for payload in fake.ledger.requests if payload.get("response_format")]
    assert len(asked) == 3 * (3 + 1), "D1 has the warm answer of D2"
    for payload, text in zip(asked[::3][:3], CASES, strict=False):
        assert payload["response_format"]["json_schema"]["schema"] == SCHEMA
        assert [message["role"] for message in payload["messages"]] == ["system", "user"]
        assert payload["messages"][-1]["content"] == text
        assert (payload["stream"], payload["stream_options"], payload["return_token_ids"]) == (True, {"include_usage": True}, True)
        assert (payload["temperature"], payload["repetition_penalty"], payload["max_tokens"]) == (0, 1.0, ROUTER.max_tokens)
        assert "seed" not in payload
    for name in ("constrained_identical", "constrained_tarr", "constrained_tara", "constrained_d2_identical"):
        assert (result.figures[name].value, result.figures[name].n) == (100, 3)
    (alone,) = (arm for arm in result.arms if (arm.arm, arm.constrained) == ("D1", True))
    assert [(prompt.prompt, prompt.runs, prompt.tokens) for prompt in alone.prompts] == [("c0", 3, 10), ("c1", 3, 10), ("c2", 3, 10)]


def test_the_system_prompt_stands_where_the_router_test_puts_it(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    determinism.test_determinism(CONSTRAINED, ROUTER.model_copy(update={"system": "user"}), server, workspace)
    asked = [payload for payload in fake.ledger.requests if payload.get("response_format")]
    assert {tuple(message["role"] for message in payload["messages"]) for payload in asked} == {("user",)}


def test_a_constrained_answer_that_differs_is_seen_in_its_own_figures_alone(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    class Shaky(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            payload = fake.ledger.requests[number]
            return Script(texts=(f"answer {number}",) if payload.get("stream") and prompt == "wrong slot" else ("an answer",))

    fake.script = Shaky()
    figures = determinism.test_determinism(CONSTRAINED, ROUTER, server, workspace).figures
    assert figures["identical"].value == 100
    assert figures["constrained_identical"].n == 3
    assert figures["constrained_identical"].value == pytest.approx(100 * 2 / 3)


def test_without_the_suite_its_figures_say_why(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    figures = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace).figures
    assert {figures[name].reason for name in figures if name.startswith("constrained")} == {"determinism.constrained is 0"}


@pytest.mark.parametrize(("script", "says"), [(Script(token_ids=False), "streams no token ids"), (Script(cut_after=1), "cut off before")])
def test_a_stream_without_all_its_tokens_is_no_answer(script: Script, says: str, fake: FakeVllm, server: Server) -> None:
    fake.script = script
    request = TokenRequest([{"role": "user", "content": "hi"}], 16, is_streamed=True)
    with pytest.raises(MeasureError, match=says):
        Asker(Endpoint(fake.base_url), server.model, DETERMINISM, {"c": request}).ask("c")


def test_a_stream_whose_usage_counts_other_tokens_is_no_answer(fake: FakeVllm, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "streamed_ids", lambda _blocks: ((1, 2), (3,)))
    request = TokenRequest([{"role": "user", "content": "hi"}], 16, is_streamed=True)
    with pytest.raises(MeasureError, match="a stream gave 2 token ids, its usage counts 10 tokens"):
        Asker(Endpoint(fake.base_url), server.model, DETERMINISM, {"c": request}).ask("c")


def test_an_answer_without_its_hit_or_with_one_cold_is_left_out_of_d2(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    """The steady prompt's second salt is warm at once, the shaky prompt has no hit at all, so that it is asked again for one."""

    class Half(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            salt = str(fake.ledger.requests[number].get("cache_salt", ""))
            hit = 7 if salt.endswith("0-1") else None
            return Script(cached_tokens=0 if prompt == "shaky" else hit)

    fake.script = Half()
    result = determinism.test_determinism(DETERMINISM.model_copy(update={"cache_runs": 2}), ROUTER, server, workspace)
    (arm,) = (arm for arm in result.arms if arm.arm == "D2")
    assert [(prompt.prompt, prompt.runs) for prompt in arm.prompts] == [("steady", 3)]
    assert (result.figures["d2_identical"].value, result.figures["d2_identical"].n) == (100, 1)
    assert arm.evidence == "no hit in 3 of 4 cold, a hit in 2 of 4 warm; only these count"
    asked = [payload["messages"][-1]["content"] for payload in fake.ledger.requests if "user" in payload and not payload["temperature"]]
    assert [asked.count(prompt) for prompt in ("steady", "shaky")] == [2 + 2, 2 + 2 + 2]


def test_the_controls_ask_a_few_prompts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    (workspace.root / "prompts.txt").write_text("".join(f"Number {number}?\n" for number in range(12)), encoding="utf-8")
    result = determinism.test_determinism(DETERMINISM.model_copy(update={"count": 12, "runs": 2}), ROUTER, server, workspace)
    assert [len(arm.prompts) for arm in result.arms if arm.arm == "D5"] == [8, 8]
    assert result.figures["identical"].n == 12


def readings(values: list[int]) -> Callable[[], int]:
    """Return a gauge that shows these, the last one for ever."""
    coming: Iterator[int] = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda: next(coming)


def test_a_load_that_was_there_at_one_look_does_not_count(fake: FakeVllm, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    forgive_the_machine(monkeypatch)
    monkeypatch.setattr(background, "LOAD_STARTS_S", 0.1)
    fake.script = Script(first_token_s=0.3)
    asker = Asker(Endpoint(fake.base_url), server.model, ARMS)
    amid, _ = background.amid_load(asker, ["steady"], 4, readings([3, 9, 1]), lambda _done: None)
    assert [each.loaded for each in amid] == [0]
    amid, _ = background.amid_load(asker, ["steady"], 4, readings([3]), lambda _done: None)
    assert [each.loaded for each in amid] == [0], "itself and two of four others"
    amid, _ = background.amid_load(asker, ["steady"], 4, readings([4]), lambda _done: None)
    assert [each.loaded is not None and each.loaded > 0 for each in amid] == [True], "itself and three of four others"


def test_too_few_readings_prove_nothing(fake: FakeVllm, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "READ_EVERY_S", 60)
    monkeypatch.setattr(background, "LOAD_STARTS_S", 0.1)
    asker = Asker(Endpoint(fake.base_url), server.model, ARMS)
    amid, _ = background.amid_load(asker, ["steady"], 2, lambda: 9, lambda _done: None)
    assert [each.loaded for each in amid] == [None]


def test_a_gauge_that_cannot_be_read_proves_nothing_and_ends_nothing(
    fake: FakeVllm, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LOAD_STARTS_S", 0.1)

    def unreadable() -> int:
        raise MeasureError("/metrics: 503")

    asker = Asker(Endpoint(fake.base_url), server.model, ARMS)
    amid, most = background.amid_load(asker, ["steady"], 2, unreadable, lambda _done: None)
    assert ([each.loaded for each in amid], most) == ([None], 0)


def test_answers_that_were_exchanged_are_named(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgive_the_machine(monkeypatch)

    class Crossed(Script):
        """Under load each of two prompts gets the other's answer."""

        def for_request(self, number: int, prompt: str) -> Script:
            if "subject number" in prompt:
                return Script(first_token_s=0.2)
            read, loaded = fake.ledger.readings, fake.ledger.in_flight > 2
            if loaded:
                until(lambda: fake.ledger.readings > read + 10, "readings of the gauge")
            mine = prompt if not loaded else {"steady": "shaky", "shaky": "steady"}[prompt]
            return Script(texts=(f"the answer to {mine}",))

    fake.script = Crossed()
    settings = ARMS.model_copy(update={"cache_runs": 0, "load": (2,)})
    result = determinism.test_determinism(settings, ROUTER, server, workspace)
    (arm,) = (arm for arm in result.arms if arm.arm == "D3")
    assert (arm.exchanged, arm.runs, arm.agreeing) == (2, 2, 0)
    assert (result.figures["d3_identical"].value, result.figures["d3_identical"].n) == (0, 2)
