"""The measuring stages against a scripted server: right figures, failures counted, and never a PASS from a simulation."""

import dataclasses
import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.client import meter
from pipeline.config.layers import load_layers
from pipeline.config.schema import BenchConfig, DeterminismConfig, Gate, RouterConfig, VramConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Measurement, Outcome, Store, now
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, MeaninglessError, MeasureError, NothingAnsweredError, PipelineError, ServerError
from pipeline.gpu.plan import Plan
from pipeline.load.calibration import Calibration, calibrate
from pipeline.load.generator import Target
from pipeline.load.stamps import raw_answer
from pipeline.measure.verdicts import exit_code
from pipeline.report.gates import judge_all
from pipeline.server import state
from pipeline.server.loads import Loads, Notebook, read_loads
from pipeline.stages import bench as benching
from pipeline.stages import measure_vram as memory
from pipeline.stages import test_determinism as determinism
from pipeline.stages import test_router as router
from pipeline.stages.serve import Server
from pipeline.terminal import Silent
from tests.builders.house import outcomes_of
from tests.fakes.environment import machine, simulated_server, until
from tests.fakes.fake_vllm import FakeVllm, Script, split
from tests.integration.conftest import calibrated

ROOT = Path(__file__).resolve().parents[3]
GOLD = {"route": "calendar", "calendar_intent": "create", "slots": {"title": "dentist"}}
CASES = {
    "right": (GOLD, json.dumps(GOLD)),
    "wrong slot": (GOLD, json.dumps({**GOLD, "slots": {"title": "doctor"}})),
    "wrong route": (GOLD, json.dumps({**GOLD, "route": "smalltalk"})),
    "fenced": (GOLD, f"```json\n{json.dumps(GOLD)}\n```"),
    "not json": (GOLD, "Sure, I can do that."),
    "unknown value": (GOLD, json.dumps({**GOLD, "route": "weather"})),
    "echoed": (GOLD, json.dumps({**GOLD, "route": "calendar|smalltalk"})),
    "truncated": (GOLD, json.dumps({**GOLD, "slots": {"title": "x" * 400}})),
}
SCHEMA = {
    "type": "object",
    "required": ["route", "calendar_intent", "slots"],
    "additionalProperties": False,
    "properties": {
        "route": {"enum": ["calendar", "smalltalk", "unknown"]},
        "calendar_intent": {"enum": ["create", "none"]},
        "slots": {"type": "object"},
    },
}
ROUTER = RouterConfig(suite="suite", cases=20, unary_cases=0, max_tokens=50, timeout_s=30)
BENCH = BenchConfig(
    ttft_requests=3,
    warmup_requests=1,
    decode_requests=3,
    output_tokens=8,
    concurrency=(1, 2),
    requests_per_level=4,
    open_requests=3,
    open_share=1,
    timeout_s=30,
)
LIMITS = RequestLimits(ttft_ms=5000, tpot_ms=1000)
# In this order: 0 the first, 1 warm-up, 2-4 cold, 5-7 the same warm, 8 warm-up of 9-11 decode, 12-13 warm-up of 14-17 at 2,
# 18-20 Poisson, 21-23 constant.
BENCH_REQUESTS = 24
BENCH_TOKENS = 8 + 16 * 8
DETERMINISM = DeterminismConfig(prompts="prompts.txt", runs=4, max_tokens=16, cache_runs=0, load=(), restart=False, timeout_s=30)
VRAM = VramConfig(load_s=0.3, concurrency=2)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Silent())
    (tmp_path / "server.log").write_text("", encoding="utf-8")
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "suite.yaml").write_text(
        "name: tiny\nlanguage: en\ndescription: A test.\nprompt: prompt.j2\nschema: schema.json\ncases: cases.jsonl\n", encoding="utf-8"
    )
    (tmp_path / "prompts.txt").write_text("steady\n\nshaky\n", encoding="utf-8")
    (suite / "prompt.j2").write_text("Answer with JSON.", encoding="utf-8")
    (suite / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    lines = [json.dumps({"id": f"c{number}", "text": name, **gold}) for number, (name, (gold, _)) in enumerate(CASES.items())]
    (suite / "cases.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm() as made:
        yield made


@pytest.fixture
def server(fake: FakeVllm, workspace: Workspace) -> Server:
    return simulated_server(fake, workspace)


def bench(server: Server, workspace: Workspace, settings: BenchConfig = BENCH, limits: RequestLimits = LIMITS) -> benching.BenchResult:
    return benching.bench(settings, limits, server, workspace)


def answers_to_cases(**changes: dict[str, Any]) -> Script:
    return Script(by_prompt={name: {"texts": [text]} for name, (_, text) in CASES.items()} | changes)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shares(figures: dict[str, Any], arm: str) -> dict[str, float]:
    """Return the arm's percentages as counts of the cases."""
    n = len(CASES)
    names = [name for name, figure in figures.items() if name.startswith(arm) and figure.unit == "%" and not name.endswith("f1")]
    assert all(figures[name].n == n for name in names), "every share is over all cases"
    return {name.removeprefix(f"{arm}_"): round(figures[name].value * n / 100, 6) for name in names}


# Router


def test_router_tells_valid_from_right_in_both_arms(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER, server, workspace)
    expected = {
        "answered": 8,
        "json_strict": 5,
        "json_lenient": 6,
        "schema_valid": 3,
        "truncated": 1,
        "repair_rate": 1,
        "route_accuracy": 3,
        "joint_accuracy": 2,
    }
    assert shares(result.figures, "prompt_only") == expected
    assert shares(result.figures, "constrained") == expected
    classes = {"fence": 1, "not JSON": 1, "unknown value": 1, "echoed choices": 1, "truncated": 1}
    assert result.failures == {"prompt_only": classes, "constrained": classes}
    assert result.simulated
    assert (result.suite, result.cases, result.launch_id) == ("tiny", len(CASES), server.handle.launch_id)


def test_router_keeps_failed_requests_in_the_denominator(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = answers_to_cases(**{"wrong slot": {"status": 500}, "wrong route": {"cut_after": 1}, "fenced": {"error_after": 1}})
    result = router.test_router(ROUTER, server, workspace)
    found = shares(result.figures, "constrained")
    assert (found["answered"], found["schema_valid"], found["json_lenient"]) == (5, 1, 3)
    assert result.failures["constrained"]["failed request"] == 3
    assert result.figures["constrained_latency_ms_p50"].n == 5
    shown = [example for example in result.examples if example.failure == "failed request" and example.arm == "constrained"]
    assert [example.case for example in shown] == ["c1", "c2", "c3"]
    assert "HTTP 500" in shown[0].text


def test_router_sends_the_schema_in_the_constrained_arm_only(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    router.test_router(ROUTER, server, workspace)
    per_arm = len(CASES) + 1  # and one that is not counted
    plain, constrained = fake.ledger.requests[:per_arm], fake.ledger.requests[per_arm:]
    assert len(constrained) == per_arm
    assert all("response_format" not in request for request in plain)
    assert all(request["response_format"]["json_schema"]["schema"] == SCHEMA for request in constrained)
    assert [request["messages"][-1]["content"] for request in plain[1:]] == list(CASES)
    assert all(request["stream"] for request in fake.ledger.requests)
    assert {request["messages"][0]["content"] for request in plain} == {"Answer with JSON."}


def test_router_asks_some_cases_once_more_in_one_piece(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    changed = {"texts": [json.dumps({**GOLD, "route": "unknown"})]}
    # In each arm one request that is not counted, 8 streamed, one more uncounted, 3 in one piece.
    fake.script = dataclasses.replace(answers_to_cases(), by_number={"11": changed})
    result = router.test_router(ROUTER.model_copy(update={"unary_cases": 3}), server, workspace)
    streams = [bool(request.get("stream")) for request in fake.ledger.requests]
    assert streams == ([True] * 9 + [False] * 4) * 2
    assert result.unary_cases == 3
    assert result.figures["constrained_unary_schema_valid"].n == 3
    assert result.figures["constrained_unary_schema_valid"].value == 100
    assert result.figures["constrained_unary_same_text"].value == 100
    assert result.figures["prompt_only_unary_same_text"].value == pytest.approx(100 * 2 / 3), "one answer was another"
    assert "prompt_only_unary_ttft_ms_p50" not in result.figures, "an answer in one piece has no first token"


def test_router_compares_the_arms_case_by_case(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    wrong = {"texts": [json.dumps({**GOLD, "route": "smalltalk"})]}
    # Requests 1-8 are prompt-only: "right" and "wrong slot" lose their route there.
    fake.script = dataclasses.replace(answers_to_cases(), by_number={"1": wrong, "2": wrong})
    result = router.test_router(ROUTER, server, workspace)
    pairs = result.routes_paired
    assert (pairs.both, pairs.only_prompt_only, pairs.only_constrained, pairs.neither) == (1, 0, 2, 5)
    assert pairs.p == 0.5
    assert result.figures["constraint_route_accuracy_points"].value == 25
    assert result.figures["constraint_latency_ms_p50"].n == 8
    assert result.confusion["prompt_only"] == {
        "calendar": {"(no valid JSON)": 2, "calendar": 1, "calendar|smalltalk": 1, "smalltalk": 3, "weather": 1}
    }
    assert (result.majority_route, result.figures["majority_baseline"].value) == ("calendar", 100)
    assert result.figures["constrained_route_macro_f1"].value == pytest.approx(100 * 2 * 3 / (8 + 3))


def test_router_shows_valid_answers_with_a_wrong_route_too(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = answers_to_cases()
    shown = [(example.case, example.failure) for example in router.test_router(ROUTER, server, workspace).examples]
    assert ("c2", "route smalltalk, golden calendar") in shown
    assert ("c3", "fence") in shown


def test_router_latency_is_at_least_what_the_server_took(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=("abcdefgh",), first_token_s=0.01, inter_token_s=0.01)
    figures = router.test_router(ROUTER, server, workspace).figures
    assert figures["constrained_ttft_ms_p50"].value is not None
    assert figures["constrained_ttft_ms_p50"].value >= 10
    assert figures["constrained_latency_ms_p50"].value is not None
    assert figures["constrained_latency_ms_p50"].value >= 20


def test_router_leaves_every_answer_verbatim(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER, server, workspace)
    lines = lines_of(workspace.root / result.raw)
    assert len(lines) == 2 * len(CASES)
    whole = [line["text"] for line in lines if line["arm"] == "constrained" and line["failure"] != "truncated"]
    assert whole == [text for name, (_, text) in CASES.items() if name != "truncated"]


def test_router_without_one_success_is_a_failure(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(status=500)
    with pytest.raises(NothingAnsweredError, match=r"prompt-only: no request succeeded: HTTP 500"):
        router.test_router(ROUTER, server, workspace)


# Determinism


def test_equal_answers_are_identical(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    result = determinism.test_determinism(DETERMINISM, server, workspace)
    assert (result.figures["identical"].value, result.figures["identical"].n) == (100, 8)
    assert (result.figures["tarr"].value, result.figures["tarr"].n) == (100, 2)
    assert [prompt.first_divergence for prompt in result.prompts] == [None, None]
    assert result.simulated
    for request in fake.ledger.requests[:8]:
        assert (request["temperature"], request["seed"], request["return_token_ids"]) == (0, 42, True)


def test_one_token_that_differs_is_noticed_and_placed(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    same, other = "aaaabbbbccccdddd", "aaaabbbbcXccdddd"
    # Requests 4 to 7 are the shaky prompt's.
    fake.script = Script(texts=(same,), by_number={"6": {"texts": [other]}})
    result = determinism.test_determinism(DETERMINISM, server, workspace)
    steady, shaky = result.prompts
    assert (steady.agreeing, steady.distinct, steady.first_divergence) == (4, 1, None)
    assert (shaky.agreeing, shaky.distinct, shaky.first_divergence, shaky.tokens) == (3, 2, 2, 4)
    assert result.figures["identical"].value == pytest.approx(100 * 7 / 8)
    assert result.figures["tarr"].value == 50


def test_an_answer_that_goes_on_differs_where_the_other_ends(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=("aaaabbbb", "aaaabbbbcccc"))
    result = determinism.test_determinism(DETERMINISM, server, workspace)
    assert [(prompt.agreeing, prompt.first_divergence) for prompt in result.prompts] == [(2, 2), (2, 2)]


ARMS = DETERMINISM.model_copy(update={"cache_runs": 2, "load": (2, 3), "load_runs": 1})


def of_arm(result: determinism.Determinism, arm: str) -> list[determinism.Arm]:
    return [entry for entry in result.arms if entry.arm == arm]


def test_each_arm_names_its_evidence(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None, first_token_s=0.3)
    result = determinism.test_determinism(ARMS, server, workspace)
    assert [(arm.arm, arm.what, arm.runs, arm.agreeing) for arm in result.arms if not arm.reason] == [
        ("D2", "prefix cache cold, then warm", 8, 8),
        ("D3", "amid 2 others", 2, 2),
        ("D3", "amid 3 others", 2, 2),
        ("D5", "temperature 0.8, same seed", 2, 2),
        ("D5", "temperature 0.8, another seed", 2, 2),
    ]
    assert of_arm(result, "D2")[0].evidence == "0 cached prompt tokens cold; a hit in 4 of 4 warm"
    assert "above 1 beside 2 of 2 requests" in of_arm(result, "D3")[0].evidence
    assert of_arm(result, "D4")[0].reason == "determinism.restart is false"
    assert result.figures["d2_identical"].value == result.figures["d3_identical"].value == 100
    assert (result.figures["d4_identical"].value, result.figures["d4_identical"].reason) == (None, "determinism.restart is false")


def test_an_answer_that_changes_under_load_is_noticed_with_its_gap(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    alone = Script(texts=("aaaabbbbccccdddd",), first_token_s=0.08, top_gap=0.25)

    class WhileLoaded(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            if "subject number" in prompt:  # the load, long enough that it does not end just when a prompt is asked
                return dataclasses.replace(alone, first_token_s=0.4)
            return dataclasses.replace(alone, texts=("aaaabbbbcXccdddd",)) if fake.ledger.in_flight > 1 else alone

    fake.script = WhileLoaded()
    result = determinism.test_determinism(ARMS.model_copy(update={"cache_runs": 0, "load": (2,)}), server, workspace)
    assert result.figures["identical"].value == 100
    assert result.figures["d3_identical"].value == 0
    (arm,) = of_arm(result, "D3")
    assert [prompt.first_divergence for prompt in arm.prompts] == [2, 2]
    assert [prompt.gap for prompt in arm.prompts] == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(("others", "at_once"), [(1, 1), (3, 1), (4, 2), (5, 2), (16, 8), (20, 8)])
def test_each_tested_request_runs_amid_so_many_others_of_which_half_are_random(
    others: int, at_once: int, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tested request is answered once all are in flight, which never happens to one that runs amid fewer."""
    seen: list[int] = []
    tested: list[str] = []

    def all_there() -> bool:
        running = fake.ledger.in_flight
        if running > others:
            seen.append(running)
        return running > others

    class Watching(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            if "subject number" in prompt:  # it stays until one more tested request is answered amid it
                before = len(seen)
                until(lambda: len(seen) > before or len(seen) == 2 * len(prompts), "an answer to a tested request")
                return dataclasses.replace(self, first_token_s=0.02)
            tested.append(prompt)
            until(all_there, "all the others")
            return dataclasses.replace(self, first_token_s=0.2)

    asker = determinism.Asker(Target(fake.base_url), server.model, ARMS)
    prompts = {prompt: asker.ask(prompt) for prompt in (f"prompt {number}" for number in range(5))}
    fake.script = Watching()
    random: list[int] = []

    @contextmanager
    def counted(asker: determinism.Asker, background: int) -> Iterator[None]:
        random.append(background)
        with under_load(asker, background):
            yield

    under_load = determinism.under_load
    monkeypatch.setattr(determinism, "under_load", counted)
    arm = determinism.load_arm(asker, prompts, others, ARMS.model_copy(update={"load_runs": 2}), workspace)
    assert random == [others + 1 - at_once]
    assert sorted(tested) == sorted([*prompts, *prompts]), "the same n"
    assert set(seen) == {others + 1}
    assert len(seen) == len(tested)
    assert "above 1 beside 10 of 10 requests" in arm.evidence
    assert [prompt.prompt for prompt in arm.prompts] == list(prompts)
    assert fake.ledger.in_flight == 0, "what comes next is asked alone"


def test_ctrl_c_under_load_waits_for_no_answer(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=20)
    asker = determinism.Asker(Target(fake.base_url), server.model, ARMS)

    def interrupted() -> None:
        with determinism.under_load(asker, 2):
            determinism.in_background(asker, "steady")
            until(lambda: fake.ledger.in_flight == 3, "three requests in flight")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fake.ledger.in_flight == 3


@pytest.mark.parametrize(
    ("script", "arm", "says"),
    [
        (Script(cached_tokens=0), "D2", "no cold and warm cache: 0 cached tokens cold, 0 warm"),
        (Script(cached_tokens=7), "D2", "no cold and warm cache: 28 cached tokens cold, 28 warm"),
        (Script(in_flight_gauge=False, first_token_s=0.01), "D3", "no proof that any two requests overlapped"),
    ],
)
def test_an_arm_without_evidence_is_not_measured(
    script: Script, arm: str, says: str, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(determinism, "LOAD_STARTS_S", 0.2)
    fake.script = script
    result = determinism.test_determinism(ARMS, server, workspace)
    assert all(says in entry.reason and not entry.prompts for entry in of_arm(result, arm))
    figure = result.figures[f"{arm.lower()}_identical"]
    assert figure.value is None
    assert says in figure.reason


def test_the_controls_can_tell_seeds_apart(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    class Seeded(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            seed = fake.ledger.requests[number]["seed"]
            return Script(texts=(f"answer of seed {seed} to {prompt}",))

    fake.script = Seeded()
    result = determinism.test_determinism(DETERMINISM, server, workspace)
    assert result.figures["d5_same_seed_identical"].value == 100
    assert result.figures["d5_other_seed_identical"].value == 0


def test_answers_that_are_equal_as_json_count_in_tara_alone(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    texts = ('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    fake.script = Script(texts=texts)
    result = determinism.test_determinism(DETERMINISM, server, workspace)
    assert (result.figures["tarr"].value, result.figures["tara"].value) == (0, 100)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), ("\n", "no prompts"), ("a\nb\na\n", ":3: the prompt is there twice")]
)
def test_a_file_of_prompts_is_checked(content: str | None, says: str, server: Server, workspace: Workspace) -> None:
    path = workspace.root / "prompts.txt"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        determinism.test_determinism(DETERMINISM, server, workspace)


@pytest.mark.parametrize("stage", ["test-router", "test-determinism"])
def test_noise_is_not_judged(stage: str, server: Server, workspace: Workspace) -> None:
    with pytest.raises(MeaninglessError, match="weights are random"):
        STAGES[stage](server.model_copy(update={"random_weights": True}), workspace)


@pytest.mark.parametrize(("script", "says"), [(Script(token_ids=False), "token ids"), (Script(status=500), "HTTP 500")])
def test_determinism_without_token_ids_or_answers_is_not_measured(
    script: Script, says: str, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    with pytest.raises(MeasureError, match=says):
        determinism.test_determinism(DETERMINISM, server, workspace)


# Bench


def test_bench_counts_what_the_server_counts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.05)  # so that requests overlap
    result = bench(server, workspace)
    assert [(count.name, count.client, count.server) for count in result.ledger] == [
        ("output tokens", BENCH_TOKENS, BENCH_TOKENS),
        ("prompt tokens", fake.ledger.prompt_tokens, fake.ledger.prompt_tokens),
        ("requests answered", BENCH_REQUESTS, BENCH_REQUESTS),
    ]
    assert all(count.agrees for count in result.ledger)
    assert [(level.concurrency, level.requests, level.failed, level.output_tokens) for level in result.levels] == [
        (1, 3, 0, 24),
        (2, 4, 0, 32),
    ]
    assert result.simulated


@pytest.mark.parametrize("counting", [0.0, 0.5, 2.0])
def test_bench_notices_a_server_that_counts_otherwise(counting: float, fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(counting=counting)
    output, *_ = bench(server, workspace).ledger
    assert not output.agrees
    assert (output.client, output.server) == (BENCH_TOKENS, int(BENCH_TOKENS * counting))


def test_bench_without_the_servers_counter_does_not_agree(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(metrics=False)
    result = bench(server, workspace)
    assert [(count.server, count.agrees) for count in result.ledger] == [(None, False)] * 3
    assert (result.cold_hit_tokens, result.warm_hit_tokens) == (None, None)
    assert result.figures["ttft_warm_ms_p50"].value is None
    assert "not available" in result.figures["ttft_warm_ms_p50"].reason


def test_bench_figures_follow_from_the_scripted_pace_and_from_the_raw_stamps(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.02, inter_token_s=0.01)
    result = bench(server, workspace)
    least_s = 0.02 + 7 * 0.01
    value = {name: figure.value or 0.0 for name, figure in result.figures.items()}
    assert value["ttft_ms_p50"] >= 20
    assert value["e2e_ms_p50"] >= least_s * 1000
    assert value["system_tok_s_c1"] <= 8 / least_s
    assert value["system_tok_s_c2"] <= 2 * 8 / least_s
    lines = [json.loads(line) for line in gzip.decompress((workspace.root / result.raw).read_bytes()).splitlines()]
    kept = [raw_answer(line) for line in lines]
    assert len(kept) == BENCH_REQUESTS
    assert sum(answer.tokens for answer in kept) == BENCH_TOKENS
    cold, decode, at_two = kept[2:5], kept[9:12], kept[14:18]
    tpot = sorted((answer.last_ns - answer.first_ns) / 7 / 1e6 for answer in decode)
    assert value["tpot_ms_p50"] == pytest.approx(tpot[1])
    assert value["decode_tok_s_p50"] == pytest.approx(1000 / tpot[1])
    assert value["ttft_ms_p50"] == pytest.approx(sorted((answer.first_ns - answer.sent_ns) / 1e6 for answer in cold)[1])
    assert value["e2e_ms_p50"] == pytest.approx(sorted((answer.last_ns - answer.sent_ns) / 1e6 for answer in decode)[1])
    poisson = kept[18:21]
    assert value["poisson_e2e_ms_p50"] == pytest.approx(sorted((answer.last_ns - answer.scheduled_ns) / 1e6 for answer in poisson)[1])
    for level in result.levels:
        assert level.throughput_tok_s == pytest.approx(level.output_tokens / level.wall_s, rel=0.02)
    seen_s = (max(answer.last_ns for answer in at_two) - min(answer.sent_ns for answer in at_two)) / 1e9
    assert value["system_tok_s_c2"] == pytest.approx(4 * 8 / seen_s, rel=0.2)
    assert [line["phase"] for line in lines[12:16]] == ["warm-up c2", "warm-up c2", "closed loop c2", "closed loop c2"]


def test_bench_of_a_warm_prefix_cache_counts_where_the_server_shows_hits(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None)
    result = bench(server, workspace)
    assert result.cold_hit_tokens == 0
    assert result.warm_hit_tokens
    assert result.figures["ttft_warm_ms_p50"].n == 3
    fake.script = Script(cached_tokens=0)
    missed = bench(server, workspace)
    assert missed.figures["ttft_warm_ms_p95"].value is None
    assert "did not rise" in missed.figures["ttft_warm_ms_p95"].reason


def test_bench_counts_a_late_answer_from_when_it_was_due_and_against_goodput(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=0.02, inter_token_s=0.01, by_number={"19": {"first_token_s": 0.6}, "22": {"status": 500}})
    result = bench(server, workspace, limits=RequestLimits(ttft_ms=500))
    goodput = {name: figure.value for name, figure in result.figures.items() if "goodput" in name}
    assert goodput["goodput_c1"] == goodput["goodput_c2"] == 100
    assert goodput["poisson_goodput"] == pytest.approx(100 * 2 / 3), "a late one misses"
    assert goodput["constant_goodput"] == pytest.approx(100 * 2 / 3), "a failed one misses"
    assert [(level.arrival, level.requests, level.failed) for level in result.open_levels] == [("poisson", 3, 0), ("constant", 3, 1)]
    assert all(level.delay_ms_max >= 0 for level in result.open_levels)


def test_bench_searches_for_the_highest_rate_that_meets_the_limits(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    asked = BENCH.model_copy(update={"find_capacity": True, "capacity_requests": 9, "capacity_steps": 3})
    assert bench(server, workspace).figures["capacity_req_s"].reason == "bench.find_capacity is false"
    easy = bench(server, workspace, asked)
    assert [trial.meets for trial in easy.trials] == [True], "the top of the search met them"
    assert easy.figures["capacity_req_s"].value == easy.trials[0].rate_per_s
    fake.script = Script(first_token_s=0.02)
    hopeless = bench(server, workspace, asked, RequestLimits(ttft_ms=1))
    assert [trial.meets for trial in hopeless.trials] == [False] * 3
    rates = [trial.rate_per_s for trial in hopeless.trials]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=1e-3)
    assert "no rate met the limits" in hopeless.figures["capacity_req_s"].reason


@pytest.mark.parametrize(
    ("delay_ms_p95", "ceiling", "says"), [(3.0, 1e6, "saw chunks 3 ms late"), (0.1, 1.0, "over half of the 1 that the client can take")]
)
def test_bench_figures_of_a_client_over_its_budget_are_invalid(
    delay_ms_p95: float, ceiling: float, says: str, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(concurrencies: Sequence[int], *_: object) -> tuple[list[Calibration], float]:
        return [calibrated(number, delay_ms_p95 if number == 2 else 0.1) for number in concurrencies], ceiling

    monkeypatch.setattr(benching, "calibrate", slow)
    result = bench(server, workspace)
    touched = {name for name, figure in result.figures.items() if figure.reason.startswith("INVALID: ") and says in figure.reason}
    assert {"system_tok_s_c2", "goodput_c2", "poisson_e2e_ms_p95", "constant_goodput"} <= touched
    assert all(result.figures[name].value is None for name in touched)
    assert ("ttft_ms_p95" in touched) == ("system_tok_s_c1" in touched) == (ceiling == 1), "concurrency 1 has its own calibration"
    assert result.figures["answered"].value == 100


def test_the_real_client_is_within_its_budget_against_a_real_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, ceiling = calibrate([1, 3], 1)
    assert [(level.concurrency, level.chunks) for level in levels] == [(1, 4 * 32), (3, 8 * 32)]
    assert all(0 < level.delay_ms_p50 <= level.delay_ms_p95 for level in levels), "a chunk is seen after it was sent"
    assert ceiling > 0
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MeasureError, match="the stub did not start"):
        calibrate([1], 1)


def test_bench_requests_share_no_prefix_and_have_a_fixed_length(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    bench(server, workspace)
    sent = fake.ledger.requests
    assert sent[5:8] == sent[2:5], "the warm arm sends the cold one's requests again"
    assert len({request["cache_salt"] for request in sent}) == len(sent) - 3
    assert len({request["messages"][0]["content"] for request in sent}) == len(sent) - 3
    assert all(request["ignore_eos"] for request in sent)


def test_bench_keeps_failed_requests_in_the_denominator(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(by_number={"3": {"status": 500}, "10": {"cut_after": 3}, "15": {"error_after": 2}})
    result = bench(server, workspace)
    answered = result.figures["answered"]
    assert answered.value == pytest.approx(100 * 13 / 16)
    assert answered.n == 3 + 3 + 4 + 3 + 3
    assert (result.figures["ttft_ms_p50"].n, result.figures["decode_tok_s_p50"].n) == (2, 2)
    assert [(level.requests, level.failed, level.output_tokens) for level in result.levels] == [(3, 1, 16), (4, 1, 24)]
    assert not result.ledger[0].agrees, "the server also generated what the cut-off requests did not deliver"


@pytest.mark.parametrize("script", [Script(status=500), Script(cut_after=1), Script(only_usage=True), Script(error_after=0)])
def test_bench_without_one_success_is_a_failure(script: Script, fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = script
    with pytest.raises(NothingAnsweredError, match="no request succeeded"):
        bench(server, workspace)


def test_bench_record_survives_a_failed_first_request(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(by_number={"0": {"status": 500}})
    result = bench(server, workspace)
    store = Store(workspace.artifacts)
    store.write("bench", {}, now(), 0, result)
    assert store.outcome("bench", benching.BenchResult).data == result


@pytest.mark.parametrize(
    "script",
    [
        Script(texts=("one",), honours_ignore_eos=False),  # one token: there is no time per further token
        Script(tokens_per_chunk=8),  # all tokens at once: no time passes between first and last
    ],
)
def test_bench_of_an_answer_without_duration_is_no_crash_and_no_figure(
    script: Script, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    figure = bench(server, workspace).figures["decode_tok_s_p50"]
    assert figure.value is None
    assert "no request succeeded" not in figure.reason, "all of them did"


# Memory


def write_samples(workspace: Workspace, **fields: Any) -> None:
    """Write a baseline and samples from a minute ago to a minute ahead, so that whatever moment is loaded has some."""
    began = time.monotonic() - 60
    baseline = {"t": began, **({"gpu_used_mib": [100.0], "gpu_tree_mib": [None]} if "gpu_used_mib" in fields else {})}
    lines = [baseline]
    for number in range(1, 2401):
        sample: dict[str, Any] = {"t": began + number * 0.05, "processes": 2, "rss_mib": 300.0 + number % 2}
        lines.append({**sample, **({"pss_mib": 250.0} if number % 20 == 0 else {}), **fields})
    lines[1]["rss_mib"] = 900.0  # a peak while it loads, long before the load
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"t": 1'
    (workspace.root / "samples.jsonl").write_text(text, encoding="utf-8")


def test_memory_of_a_machine_without_gpu_is_the_hosts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    result = memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(), server, workspace)
    assert result.figures["vram_peak_mib"].value is None
    assert "no NVIDIA driver" in result.figures["vram_peak_mib"].reason
    assert result.figures["host_rss_peak_mib"].value == 900
    assert result.figures["host_rss_range_mib"].value == 1, "the peak was long before the load"
    assert result.figures["host_pss_steady_mib"].value == 250
    assert result.baseline_gpu_mib is None
    assert result.load.requests == len(fake.ledger.requests)
    assert (result.load.failed, result.load.preempted, result.preemptions) == (0, 0, 0)
    assert result.load.seconds >= 1.5
    assert result.simulated
    assert fake.ledger.max_in_flight == 2


def test_memory_of_a_device_without_process_figures_is_used_minus_baseline(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[None])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.baseline_gpu_mib == 100
    assert "baseline" in result.method
    assert result.figures["vram_peak_mib"].value == 4000
    assert result.figures["vram_steady_mib"].value == 4000
    assert result.figures["vram_range_mib"].value == 0


def test_memory_is_the_trees_own_where_the_driver_tells(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert "processes" in result.method
    assert result.figures["vram_peak_mib"].value == 3500


def test_of_several_devices_each_has_its_peak_and_the_largest_meets_the_plan(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0, 4300.0], gpu_tree_mib=[3500.0, 4000.0])
    sizes: dict[str, Any] = dict.fromkeys(("weights_mib", "activations_mib", "kv_cache_mib", "total_mib", "error_mib"), 1.0)
    counts = {"kv_bytes_per_token": 1, "kv_tokens": 1, "max_model_len": 1}
    made = Plan(**sizes, **counts, budget_mib=3900, graphs_mib=50, context_mib=500, weights_from="a test")
    result = memory.measure_vram(VRAM, machine(gpu=True), server.model_copy(update={"plan": made}), workspace)
    assert result.device_peaks_mib == {0: 3500, 1: 4000}
    assert result.figures["vram_peak_mib"].value == 7500
    assert result.figures["plan_error"].value == pytest.approx(100 * (4450 / 4000 - 1))


def loads_of(workspace: Workspace) -> Loads:
    return read_loads(workspace.root / "loads.jsonl")


def noted(workspace: Workspace, *spans: tuple[str, float, float], preemptions: int | None = 0) -> float:
    """Note load of so many seconds ago to so many; return now."""
    at = time.monotonic()
    for who, begin, end in spans:
        Notebook(workspace.root / "loads.jsonl", who).span(at - begin, at - end)
        if preemptions is not None:
            Notebook(workspace.root / "loads.jsonl", who).preemptions(at - end, preemptions)
    return at


def test_router_determinism_and_bench_note_when_requests_were_in_flight(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=(json.dumps(GOLD),), first_token_s=0.01, preemptions=3)
    began = time.monotonic()
    router.test_router(ROUTER, server, workspace)
    determinism.test_determinism(ARMS, server, workspace)
    bench(server, workspace)
    found = loads_of(workspace)
    assert list(found.spans) == ["test-router", "test-determinism", "bench"]
    assert len(found.spans["test-router"]) == 4, "two arms, each with a first request"
    assert len(found.spans["test-determinism"]) == 8 + 8 + 6 + 6, "D1, D2, D3's two loads and their two prompts each, D5"
    assert len(found.spans["bench"]) == 10, "its loops and their warm-ups, and nothing of the client's calibration"
    assert [count for _, count in found.preemptions] == [3, 3, 3]
    times = [at for spans in found.spans.values() for span in spans for at in span]
    assert began - 0.001 <= min(times), "rounded to milliseconds"
    assert max(times) <= time.monotonic() + 0.001


def test_requests_that_fail_are_no_load(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(status=503)
    with pytest.raises(NothingAnsweredError):
        router.test_router(ROUTER, server, workspace)
    assert loads_of(workspace) == Loads()


def test_where_the_other_tests_put_enough_load_on_none_is_added(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    at = noted(workspace, ("test-router", 40, 30), ("test-determinism", 25, 15), ("bench", 12, 2))
    fake.script = Script(preemptions=2)
    result = memory.measure_vram(VramConfig(load_s=15, concurrency=2), machine(), server, workspace)
    assert fake.ledger.requests == []
    assert result.load.spans == [pytest.approx((at - 20, at - 15), abs=0.01), pytest.approx((at - 12, at - 2), abs=0.01)]
    assert result.load.seconds_by == {"test-determinism": 5, "bench": 10}
    assert (result.load.requests, result.load.preempted, result.preemptions) == (0, 2, 2)
    assert result.figures["host_rss_stable"].n == 15
    assert result.figures["kv_cache_peak"].reason == "it is read while load is added, and none was"


def test_only_the_load_that_is_missing_is_added(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    noted(workspace, ("test-router", 40, 30), ("bench", 12, 2))
    result = memory.measure_vram(VramConfig(load_s=20.4, concurrency=2), machine(), server, workspace)
    assert len(result.load.spans) == 3
    assert result.load.seconds == pytest.approx(20.4)
    assert result.load.seconds_by["bench"] == 10
    assert result.load.seconds_by["test-router"] <= 10
    assert result.load.seconds_by["measure-vram"] >= 0.4
    assert result.load.requests == len(fake.ledger.requests) > 0
    again = memory.measure_vram(VramConfig(load_s=20.4, concurrency=2), machine(), server, workspace)
    assert again.load.seconds_by["measure-vram"] >= 0.4, "its own load does not count the next time"


def test_what_an_earlier_test_allocated_first_is_before_the_load_that_counts(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    path = workspace.root / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for sample in samples[1:800]:  # up to 20 s ago
        sample["rss_mib"] = 100.0
    path.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    noted(workspace, ("test-router", 50, 30), ("bench", 19, 2))
    one = memory.measure_vram(VramConfig(load_s=15, concurrency=2), machine(), server, workspace)
    assert one.figures["host_rss_range_mib"].value == 1
    more = memory.measure_vram(VramConfig(load_s=36, concurrency=2), machine(), server, workspace)
    assert more.figures["host_rss_range_mib"].value == 201, "also after its warm-up it was at another level"


def test_the_launch_before_a_restart_counts_and_the_restart_does_not(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    first = workspace.root / "first"
    first.mkdir()
    at = time.monotonic()
    levels = [{"t": at - 50 + number / 20, "processes": 2, "rss_mib": 700.0, "gpu_tree_mib": [3900.0]} for number in range(800)]
    (first / "samples.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in levels), encoding="utf-8")
    (first / "server.log").write_text(f"{ACTIVE}\n{WARNING.format('before')}\n{WARNING.format('_first')}\n", encoding="utf-8")
    notes = Notebook(first / "loads.jsonl", "test-determinism")
    notes.span(at - 48, at - 14)
    notes.preemptions(at - 14, 1)
    noted(workspace, ("bench", 8, 2), preemptions=4)
    (workspace.root / "server.log").write_text(f"{ACTIVE}\n{WARNING.format('_second')}\n{WARNING.format('_first')}\n", encoding="utf-8")
    log_start = len(f"{ACTIVE}\n{WARNING.format('before')}\n")
    earlier = state.Left(launch_id="first", log="first/server.log", log_start=log_start, samples="first/samples.jsonl")
    restarted = server.model_copy(update={"handle": server.handle.model_copy(update={"earlier": [earlier]})})
    fake.script = Script(preemptions=4)
    settings = VramConfig(load_s=40, concurrency=2)
    result = memory.measure_vram(settings, machine(gpu=True), restarted, workspace)
    assert fake.ledger.requests == []
    assert result.load.seconds_by == {"test-determinism": 34, "bench": 6}
    assert (result.figures["vram_peak_mib"].value, result.figures["vram_range_mib"].value) == (3900, 0)
    assert result.figures["host_rss_range_mib"].value == 1
    assert result.device_peaks_mib == {0: 3900}
    assert (result.load.preempted, result.preemptions) == (5, 4)
    assert result.samples == 801 + 2400
    assert result.compiled_kernels == ["_first", "_second"]
    shutil.rmtree(first)
    left = memory.measure_vram(VramConfig(load_s=6, concurrency=2), machine(gpu=True), restarted, workspace)
    assert left.load.seconds_by == {"bench": 6}
    assert left.compiled_kernels == ["_second", "_first"]


ACTIVE = "INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations follow."
WARNING = (
    "WARNING 11-27 15:21:00 [jit_monitor.py:141] Triton kernel JIT compilation during inference: {}. This causes a latency spike; extend."
)


def judged_memory(result: Measurement, profile: str = "cpu") -> dict[str, str]:
    """Return the verdicts of the shipped gates on memory, as on a real server."""
    real = result.model_copy(update={"simulated": False})
    judged = judge_all(
        load_layers(ROOT / "config.yaml", {}).config(profile).gates.root, outcomes_of({"measure-vram": Outcome("measure-vram", real, None)})
    )
    return {row.id: row.judgement.verdict for row in judged if row.gate.metric.startswith("measure-vram.")}


def test_memory_gates_of_a_short_load_on_the_processor(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    assert judged_memory(memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(), server, workspace)) == {
        "vram_usage": "NOT_MEASURED",
        "vram_stable": "NOT_MEASURED",
        "host_memory": "PASS",
        "host_memory_steady": "PASS",
        "host_memory_stable": "INCONCLUSIVE",
    }


def test_memory_gates_fail_on_a_preemption_and_on_a_host_that_grows(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    path = workspace.root / "samples.jsonl"
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:-1]]
    for number, sample in enumerate(samples):
        sample["rss_mib"] = 10.0 * number
    path.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples), encoding="utf-8")
    result = memory.measure_vram(VramConfig(load_s=1.5, concurrency=2), machine(gpu=True), server, workspace)
    verdicts = judged_memory(result, "rtx4050-6gb")
    assert (verdicts["host_memory_steady"], verdicts["host_memory_stable"]) == ("FAIL", "FAIL")
    assert (verdicts["vram_usage"], verdicts["vram_stable"]) == ("PASS", "INCONCLUSIVE")


def test_memory_reads_kv_cache_and_preemptions_while_it_loads(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "metered", lambda target: meter.metered(target, 0.05))
    write_samples(workspace)
    fake.script = Script(kv_usage=0.375, preemptions=7, inter_token_s=0.01)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    kv = result.figures["kv_cache_peak"]
    assert (kv.value, kv.unit) == (37.5, "%")
    assert kv.n > 1
    assert (result.preemptions, result.load.preempted) == (7, 0)
    assert result.figures["host_rss_stable"].value is not None


def test_preemptions_under_load_are_those_since_its_begin(fake: FakeVllm) -> None:
    fake.script = Script(preemptions=7)
    with meter.metered(Target(fake.base_url)) as readings:
        fake.script = Script(preemptions=9)
    assert (readings.preemptions, readings.preempted) == (9, 2)


def test_memory_of_a_server_without_metrics_says_so_and_is_not_stable(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    fake.script = Script(metrics_status=500)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert (result.preemptions, result.load.preempted, result.load.kv_readings) == (None, None, 0)
    assert result.figures["kv_cache_peak"].reason == "the server's metrics do not tell"
    assert result.figures["host_rss_stable"].reason == "the server does not count preemptions"


def test_memory_tells_the_gpus_state_and_why_it_has_no_more_of_it(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    hot = {"util_percent": 97, "temperature_c": 88, "power_w": 60.5, "sm_clock_mhz": 1200, "throttle": ["hw_thermal_slowdown"]}
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0], devices=[hot])
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.figures["gpu_temperature_c"].value == 88
    assert result.figures["gpu_throttled"].value == 100
    assert result.throttled == {"hw_thermal_slowdown": result.figures["gpu_throttled"].n}
    write_samples(workspace, gpu_error="GpuIsLost")
    result = memory.measure_vram(VRAM, machine(gpu=True), server, workspace)
    assert result.gpu_errors == {"GpuIsLost": 2400}
    assert result.figures["vram_peak_mib"].reason == "the driver failed: GpuIsLost in 2400 samples"


def test_a_spoilt_line_of_the_samples_is_left_out(workspace: Workspace) -> None:
    (workspace.root / "samples.jsonl").write_text('{"t": 1.0}\n\0\0\0\n[]\n{"t": "x"}\n{"t": 2.0}\n{"t": 3', encoding="utf-8")
    assert [sample["t"] for sample in memory.read_samples(workspace.root / "samples.jsonl")] == [1.0, 2.0]


def test_gaps_of_the_samples_are_on_record(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    write_samples(workspace)
    path = workspace.root / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:100], *lines[200:]]), encoding="utf-8")
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert result.gaps.count == 1
    assert result.gaps.longest_s == pytest.approx(5.05)


def test_a_load_in_slices_counts_on_and_repeats_no_prompt(
    fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SLICE_S", 0.1)
    write_samples(workspace)
    result = memory.measure_vram(VRAM, machine(), server, workspace)
    assert len(result.load.spans) == 1
    assert result.load.requests == len(fake.ledger.requests)
    prompts = [request["messages"][-1]["content"] for request in fake.ledger.requests]
    assert len(set(prompts)) == len(prompts)


def test_memory_without_answers_samples_or_a_loaded_sample_is_not_measured(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    with pytest.raises(MeasureError, match="no samples"):
        memory.measure_vram(VRAM, machine(), server, workspace)
    (workspace.root / "samples.jsonl").write_text('{"t": 1.0}\n', encoding="utf-8")
    with pytest.raises(MeasureError, match="nothing during the load"):
        memory.measure_vram(VRAM, machine(), server, workspace)
    fake.script = Script(status=503)
    with pytest.raises(MeasureError, match="no request of the load succeeded: HTTP 503"):
        memory.measure_vram(VRAM, machine(), server, workspace)


# All of them


def measure_all(server: Server, workspace: Workspace) -> dict[str, Measurement]:
    write_samples(workspace, gpu_used_mib=[4100.0], gpu_tree_mib=[3500.0])
    return {
        "test-router": router.test_router(ROUTER, server, workspace),
        "test-determinism": determinism.test_determinism(DETERMINISM, server, workspace),
        "bench": bench(server, workspace),
        "measure-vram": memory.measure_vram(VramConfig(load_s=0.8, concurrency=2), machine(gpu=True), server, workspace),
    }


def gates() -> dict[str, Gate]:
    return load_layers(ROOT / "config.yaml", {}).config("rtx4050-6gb").gates.root


def test_no_gate_passes_on_a_simulated_server(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=(json.dumps(GOLD),), inter_token_s=0.001)
    measured = measure_all(server, workspace)
    assert all(result.simulated for result in measured.values())
    outcomes = {stage: Outcome(stage, result, None) for stage, result in measured.items()}
    judged = judge_all(gates(), outcomes_of(outcomes))
    assert {gate.judgement.verdict for gate in judged} == {"SIMULATED"}
    assert exit_code((gate.judgement, gate.gate.required) for gate in judged) == 2


def test_the_same_figures_would_pass_on_a_real_one(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    """Or else the test above could not fail."""
    fake.script = Script(texts=(json.dumps(GOLD),), inter_token_s=0.001)
    real = server.model_copy(update={"real": True})
    result = determinism.test_determinism(DETERMINISM, real, workspace)
    judged = {
        gate.id: gate.judgement.verdict
        for gate in judge_all(gates(), outcomes_of({"test-determinism": Outcome("test-determinism", result, None)}))
    }
    assert judged["deterministic_output"] == "PASS"
    assert judged["throughput"] == "NOT_MEASURED"


STAGES: dict[str, Callable[[Server, Workspace], Measurement]] = {
    "test-router": lambda server, workspace: router.test_router(ROUTER, server, workspace),
    "test-determinism": lambda server, workspace: determinism.test_determinism(DETERMINISM, server, workspace),
    "bench": lambda server, workspace: bench(server, workspace),
    "measure-vram": lambda server, workspace: memory.measure_vram(VRAM, machine(), server, workspace),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("script", [Script(), Script(status=500)], ids=["answers", "errors"])
def test_a_server_that_died_meanwhile_is_the_failure_with_its_own_cause(
    stage: str, script: Script, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    write_samples(workspace)
    (workspace.root / "server.log").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", encoding="utf-8")
    died = psutil.Popen(["true"])
    created = state.created_s(died.pid)
    died.wait()
    dead = server.model_copy(update={"handle": server.handle.model_copy(update={"pid": died.pid, "created": created})})
    with pytest.raises(ServerError, match="died while it was measured: the GPU ran out of memory") as caught:
        STAGES[stage](dead, workspace)
    assert isinstance(caught.value, PipelineError)
    assert caught.value.log == workspace.root / "server.log"


def test_the_shipped_suites_run(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    shutil.copytree(ROOT / "suites", workspace.root / "suites")
    fake.script = Script(texts=('{"route": "unknown"}',))
    for name in ("router-en", "router-tr"):
        result = router.test_router(RouterConfig(suite=f"suites/{name}", cases=3, max_tokens=32), server, workspace)
        assert result.suite == name
        assert result.failures["constrained"] == {"missing key": 3}


def test_the_fakes_tokens_are_what_the_tests_above_take_them_for() -> None:
    assert split("aaaabbbbc") == ["aaaa", "bbbb", "c"]
