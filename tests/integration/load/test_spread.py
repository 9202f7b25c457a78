"""A closed loop from several processes, and when the calibration asks for them."""

import itertools
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil
import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.errors import MeasureError
from pipeline.load import calibration, spread
from pipeline.load.calibration import Calibration, best_calibration
from pipeline.load.generator import TARGET_GONE
from pipeline.load.spread import Least, LoadShare, Processes
from tests.fakes.environment import until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

TIMEOUT_S = 30
NUMBERS = [f"number {number}." for number in range(7)]


def payloads(max_tokens: int = 16) -> list[dict[str, Any]]:
    return [streamed("fake-model", [{"role": "user", "content": prompt}], max_tokens) for prompt in NUMBERS]


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # another test's, just ended
            found += [child] if "pipeline.load.spread" in child.cmdline() else []
    return found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_answers_stand_in_order_whatever_process_got_them(processes: int) -> None:
    script = Script(by_prompt={prompt: {"texts": [prompt]} for prompt in NUMBERS}, rendezvous=3)
    with FakeVllm(script, api_key="a-key") as fake:
        target = Endpoint(fake.base_url, api_key="a-key")
        made = spread.loop(target, payloads(), 3, TIMEOUT_S, Processes(processes) if processes > 1 else None)
    assert [answer.text for answer in made.answers] == NUMBERS
    assert fake.ledger.max_in_flight == 3, "together so many as were asked for"
    assert made.wall_s > 0
    assert made.cpu_s > 0
    assert made.clock_ms == 0, "one machine, one clock"
    assert workers() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_closed_loop_ends_once_it_has_its_least_size_and_sends_no_more(processes: int) -> None:
    with FakeVllm(Script(texts=("a",))) as fake:
        crew = Processes(processes) if processes > 1 else None
        made = spread.loop(Endpoint(fake.base_url), payloads(), 2, TIMEOUT_S, crew, pace=Least(4, 0))
        assert [answer.ok for answer in made.answers] == [True] * 4
        longer = spread.loop(Endpoint(fake.base_url), payloads() * 500, 2, TIMEOUT_S, crew, pace=Least(1, 0.2))
        assert len(longer.answers) == len(fake.ledger.requests) - 4, "what was sent was answered, and nothing else counts"
        assert 2 <= len(longer.answers) <= 3500
        sends = [answer.sent_ns for answer in longer.answers]
        assert len(longer.answers) == 3500 or (max(answer.last_ns for answer in longer.answers) - min(sends)) / 1e9 >= 0.15


def test_a_client_that_is_gone_counts_its_share_of_the_least_requests_as_failed() -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        target = Endpoint(fake.base_url, lambda: len(fake.ledger.requests) < 2)
        made = spread.loop(target, payloads() * 100, 2, TIMEOUT_S, Processes(2), pace=Least(6, 0))
    assert [answer.error for answer in made.answers] == [TARGET_GONE] * 6


def test_a_dead_target_ends_the_processes_and_their_requests_count_as_failed() -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        target = Endpoint(fake.base_url, lambda: len(fake.ledger.requests) < 2)
        made = spread.loop(target, payloads(), 2, TIMEOUT_S, Processes(2))
    assert [answer.error for answer in made.answers] == [TARGET_GONE] * 7
    assert workers() == []


