"""test-router against the fake server."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.workspace import Workspace
from pipeline.errors import NothingAnsweredError
from pipeline.stages import test_router as router
from pipeline.stages.serve import Server
from tests.builders.stages import CASES, GOLD, ROUTER, SCHEMA
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


def answers_to_cases(**changes: dict[str, Any]) -> Script:
    return Script(by_prompt={name: {"texts": [text]} for name, (_, text) in CASES.items()} | changes)


def rewrite_cases(workspace: Workspace, change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """Write the suite's cases anew, each as `change` of its text and itself."""
    path = workspace.root / "suite" / "cases.jsonl"
    cases = [change(case["text"], case) for case in lines_of(path)]
    path.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shares(figures: dict[str, Any], arm: str) -> dict[str, float]:
    """Return the arm's percentages as counts of the cases."""
    n = len(CASES)
    names = [name for name, figure in figures.items() if name.startswith(arm) and figure.unit == "%" and not name.endswith("f1")]
    assert all(figures[name].n == n for name in names), "every share is over all cases"
    return {name.removeprefix(f"{arm}_"): round(figures[name].value * n / 100, 6) for name in names}


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
        "tool_plan_accuracy": 6,
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
    constrained, plain = fake.ledger.requests[:per_arm], fake.ledger.requests[per_arm:]
    assert len(plain) == per_arm
    assert all("response_format" not in request for request in plain)
    assert all(request["response_format"]["json_schema"]["schema"] == SCHEMA for request in constrained)
    assert [request["messages"][-1]["content"] for request in plain[1:]] == list(CASES)
    assert all(request["stream"] for request in fake.ledger.requests)
    assert {request["messages"][0]["content"] for request in plain} == {"Answer with JSON."}


def test_router_asks_some_cases_once_more_in_one_piece(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    changed = {"texts": [json.dumps({**GOLD, "route": "unknown"})]}
    # In each arm, constrained first: one request that is not counted, 8 streamed, one more uncounted, 3 in one piece.
    fake.script = dataclasses.replace(answers_to_cases(), by_number={"24": changed})
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
    # Requests 10-17 are prompt-only: "right" and "wrong slot" lose their route there.
    fake.script = dataclasses.replace(answers_to_cases(), by_number={"10": wrong, "11": wrong})
    result = router.test_router(ROUTER, server, workspace)
    pairs = result.routes_paired
    assert pairs is not None
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


def test_router_takes_any_of_the_alternatives_for_right(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    others = {
        "wrong slot": [{"slots": {"title": "surgeon"}}, {"slots": {"title": " DOCTOR "}}],
        "wrong route": [{"route": "smalltalk"}],
        "unknown value": [{"route": "unknown"}],
    }
    rewrite_cases(workspace, lambda name, case: case | {"alternatives": others.get(name, [])})
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER, server, workspace)
    found = shares(result.figures, "constrained")
    assert (found["route_accuracy"], found["joint_accuracy"]) == (4, 4)
    assert result.confusion["constrained"] == {"calendar": {"(no valid JSON)": 2, "calendar": 4, "calendar|smalltalk": 1, "weather": 1}}
    assert result.figures["constrained_route_macro_f1"].value == pytest.approx(100 * 2 * 4 / (8 + 4))
    assert not any("smalltalk, golden" in str(example.failure) for example in result.examples)


def test_a_constant_answer_may_live_on_alternatives(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    rewrite_cases(workspace, lambda name, case: case | {"route": "unknown", "alternatives": [{"route": "smalltalk"}] * (name != "right")})
    rewrite_cases(workspace, lambda name, case: case | ({"route": "smalltalk", "alternatives": []} if name == "fenced" else {}))
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER.model_copy(update={"cases": 4}), server, workspace)
    assert (result.majority_route, result.figures["majority_baseline"].value) == ("smalltalk", 75)


def test_router_counts_tool_plans_over_the_cases_that_have_one(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    plans = {"right": ["calendar.list"], "wrong slot": ["calendar.create"], "not json": ["calendar.create"]}
    rewrite_cases(workspace, lambda name, case: case | {"tool_plan": plans.get(name)})
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER, server, workspace)
    figure = result.figures["constrained_tool_plan_accuracy"]
    assert figure.n == 3
    assert figure.value == pytest.approx(100 / 3)
    assert result.figures["constrained_joint_accuracy"].value == 100 * 1 / 8, "only what comes fenced is right as a whole"
    lines = {line["case"]: line["tool_plan_right"] for line in lines_of(workspace.root / result.raw) if line["arm"] == "constrained"}
    assert lines == {"c0": False, "c1": True, "c2": None, "c3": None, "c4": False, "c5": None, "c6": None, "c7": None}


def test_a_suite_without_tool_plans_has_no_figure_of_them(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    rewrite_cases(workspace, lambda _name, case: case | {"tool_plan": None})
    fake.script = answers_to_cases()
    result = router.test_router(ROUTER, server, workspace)
    figure = result.figures["constrained_tool_plan_accuracy"]
    assert (figure.value, figure.reason) == (None, "the suite's cases have no tool plan")
    assert result.figures["constrained_joint_accuracy"].value == 100 * 2 / 8


def test_system_prompt_goes_in_front_of_the_users_text(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    result = router.test_router(ROUTER.model_copy(update={"system": "user", "cases": 1}), server, workspace)
    assert [request["messages"] for request in fake.ledger.requests] == [[{"role": "user", "content": "Answer with JSON.\n\nright"}]] * 4
    assert result.system == "user"


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
    with pytest.raises(NothingAnsweredError, match=r"constrained: no request succeeded: HTTP 500"):
        router.test_router(ROUTER, server, workspace)
