"""The client against a scripted server: what is stamped, what counts as failed, what is sent."""

import asyncio
import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from pipeline.client.answer import Answer, RawAnswer, read_answer
from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed, unary
from pipeline.errors import MeasureError
from pipeline.load.calibration import stub
from pipeline.load.generator import TARGET_GONE, Channel, Route, closed_loop, open_loop
from pipeline.load.stamps import pace_ms
from pipeline.vllm.metrics import GENERATED_TOKENS, Counters
from tests.fakes.environment import free_port, until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

TEXT = "Merhaba dünya! Bugün hava güzel."  # 8 tokens of 4 characters
TIMEOUT_S = 30
NS = 1_000_000_000


def payload(max_tokens: int = 64, **more: Any) -> dict[str, Any]:
    return streamed("fake-model", [{"role": "user", "content": "Hi."}], max_tokens, **more)


def send(target: Endpoint, payload: dict[str, Any], timeout_s: float) -> RawAnswer:
    async def one() -> RawAnswer:
        line = Channel(Route.to(target), timeout_s)
        try:
            return await line.exchange(line.route.request(payload))
        finally:
            line.close()

    return asyncio.run(one())


def ask(script: Script, **more: Any) -> tuple[Answer, RawAnswer]:
    with FakeVllm(script) as fake:
        raw = send(Endpoint(fake.base_url), payload(**more), TIMEOUT_S)
    return read_answer(raw), raw


def test_a_whole_answer_has_text_reason_and_the_servers_own_counts() -> None:
    answer, _ = ask(Script(texts=(TEXT,), cached_tokens=3))
    assert answer.ok, answer.error
    assert (answer.text, answer.finish_reason) == (TEXT, "stop")
    assert (answer.prompt_tokens, answer.cached_tokens, answer.tokens) == (2, 3, 8)
    assert len(answer.chunk_ns) == 8


def test_time_to_first_token_ends_at_the_first_content_not_at_the_role_chunk() -> None:
    answer, raw = ask(Script(texts=(TEXT,), first_token_s=0.3))
    assert answer.first_ns - answer.sent_ns >= 0.3 * NS
    assert raw.blocks[0][0] < answer.first_ns
    assert b'"assistant"' in raw.blocks[0][1]


def test_an_answer_lasts_at_least_as_long_as_its_tokens_and_not_until_the_usage_chunk() -> None:
    answer, raw = ask(Script(texts=(TEXT,), first_token_s=0.05, inter_token_s=0.02, usage_s=0.3))
    assert answer.last_ns - answer.sent_ns >= (0.05 + 7 * 0.02) * NS
    assert answer.chunk_ns == sorted(answer.chunk_ns)
    assert (answer.chunk_ns[0], answer.chunk_ns[-1]) == (answer.first_ns, answer.last_ns)
    assert raw.blocks[-1][0] > answer.last_ns


def test_tokens_are_the_usages_where_a_chunk_holds_several() -> None:
    answer, _ = ask(Script(texts=(TEXT,), tokens_per_chunk=3, inter_token_s=0.01))
    assert answer.text == TEXT
    assert answer.tokens == 8
    assert len(answer.chunk_ns) == 3


def test_a_fixed_length_is_asked_for_and_given() -> None:
    answer, _ = ask(Script(texts=("abcd",)), max_tokens=5, ignore_eos=True)
    assert (answer.text, answer.tokens, answer.finish_reason) == ("abcd" * 5, 5, "length")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (Script(cut_after=0), "cut off before [DONE]"),
        (Script(cut_after=2), "cut off before [DONE]"),
        (Script(break_after=2), "the connection ended within the answer"),
        (Script(error_after=0), "error from the server"),
        (Script(finish_reason="abort"), "finish_reason: abort"),
        (Script(usage_says=-8), "unreadable event"),
        (Script(usage_says=8.0), "unreadable event"),
        (Script(usage_says="8"), "unreadable event"),
        (Script(error_after=2), "scripted trouble"),
        (Script(only_usage=True), "no content"),
        (Script(usage_chunk=False), "no usage chunk"),
        (Script(status=500), "HTTP 500"),
        (Script(status=429, body="slow down"), "HTTP 429: slow down"),
    ],
)
def test_a_request_that_was_not_wholly_answered_failed(script: Script, says: str) -> None:
    answer, _ = ask(script)
    assert not answer.ok
    assert says in answer.error


def test_an_unknown_model_is_a_failed_request() -> None:
    with FakeVllm() as fake:
        answer = read_answer(send(Endpoint(fake.base_url), {**payload(), "model": "other"}, TIMEOUT_S))
    assert "HTTP 404" in answer.error


