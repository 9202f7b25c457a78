"""The determinism section: arms, evidence, and the remedy for answers that differ."""

import pytest

from pipeline.stages.test_determinism import Arm
from tests.builders.house import House
from tests.builders.machines import machine
from tests.builders.records import determinism, figure, server
from tests.builders.reports import line


def test_arms_show_their_evidence_divergence_or_reason(house: House) -> None:
    text = house.text()
    assert "- D1, 1 of 1 prompts: all 10 answers identical, 64 tokens.\n" in text
    assert "- D2, prefix cache cold, then warm: NOT_MEASURED, no hit was seen.\n" in text
    parted = "first difference at token 9 (logprob gap of the two best there 0.0123)"
    whole = "1 of 2 prompts: all answers equal the sequential one (14 answers)"
    assert f"- D3, amid 4 others: {whole}, {parted} (5 ran at once).\n" in text
    assert "- n counts prompts: one agrees when all its answers do.\n" in text
    assert "Without `VLLM_BATCH_INVARIANT=1`" in text


def test_the_suites_requests_stand_apart_and_exchanged_answers_are_named(house: House) -> None:
    prompts = [determinism().prompts[0].model_copy(update={"prompt": "en-001", "runs": 7, "agreeing": 7})]
    arms = [
        Arm(arm="D3", what="amid 4 others", prompts=determinism().prompts, exchanged=1),
        Arm(arm="D1", what="one after the other", constrained=True, prompts=prompts),
        Arm(arm="D3", what="amid 4 others", constrained=True, prompts=prompts, exchanged=2),
    ]
    figures = {name: figure(100, "%", 1, 20.7) for name in ("identical", "tarr", "constrained_identical", "constrained_tara")}
    house.results["test-determinism"] = determinism().model_copy(update={"arms": arms, "figures": figures})
    text = house.text()
    assert "- D1, constrained, one after the other: 1 of 1 prompts: all answers identical (7 answers).\n" in text
    assert "- D3, amid 4 others: answers were exchanged: 1 is that to another prompt.\n" in text
    assert "- D3, constrained, amid 4 others: answers were exchanged: 2 are those to another prompt.\n" in text
    assert "| D1: prompts whose raw answers all agree (TARr@10) |" in text
    assert "| D1, constrained: the same as canonical JSON (TARa@7) |" in text


def on_gpu(house: House, environment: dict[str, str], capability: str = "8.9") -> None:
    """Have everything measured on a GPU, by a server with this environment."""
    found = machine(driver="580.1", profile="rtx4050-6gb")
    gpus = [gpu.model_copy(update={"compute_capability": capability}) for gpu in found.gpus]
    house.results["check-gpu"] = found.model_copy(update={"gpus": gpus})
    house.results["serve"] = house.measured_on = server().model_copy(update={"distribution": "vllm", "environment": environment})


def test_arms_that_differ_name_the_remedy_of_the_processor(house: House) -> None:
    told = line(house.text(), "- Remedy for this device: ")
    assert told.startswith("- Remedy for this device: `VLLM_CPU_ATTN_SPLIT_KV=0` in `serve.env` (")
    assert told.endswith("; `./inv determinism-remedy` measures without and with it.")


def test_arms_that_differ_name_the_remedy_of_the_gpu(house: House) -> None:
    on_gpu(house, {"VLLM_CPU_ATTN_SPLIT_KV": "0"})
    assert line(house.text(), "- Remedy for this device: ").startswith(
        "- Remedy for this device: `VLLM_BATCH_INVARIANT=1` in `serve.env` ("
    )


def test_a_remedy_that_is_in_force_already_does_not_help(house: House) -> None:
    on_gpu(house, {"VLLM_BATCH_INVARIANT": "1"})
    told = line(house.text(), "- The remedy for this device, `VLLM_BATCH_INVARIANT=1`, is in force already and so does not help; ")
    assert "`./inv determinism-remedy`" in told


def test_an_old_gpu_and_a_server_of_somebody_else_have_no_remedy(house: House) -> None:
    on_gpu(house, {}, capability="7.5")
    told = "- No remedy is known here: VLLM_BATCH_INVARIANT=1 needs compute capability 8.0, and RTX 4050 has 7.5.\n"
    assert told in house.text()
    house.results["serve"] = house.measured_on = server().model_copy(update={"attached": "http://elsewhere"})
    assert "- No remedy is known here: the server at http://elsewhere is not ours to start with another environment.\n" in house.text()


@pytest.mark.parametrize("parted", ["D1", "D2", "D3", "D4", "D5", ""])
def test_a_remedy_is_named_where_an_answer_differs_that_should_not(house: House, parted: str) -> None:
    whole = determinism().prompts[0]
    split = whole.model_copy(update={"agreeing": 9, "distinct": 2, "first_divergence": 3})
    arms = [Arm(arm=name, what=name, prompts=[split if name == parted else whole]) for name in ("D2", "D3", "D4", "D5")]
    prompts = [split if parted == "D1" else whole]
    house.results["test-determinism"] = determinism().model_copy(update={"arms": arms, "prompts": prompts})
    assert ("Remedy for this device" in house.text()) is (parted not in ("", "D5"))
