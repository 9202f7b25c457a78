"""The verdict in one line, with waivers."""

from datetime import date

import pytest

from pipeline.config.gates import Waiver
from pipeline.contexts import ActiveWaivers
from pipeline.engine.record import Failure
from pipeline.errors import NothingAnsweredError
from pipeline.message import _
from pipeline.report.gates import Judged
from pipeline.report.headline import headline
from pipeline.stages.download_model import Model
from pipeline.stages.serve import Server
from pipeline.stages.test_router import RouterResult
from pipeline.vllm.identity import Proof
from tests.builders.house import House, outcomes_of
from tests.builders.records import (
    bench_result,
    figure,
)
from tests.builders.reports import line


def test_headline_of_a_pass_counts_the_required_gates(house: House) -> None:
    made = house.report()
    assert (made.headline, made.exit_code) == ("PASS: all 2 required gates pass; not required: 1 has no valid measurement.", 0)


def test_headline_names_each_open_gate_with_its_verdict(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    made = house.report()
    assert made.exit_code == 1
    assert made.headline == "NOT PASSED: 1 of 2 required gates pass; not required: 1 has no valid measurement. Open: First token (FAIL)."


def test_headline_of_a_failed_stage_names_the_cause(house: House) -> None:
    house.results["bench"] = Failure(kind="server", message="the server died")
    made = house.report()
    assert made.exit_code == 2
    assert made.headline.startswith("NOT MEASURED: 1 of 2")
    assert "bench failed: the server died" in made.headline


def test_gate_that_is_not_required_does_not_open_the_headline(house: House) -> None:
    house.results["measure-vram"] = None
    assert house.report().exit_code == 0


@pytest.mark.parametrize(("code", "word"), [(1, "NOT PASSED"), (2, "NOT MEASURED")])
def test_headline_without_gates_still_says_its_code(code: int, word: str) -> None:
    assert headline(Judged([], code, outcomes_of({}))).startswith(word)


WAIVER = {"ttft": Waiver(reason="the new | card comes in May", expires=date(2027, 1, 1))}


def test_waived_gate_keeps_its_verdict_and_does_not_count(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    house.waivers = ActiveWaivers(in_force=WAIVER)
    made = house.report()
    assert (made.headline, made.exit_code) == (
        "PASS: 1 of 2 required gates pass, 1 is waived; not required: 1 has no valid measurement.",
        0,
    )
    gate = made.gates[0]
    assert (gate.verdict, gate.waiver) == ("FAIL", "waived until 2027-01-01: the new | card comes in May")
    row = line(house.text(), "| First token[^ttft][^send] |")
    assert "FAIL (waived until 2027-01-01: the new \\| card comes in May): 600 is not < 500" in row


def test_expired_waiver_counts_no_more_and_is_told(house: House) -> None:
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    house.waivers = ActiveWaivers(expired=WAIVER)
    made = house.report()
    assert (made.headline, made.exit_code) == (
        "NOT PASSED: 1 of 2 required gates pass; not required: 1 has no valid measurement. Open: First token (FAIL).",
        1,
    )
    assert "FAIL (waiver expired on 2027-01-01: the new \\| card comes in May): 600 is not < 500" in house.text()


def test_waivers_leave_the_other_open_gates_in_the_headline(house: House) -> None:
    house.results["bench"], house.results["test-router"] = None, None
    house.waivers = ActiveWaivers(in_force=WAIVER)
    made = house.report()
    assert made.exit_code == 2
    assert made.headline == (
        "NOT MEASURED: 0 of 2 required gates pass, 1 is waived; not required: 1 has no valid measurement. "
        "Open: JSON | parses (NOT_MEASURED)."
    )


def test_a_run_in_which_every_required_gate_is_waived_is_no_pass(house: House) -> None:
    house.results["bench"], house.results["test-router"] = None, None
    house.waivers = ActiveWaivers(in_force={**WAIVER, "json": WAIVER["ttft"]})
    made = house.report()
    assert made.exit_code == 2
    assert made.headline.startswith("NOT MEASURED: 0 of 2 required gates pass, 2 are waived; not required: ")
    assert "Open: First token (NOT_MEASURED), JSON" in made.headline


def test_nothing_answered_is_a_failure_with_its_cause(house: House) -> None:
    house.results["bench"] = Failure(kind=NothingAnsweredError.kind, message="bench: no request succeeded: HTTP 500")
    made = house.report()
    assert (made.gates[0].verdict, made.exit_code) == ("FAIL", 2)
    row = line(house.text(), "| First token[^ttft][^send] |")
    assert "| NOT_MEASURED | ❌ FAIL: bench: no request succeeded: HTTP 500 |" in row


def served(house: House, **facts: object) -> None:
    """Change these facts of the house's server, on which everything was measured."""
    server = house.results["serve"]
    assert isinstance(server, Server)
    house.results["serve"] = house.measured_on = server.model_copy(update=facts)


def embedded(house: House, **shares: float) -> None:
    """Make the house's model the embedded one, and its router right in these shares of the cases."""
    model = house.results["download-model"]
    assert isinstance(model, Model)
    house.results["download-model"] = model.model_copy(update={"source": "wheel"})
    router = house.results["test-router"]
    assert isinstance(router, RouterResult)
    figures = {name: figure(value, "%", n=64) for name, value in shares.items()}
    house.results["test-router"] = router.model_copy(update={"figures": {**router.figures, **figures}})


def test_a_run_of_the_embedded_model_is_a_trial(house: House) -> None:
    embedded(house, constrained_route_accuracy=37.5, majority_baseline=37.5)
    made = house.report()
    assert made.exit_code == 0
    assert made.headline == (
        "TRIAL: the pipeline works here, 2 of 2 required gates pass; not required: 1 has no valid measurement. "
        "The embedded model is no router: 38 % right, a constant answer gets 38 %."
    )
    assert "> [!NOTE]" in house.text()
    assert "TRIAL" in (house.root / "report.html").read_text(encoding="utf-8")


def test_a_trial_whose_gates_fail_is_not_passed(house: House) -> None:
    embedded(house)
    house.results["bench"] = bench_result(ttft=figure(600, "ms", high=700))
    made = house.report()
    assert made.exit_code == 1
    assert made.headline.startswith("NOT PASSED: ")
    assert made.headline.endswith("The embedded model is no router.")


def test_a_run_with_random_weights_is_a_trial(house: House) -> None:
    served(house, random_weights=True)
    assert house.report().headline.startswith("TRIAL: ")
    assert house.report().headline.endswith("The weights are random, so the answers mean nothing; speed and memory are real.")


def test_the_headline_of_an_attached_server_says_that_it_is_somebody_elses(house: House) -> None:
    served(house, attached="http://gpu:8000")
    assert "The server at http://gpu:8000 is somebody else's: it could hide what HTTP does not show." in house.report().headline


def test_the_headline_of_a_server_without_metrics_says_why_its_figures_are_simulated_and_what_to_change(house: House) -> None:
    lacks = Proof(claim="its metrics count the tokens of a completion", holds=False, seen="no counter", fix="Start it otherwise")
    served(house, real=False, proofs=[Proof(claim="it listens", holds=True, seen="pid 7"), lacks])
    end = "it is not proven that its metrics count the tokens of a completion: no counter. Start it otherwise."
    assert end in house.report().headline


def test_why_figures_are_simulated_is_said_in_the_language_of_the_report(house: House) -> None:
    house.language = "tr"
    seen = _("{name} is not there", name="vllm:generation_tokens_total")
    fix = _("Start the server without {flag}, so that it counts its tokens", flag="--disable-log-stats")
    served(house, real=False, proofs=[Proof(claim=_("its metrics count the tokens of a completion"), holds=False, seen=seen, fix=fix)])
    assert "vllm:generation_tokens_total yok. Sunucuyu --disable-log-stats olmadan başlatın" in house.text()


def test_the_headline_names_a_proof_that_fails(house: House) -> None:
    served(house, real=False, proofs=[Proof(claim="/v1/models is vLLM's", holds=False, seen="by others")])
    assert "Simulated, because it is not proven that /v1/models is vLLM's: by others." in house.report().headline