def test_a_refused_connection_is_a_failed_request() -> None:
    answer = read_answer(send(Endpoint(f"http://127.0.0.1:{free_port()}"), payload(), TIMEOUT_S))
    assert "ConnectionRefusedError" in answer.error


def test_a_server_that_says_nothing_is_given_up() -> None:
    with FakeVllm(Script(first_token_s=2)) as fake:
        answer = read_answer(send(Endpoint(fake.base_url), payload(), 0.1))
    assert "TimeoutError" in answer.error


def test_closed_loop_has_exactly_so_many_in_flight() -> None:
    with FakeVllm(Script(texts=(TEXT,), rendezvous=4)) as fake:
        answers, _ = closed_loop(Endpoint(fake.base_url), [payload() for _ in range(8)], 4, TIMEOUT_S)
    assert [answer.error for answer in answers] == [""] * 8
    assert fake.ledger.max_in_flight == 4


def test_closed_loop_alone_sends_one_after_the_other() -> None:
    with FakeVllm(Script(texts=(TEXT,), first_token_s=0.01)) as fake:
        answers, wall_s = closed_loop(Endpoint(fake.base_url), [payload() for _ in range(4)], 1, TIMEOUT_S)
    assert fake.ledger.max_in_flight == 1
    assert wall_s >= 4 * 0.01
    assert all(before.last_ns < after.sent_ns for before, after in itertools.pairwise(answers))


def test_answers_stand_in_the_order_of_the_payloads() -> None:
    prompts = [f"number {number}." for number in range(6)]
    by_prompt: dict[str, dict[str, Any]] = {
        prompt: {"texts": [prompt], "first_token_s": 0.02 * (6 - number)} for number, prompt in enumerate(prompts)
    }
    payloads = [streamed("fake-model", [{"role": "user", "content": prompt}], 16) for prompt in prompts]
    with FakeVllm(Script(by_prompt=by_prompt)) as fake:
        answers, _ = closed_loop(Endpoint(fake.base_url), payloads, 6, TIMEOUT_S)
    assert [answer.text for answer in answers] == prompts


def test_closed_loop_keeps_failed_requests_among_the_answers() -> None:
    with FakeVllm(Script(by_number={"1": {"status": 500}, "2": {"cut_after": 1}})) as fake:
        answers, _ = closed_loop(Endpoint(fake.base_url), [payload() for _ in range(4)], 1, TIMEOUT_S)
    assert [answer.ok for answer in answers] == [True, False, False, True]


def test_keep_going_stops_an_endless_load() -> None:
    with FakeVllm() as fake:
        enough = stop_after(5)
        answers, _ = closed_loop(Endpoint(fake.base_url), (payload() for _ in itertools.count()), 1, TIMEOUT_S, enough)
        assert len(answers) == len(fake.ledger.requests) == 5


def test_requests_to_a_dead_target_are_cut_off_and_count_as_failed() -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        target = Endpoint(fake.base_url, lambda: len(fake.ledger.requests) < 2)
        answers, _ = closed_loop(target, (payload() for _ in range(8)), 2, TIMEOUT_S)
        assert [answer.ok for answer in answers] == [False, False]
        assert len(fake.ledger.requests) == 2, "sent to a server that was known to be dead"


def test_an_interrupt_breaks_off_what_is_in_flight() -> None:
    def interrupt() -> bool:
        until(lambda: fake.ledger.in_flight == 2, "two requests in flight")
        raise KeyboardInterrupt

    with FakeVllm(Script(inter_token_s=0.05)) as fake:
        with pytest.raises(KeyboardInterrupt):
            closed_loop(Endpoint(fake.base_url, interrupt), (payload(400) for _ in range(2)), 2, TIMEOUT_S)
        until(lambda: fake.ledger.in_flight == 0, "the end of both requests")
        assert fake.ledger.tokens < 800


def stop_after(times: int) -> Callable[[], bool]:
    lock, asked = threading.Lock(), itertools.count()

    def keep_going() -> bool:
        with lock:
            return next(asked) < times

    return keep_going


def test_a_request_is_greedy_and_asks_for_usage() -> None:
    with FakeVllm() as fake:
        closed_loop(Endpoint(fake.base_url), [payload(7, cache_salt="a")], 1, TIMEOUT_S)
    (sent,) = fake.ledger.requests
    assert (sent["temperature"], sent["repetition_penalty"], sent["max_tokens"], sent["cache_salt"]) == (0, 1.0, 7, "a")
    assert sent["stream_options"] == {"include_usage": True}