def test_an_interrupt_leaves_no_process_behind() -> None:
    def interrupt() -> bool:
        until(lambda: fake.ledger.in_flight == 2, "two requests in flight")
        raise KeyboardInterrupt

    with FakeVllm(Script(first_token_s=20)) as fake, pytest.raises(KeyboardInterrupt):
        spread.loop(Endpoint(fake.base_url, interrupt), payloads(), 2, TIMEOUT_S, Processes(2))
    assert workers() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_open_loop_is_sent_by_one_schedule_whatever_process_sends(processes: int) -> None:
    due_s = [0.02 * number for number in range(len(NUMBERS))]
    script = Script(by_prompt={prompt: {"texts": [prompt]} for prompt in NUMBERS})
    with FakeVllm(script) as fake:
        crew = Processes(processes) if processes > 1 else None
        made = spread.loop(Endpoint(fake.base_url), payloads(), 1, TIMEOUT_S, crew, pace=due_s)
    assert [answer.text for answer in made.answers] == NUMBERS
    apart_ns = [answer.scheduled_ns - made.answers[0].scheduled_ns for answer in made.answers]
    assert apart_ns == [int(due * 1e9) for due in due_s]
    assert all(answer.sent_ns >= answer.scheduled_ns for answer in made.answers)


def test_a_process_that_is_killed_fails_the_measurement_at_once() -> None:
    def kill_one() -> bool:
        until(lambda: fake.ledger.in_flight == 2, "two requests in flight")
        workers()[0].kill()
        return True

    with FakeVllm(Script(first_token_s=20)) as fake, pytest.raises(MeasureError) as caught:
        spread.loop(Endpoint(fake.base_url, kill_one), payloads(), 2, TIMEOUT_S, Processes(2))
    assert caught.value.message == "a process of the load client ended in mid-measurement (exit code -9)"
    assert caught.value.hint
    assert workers() == []


def test_a_client_ends_when_whoever_started_it_is_gone() -> None:
    with FakeVllm(Script(first_token_s=20)) as fake:
        command = [sys.executable, "-m", "pipeline.load.spread"]
        job = pickle.dumps(LoadShare((fake.base_url,), payloads()[:1], 1, TIMEOUT_S, None))
        with subprocess.Popen(command, cwd=spread.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            client.stdin.write(len(job).to_bytes(8, "big") + job + b"0\n")
            client.stdin.flush()
            until(lambda: fake.ledger.in_flight == 1, "its request")
            client.stdin.close()
            assert client.wait(TIMEOUT_S) == 1


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/cat")
    with pytest.raises(MeasureError, match="a process of the client did not start"):
        spread.loop(Endpoint("http://127.0.0.1:9"), payloads(), 2, TIMEOUT_S, Processes(2))


def test_a_key_is_in_no_process_list(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    popen = subprocess.Popen

    def watched(command: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        seen.append(command)
        return popen(command, **more)

    monkeypatch.setattr(subprocess, "Popen", watched)
    with FakeVllm(api_key="a-key") as fake:
        spread.loop(Endpoint(fake.base_url, api_key="a-key"), payloads(), 2, TIMEOUT_S, Processes(2))
    assert len(seen) == 2
    assert not any("a-key" in word for command in seen for word in command)


@pytest.mark.parametrize(
    ("delays_ms", "cores", "taken"),
    [
        ([0.5], 8, (1, 0.5)),
        ([3, 0.9], 8, (1, 0.9)),
        ([3, 3, 3, 0.7], 8, (2, 0.7)),
        ([3] * 6 + [0.8], 8, (4, 0.8)),
        ([5, 4, 3], 1, (1, 3)),
        ([9] * 8 + [2], 4, (4, 2)),
    ],
    ids=["good", "a noisy moment", "two processes", "four processes", "one core", "never good enough"],
)
def test_more_processes_are_taken_where_one_sees_chunks_late(
    delays_ms: list[float], cores: int, taken: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = itertools.chain(delays_ms)

    def scripted(target: Endpoint, concurrency: int, processes: int) -> Calibration:
        delay_ms = next(told)
        return Calibration(
            concurrency=concurrency, processes=processes, chunks=9, delay_ms_p50=0, delay_ms_p95=delay_ms, cpu_us_per_chunk=10
        )

    monkeypatch.setattr(calibration, "calibration", scripted)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    made = best_calibration(Endpoint("http://127.0.0.1:9"), 64, 1.0)
    assert (made.processes, made.delay_ms_p95) == taken
