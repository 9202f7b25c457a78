"""test-router: does the model answer the router's prompts with JSON that fits and is right, and how fast?"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.client.answer import Answer
from pipeline.client.load import Target, closed_loop, streamed
from pipeline.config import RouterConfig
from pipeline.errors import MeasureError
from pipeline.measure.answers import Checked, check
from pipeline.measure.figures import Figure
from pipeline.measure.latency import e2e_ms, ttft_ms
from pipeline.measure.statistics import percentile_figure, share_figure
from pipeline.record import Measurement, write_atomic
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, insist_on_answers, log_of
from pipeline.suite import Case, Suite, load_suite
from pipeline.workspace import Workspace

SHOWN_FAILURES = 5
SHOWN_CHARACTERS = 300


class Example(BaseModel):
    """A failed answer, verbatim up to a length."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    case: str
    arm: str
    failure: str
    text: str


class RouterResult(Measurement):
    """Figures per arm (prompt_only, constrained), failure classes, examples, and the raw answers' file."""

    suite: str
    language: str
    cases: int
    failures: dict[str, dict[str, int]]
    examples: list[Example]
    raw: str


def test_router(settings: RouterConfig, server: Server, workspace: Workspace) -> RouterResult:
    """Send the router suite, prompt-only and constrained, and check every answer."""
    insist_on_answers(server)
    with watched(server.handle, workspace) as target:
        return send_suite(settings, server, target, workspace)


def send_suite(settings: RouterConfig, server: Server, target: Target, workspace: Workspace) -> RouterResult:
    """Return the record of a run; the server is watched by the caller."""
    suite = load_suite(workspace.root / settings.suite)
    cases = suite.cases[: settings.cases]
    figures: dict[str, Figure] = {}
    failures: dict[str, dict[str, int]] = {}
    examples: list[Example] = []
    lines: list[str] = []
    for arm, extra in arms(suite).items():
        workspace.say(f"router, {arm.replace('_', '-')}: {len(cases)} cases of {suite.name}")
        payloads = [streamed(server.model, suite.messages(case), settings.max_tokens, **extra) for case in cases]
        # The first request pays for the prompt's stable part and for compiling the grammar; it is sent once, uncounted.
        closed_loop(target, payloads[:1], 1, settings.timeout_s)
        answers, _ = closed_loop(target, payloads, 1, settings.timeout_s)
        if not any(answer.ok for answer in answers):
            raise MeasureError(
                f"router, {arm}: no request succeeded: {answers[0].error}", "see the server's log", log_of(server, workspace)
            )
        checked = [check(answer.text, answer.finish_reason, suite.validator) for answer in answers]
        figures |= {f"{arm}_{name}": figure for name, figure in arm_figures(cases, answers, checked).items()}
        classes = ["failed request" if not answer.ok else result.failure for answer, result in zip(answers, checked, strict=True)]
        failures[arm] = dict(Counter(name for name in classes if name))
        rows = list(zip(cases, answers, classes, strict=True))
        examples += [
            Example(case=case.id, arm=arm, failure=name, text=(answer.text or answer.error)[:SHOWN_CHARACTERS])
            for case, answer, name in rows
            if name
        ][:SHOWN_FAILURES]
        lines += [json.dumps(raw_line(arm, case, answer, name), ensure_ascii=False) for case, answer, name in rows]
    raw = workspace.artifacts / "raw" / "test-router.jsonl"
    write_atomic(raw, "\n".join(lines) + "\n")
    return RouterResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures=figures,
        suite=suite.name,
        language=suite.language,
        cases=len(cases),
        failures=failures,
        examples=examples,
        raw=workspace.relative(raw),
    )


def arms(suite: Suite) -> dict[str, dict[str, Any]]:
    """Return the extra request fields of each arm."""
    form = {"type": "json_schema", "json_schema": {"name": "router", "schema": suite.schema, "strict": True}}
    return {"prompt_only": {}, "constrained": {"response_format": form}}


def arm_figures(cases: Sequence[Case], answers: Sequence[Answer], checked: Sequence[Checked]) -> dict[str, Figure]:
    """Return validity, accuracy and latency of one arm; a failed request counts against every share."""
    n = len(cases)
    rows = [(case, result) for case, answer, result in zip(cases, answers, checked, strict=True) if answer.ok]
    good = [answer for answer in answers if answer.ok]
    e2e = [e2e_ms(answer.sent_ns, answer.last_ns) for answer in good]
    return {
        "answered": share_figure(len(good), n),
        "json_strict": share_figure(sum(result.strict for _, result in rows), n),
        "json_lenient": share_figure(sum(result.lenient for _, result in rows), n),
        "schema_valid": share_figure(sum(result.valid for _, result in rows), n),
        "truncated": share_figure(sum(answer.finish_reason == "length" for answer in good), n),
        "route_accuracy": share_figure(
            sum(result.value is not None and result.value.get("route") == case.route for case, result in rows), n
        ),
        "joint_accuracy": share_figure(sum(is_right(case, result) for case, result in rows), n),
        "ttft_ms_p50": percentile_figure([ttft_ms(answer.sent_ns, answer.first_ns) for answer in good], 0.5, "ms"),
        "latency_ms_p50": percentile_figure(e2e, 0.5, "ms"),
        "latency_ms_p95": percentile_figure(e2e, 0.95, "ms"),
    }


def is_right(case: Case, result: Checked) -> bool:
    """Tell whether route, intent and slots all are the golden ones."""
    value = result.value or {}
    return (value.get("route"), value.get("calendar_intent"), value.get("slots")) == (case.route, case.calendar_intent, case.slots)


def raw_line(arm: str, case: Case, answer: Answer, failure: str | None) -> dict[str, Any]:
    """Return one answer with its stamps, relative to its send, for recomputing any figure."""
    return {
        "arm": arm,
        "case": case.id,
        "failure": failure,
        "error": answer.error,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "tokens": answer.tokens,
        "chunk_ns": [at - answer.sent_ns for at in answer.chunk_ns],
        "text": answer.text,
    }