def test_control_reads_what_vllm_says() -> None:
    with FakeVllm(Script(texts=(TEXT,))) as fake:
        control = Control(fake.base_url)
        assert control.answers()
        assert control.version() == "0.32.0"
        (card,) = control.models()
        assert (card.id, card.root, card.owned_by, card.max_model_len) == ("fake-model", "/models/fake", "vllm", 4096)
        completion = control.chat({"model": "fake-model", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 8}, TIMEOUT_S)
        assert completion.choices[0].message.content == TEXT
        assert completion.choices[0].token_ids is None
        assert completion.usage.completion_tokens == 8
        assert control.metrics()[GENERATED_TOKENS] == 8  # summed over two engines


def test_a_metric_that_is_not_there_is_not_zero() -> None:
    with FakeVllm(Script(metrics=False)) as fake:
        assert GENERATED_TOKENS not in Control(fake.base_url).metrics()


def test_a_server_that_is_loading_or_gone_does_not_answer() -> None:
    with FakeVllm(Script(healthy=False)) as fake:
        control = Control(fake.base_url)
        assert not control.answers()
        fake.script = Script()
        assert control.answers()
    assert not Control(f"http://127.0.0.1:{free_port()}").answers()


CALLS: dict[str, Callable[[Control], object]] = {
    "version": lambda control: control.version(),
    "models": lambda control: control.models(),
    "metrics": lambda control: control.metrics(),
    "chat": lambda control: control.chat({"model": "fake-model", "messages": [{"role": "user", "content": "Hi."}]}, TIMEOUT_S),
}


@pytest.mark.parametrize(
    ("call", "script", "says"),
    [
        ("version", Script(bodies={"/version": "<html>"}), "not JSON: '<html>'"),
        ("version", Script(bodies={"/version": "[1]"}), "not a JSON object"),
        ("models", Script(bodies={"/v1/models": "{}"}), "data: Field required"),
        ("models", Script(bodies={"/v1/models": '{"data": [{"root": "/"}]}'}), "data.0.id: Field required"),
        ("metrics", Script(metrics_status=404), "404"),
        ("metrics", Script(bodies={"/metrics": "<html>\n"}), "/metrics"),
        ("chat", Script(body="{}"), "choices: Field required"),
        ("chat", Script(body='{"choices": [{"message": {}}]}'), "usage: Field required"),
        ("chat", Script(body='{"choices": [], "usage": {"prompt_tokens": "many"}}'), "usage.prompt_tokens"),
        ("chat", Script(body="not at all"), "not JSON"),
        ("chat", Script(status=404), "HTTP 404"),
        ("chat", Script(status=500), "scripted trouble"),
    ],
)
def test_control_says_in_one_line_what_is_not_vllms_answer(call: str, script: Script, says: str) -> None:
    with FakeVllm(script) as fake, pytest.raises(MeasureError) as caught:
        CALLS[call](Control(fake.base_url))
    assert says in caught.value.message
    assert fake.base_url in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("call", CALLS)
