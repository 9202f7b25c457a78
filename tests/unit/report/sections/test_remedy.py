"""What a remedy did, side by side, in the determinism section."""

import pytest

from pipeline.engine.record import Failure
from pipeline.stages.test_determinism import REMEDY_NOTE
from pipeline.vllm.ladder import Attempt
from tests.builders.house import House
from tests.builders.records import (
    proof,
    server,
)
from tests.builders.reports import line

TITLE = "Answers equal to the sequential ones, and speed, without and with `A=1`"


def test_a_proof_of_this_model_and_vllm_stands_side_by_side(house: House) -> None:
    assert TITLE not in house.text()
    house.results[REMEDY_NOTE] = proof()
    text = house.text()
    assert TITLE in text
    row = line(text, "| D3, amid 4 others |")
    assert row.split(" | ")[1:] == ["13 of 14, first difference at token 9 (logprob gap of the two best there 0.0123)", "10 of 10 |"]
    assert line(text, "| launches |") == "| launches | without | remedied |"
    assert "| determinism-remedy |" not in text, "it is no stage"
    assert house.report().exit_code == 0


def test_a_proof_stands_also_where_the_stage_was_not_run(house: House) -> None:
    house.results |= {REMEDY_NOTE: proof(), "test-determinism": None}
    text = house.text()
    assert text.index("NOT_MEASURED: this stage never ran") < text.index(TITLE) < text.index("### Latency and throughput")


@pytest.mark.parametrize("other", [{"model": "another"}, {"vllm": "0.19.1"}])
def test_a_proof_of_another_model_or_vllm_is_not_shown(house: House, other: dict[str, str]) -> None:
    house.results[REMEDY_NOTE] = proof(**other)
    assert TITLE not in house.text()


def test_a_proof_of_our_servers_is_not_shown_for_somebody_elses(house: House) -> None:
    house.results[REMEDY_NOTE] = proof()
    house.results["serve"] = house.measured_on = server().model_copy(update={"attached": "http://elsewhere"})
    assert TITLE not in house.text()


def test_a_proof_without_a_server_on_record_is_not_shown(house: House) -> None:
    house.results |= {REMEDY_NOTE: proof(), "serve": None}
    assert TITLE not in house.text()


def test_requests_that_failed_and_a_start_that_was_repeated_are_told(house: House) -> None:
    attempt = Attempt(cause="the GPU ran out of memory", changed="max_num_seqs 16 → 8", took_s=30, log="l")
    house.results[REMEDY_NOTE] = proof(
        without=proof().without.model_copy(update={"errors": ["HTTP 500", "HTTP 500"], "attempts": [attempt]})
    )
    text = house.text()
    assert line(text, "| failed requests for speed |") == "| failed requests for speed | 2: HTTP 500 | no |"
    assert line(text, "| a failed start was repeated with |").endswith(" | max_num_seqs 16 → 8 | no |")


def test_a_speed_that_is_invalid_says_why(house: House) -> None:
    speed = proof().without.decode_tok_s.model_copy(update={"invalid": "the client was late"})
    house.results[REMEDY_NOTE] = proof(without=proof().without.model_copy(update={"decode_tok_s": speed}))
    assert "| INVALID: the client was late |" in line(house.text(), "| decode at concurrency 1, median |")


def test_a_simulated_side_and_one_that_failed_say_so(house: House) -> None:
    failed = proof().remedied.model_copy(update={"failure": Failure(kind="server", message="it broke"), "simulated": True})
    house.results[REMEDY_NOTE] = proof(remedied=failed)
    text = house.text()
    assert line(text, "| failed |") == "| failed | no | it broke |"
    assert line(text, "| SIMULATED, not a real vLLM |") == "| SIMULATED, not a real vLLM | no | yes |"