def test_control_says_that_nobody_listens(call: str) -> None:
    with pytest.raises(MeasureError, match="refused"):
        CALLS[call](Control(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_from_the_environment_does_not_stand_between(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with FakeVllm() as fake:
        assert Control(fake.base_url).version() == "0.32.0"
        assert read_answer(send(Endpoint(fake.base_url), payload(), TIMEOUT_S)).ok


def test_open_loop_sends_when_it_is_due_however_late_the_answers_are() -> None:
    due = [0.0, 0.0, 0.05, 0.1]
    with FakeVllm(Script(texts=(TEXT,), rendezvous=4)) as fake:  # nobody is answered before all have come
        answers, wall_s = open_loop(Endpoint(fake.base_url), [payload() for _ in due], due, TIMEOUT_S)
    assert [answer.error for answer in answers] == [""] * 4
    assert [round((answer.scheduled_ns - answers[0].scheduled_ns) / 1e6) for answer in answers] == [0, 0, 50, 100]
    assert all(answer.sent_ns >= answer.scheduled_ns for answer in answers), "never early"
    assert wall_s >= 0.1


def test_open_loop_counts_what_a_dead_target_was_never_sent_as_failed() -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        target = Endpoint(fake.base_url, lambda: len(fake.ledger.requests) < 1)
        answers, _ = open_loop(target, [payload() for _ in range(3)], [0, 60, 60], TIMEOUT_S)
    assert [answer.error for answer in answers] == [TARGET_GONE] * 3
    assert len(fake.ledger.requests) == 1


def test_how_many_are_answered_is_told_as_it_happens() -> None:
    told: list[int] = []
    with FakeVllm() as fake:
        closed_loop(Endpoint(fake.base_url), [payload() for _ in range(3)], 1, TIMEOUT_S, on_progress=told.append)
        open_loop(Endpoint(fake.base_url), [payload() for _ in range(2)], [0, 0], TIMEOUT_S, told.append)
    assert told == [1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "chunks", "together"),
    [((), 10, 1), (("--per-chunk", "4"), 3, 1), (("--burst", "4"), 10, 4)],
    ids=["one by one", "several tokens a chunk", "bursts"],
)
def test_stamps_are_those_of_a_stub_that_records_what_it_sends(arguments: tuple[str, ...], chunks: int, together: int) -> None:
    with stub("--first-ms", "20", "--each-ms", "5", *arguments) as target:
        answers, _ = closed_loop(target, [payload(10) for _ in range(6)], 3, TIMEOUT_S)
        truth = requests.get(f"{target.base_url}/truth", timeout=TIMEOUT_S).json()
    by_first = {request["first_ns"]: request for request in truth}
    for answer in answers:
        sent = [int(word) for word in answer.text.split()]
        assert (len(sent), len(answer.chunk_ns), answer.tokens) == (chunks, chunks, 10)
        assert all(before <= seen for before, seen in zip(sent, answer.chunk_ns, strict=True)), "nothing is seen before it is sent"
        known = by_first[sent[0]]
        assert answer.sent_ns <= known["received_ns"] <= known["first_ns"] <= answer.first_ns
        assert (known["last_ns"], known["tokens"]) == (sent[-1], 10)
        # Due 5 ms apart, those of a burst at once: sent never early.
        assert all(
            at - known["received_ns"] >= 1e6 * (20 + 5 * (index - index % together)) for index, at in enumerate(sent) if chunks == 10
        )


def test_a_proxy_that_flushes_chunks_together_does_not_change_the_pace() -> None:
    script = Script(texts=(TEXT,), inter_token_s=0.02)
    for flush in (1, 4, 8):
        answer, _ = ask(dataclasses.replace(script, flush_chunks=flush), max_tokens=32, ignore_eos=True)
        assert answer.chunk_tokens == [1] * 32
        assert (pace_ms(answer) or 0) >= 20


def test_hidden_tokens_are_in_the_chunks_without_text_or_a_contradiction() -> None:
    script = Script(texts=(TEXT,), inter_token_s=0.01, silent_first=3, silent_last=24)
    answer, _ = ask(script, max_tokens=64, ignore_eos=True)
    assert (answer.tokens, sum(answer.chunk_tokens or []), answer.contradicts_itself) == (64, 64, False)
    assert (pace_ms(answer) or 0) >= 10
    assert answer.first_ns == answer.chunk_ns[3]
    unsent, _ = ask(Script(texts=(TEXT,), inter_token_s=0.01, unsent_last=24), max_tokens=64, ignore_eos=True)
    assert (unsent.tokens, sum(unsent.chunk_tokens or []), unsent.contradicts_itself) == (64, 40, True)
    assert (pace_ms(unsent) or 0) >= 10


@pytest.mark.parametrize("thought_as", ["reasoning", "reasoning_content", "content"])
def test_reasoning_is_apart_streamed_and_in_one_piece(thought_as: str) -> None:
    script = Script(texts=(TEXT,), thought="Let me think about it.", thought_as=thought_as)
    answer, _ = ask(script)
    with FakeVllm(script) as fake:
        whole = read_answer(send(Endpoint(fake.base_url), unary("fake-model", [{"role": "user", "content": "Hi."}], 64), TIMEOUT_S))
    assert (answer.text, answer.reasoning) == (whole.text, whole.reasoning) == (TEXT, "Let me think about it.")
    assert answer.first_ns < answer.answer_ns
    assert whole.first_ns == whole.answer_ns


def test_shares_of_several_engines_are_not_summed_and_counts_are() -> None:
    lines = [f'vllm:kv_cache_usage_perc{{engine="{engine}"}} 0.4{engine}' for engine in range(4)]
    lines += [f'vllm:num_preemptions_total{{engine="{engine}"}} 2' for engine in range(4)]
    with FakeVllm(Script(bodies={"/metrics": "\n".join(lines) + "\n"})) as one, FakeVllm(Script(kv_usage=0.9)) as other:
        control = Control(one.base_url)
        assert control.metrics() == {"vllm:kv_cache_usage_perc": 0.43, "vllm:num_preemptions_total": 8}
        together = Counters([control, Control(other.base_url)]).read()
        assert (together["vllm:kv_cache_usage_perc"], together["vllm:num_preemptions_total"]) == (0.43, 8)
