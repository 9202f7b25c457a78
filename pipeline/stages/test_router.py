"""test-router: Test whether the answers to the router's prompts are JSON, fit the schema and are right, and how fast they come."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed, unary
from pipeline.config.schema import RouterConfig
from pipeline.engine.record import Measurement, write_atomic
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, NothingAnsweredError
from pipeline.load.generator import closed_loop
from pipeline.measure.answers import FAILED, Checked, check
from pipeline.measure.classification import Confusion, confusion, macro_f1, majority_share, mcnemar_p
from pipeline.measure.figures import Figure, invalidated
from pipeline.measure.latency import e2e_ms, ttft_ms
from pipeline.measure.statistics import bootstrap_figure, percentile_figure, share_figure
from pipeline.message import Sentence, _
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, insist_on_answers, log_of
from pipeline.suite import Case, Suite, load_suite
from pipeline.values import Frozen

SHOWN_FAILURES = 3  # of each class
SHOWN_CHARACTERS = 300
NO_ANSWER = _("(no valid JSON)")
FREE, BOUND = "prompt_only", "constrained"


class Example(Frozen):
    """A failed answer, verbatim up to a length."""

    case: str
    arm: str
    failure: Sentence
    text: str


class Paired(Frozen):
    """Right answers to the same cases, prompt-only against constrained, with McNemar's exact p of the difference."""

    both: int
    only_prompt_only: int
    only_constrained: int
    neither: int
    p: float


class RouterResult(Measurement):
    """Figures per arm (prompt_only, constrained, each also _unary), failure classes, confusion, examples, the raw answers' file."""

    suite: str
    language: str
    cases: int
    unary_cases: int
    majority_route: str
    failures: dict[str, dict[str, int]]
    confusion: dict[str, Confusion]
    routes_paired: Paired | None  # None where an older version did not compare them
    examples: list[Example]
    raw: str


@dataclass(frozen=True)
class CaseResult:
    """One case, its answer, and what that is; `failure` is its class, None for an answer that fits the schema."""

    case: Case
    answer: Answer
    checked: Checked

    @property
    def failure(self) -> str | None:
        return self.checked.failure if self.answer.ok else FAILED

    @property
    def value(self) -> dict[str, Any]:
        return (self.checked.value if self.answer.ok else None) or {}

    @property
    def route(self) -> str:
        route = self.value.get("route")
        return route if isinstance(route, str) else NO_ANSWER

    @property
    def route_right(self) -> bool:
        return self.route == self.case.route

    @property
    def all_right(self) -> bool:
        golden = (self.case.route, self.case.calendar_intent, self.case.slots)
        return (self.value.get("route"), self.value.get("calendar_intent"), self.value.get("slots")) == golden


def test_router(settings: RouterConfig, server: Server, workspace: Workspace) -> RouterResult:
    """Send the router suite, prompt-only and constrained, streamed and in one piece, and check every answer."""
    insist_on_answers(server)
    with watched(server.handle, workspace, "test-router") as target:
        return send_suite(settings, server, target, workspace)


def send_suite(settings: RouterConfig, server: Server, target: Endpoint, workspace: Workspace, raw: Path | None = None) -> RouterResult:
    """Return the record of a run, whose answers go to `raw`; the server is watched by the caller."""
    suite = load_suite(workspace.root / settings.suite)
    cases = suite.cases[: settings.cases]
    some = cases[: settings.unary_cases]
    sender = Sender(settings, suite, server, target, workspace)
    arms: dict[str, list[CaseResult]] = {}
    for name, extra in forms(suite).items():
        arms[name] = sender.send(name, cases, streamed, extra)
        if some:
            arms[f"{name}_unary"] = sender.send(f"{name}_unary", some, unary, extra)
    figures = {f"{arm}_{name}": figure for arm, rows in arms.items() for name, figure in router_figures(rows).items()}
    figures |= {f"{arm}_ttft_ms_p50": first_token_figure(arms[arm]) for arm in (FREE, BOUND)}
    routes = [case.route for case in cases]
    majority_route, count = majority_share(routes)
    raw = raw or workspace.artifacts / "raw" / "test-router.jsonl"
    write_atomic(raw, "".join(json.dumps(case_line(arm, row), ensure_ascii=False) + "\n" for arm, rows in arms.items() for row in rows))
    return RouterResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={
            **figures,
            "majority_baseline": share_figure(count, len(routes)),
            **constraint_cost(arms[FREE], arms[BOUND]),
            **{f"{arm}_unary_same_text": same_text(arms[arm], arms[f"{arm}_unary"]) for arm in (FREE, BOUND) if some},
        },
        suite=suite.name,
        language=suite.language,
        cases=len(cases),
        unary_cases=len(some),
        majority_route=majority_route,
        failures={arm: dict(Counter(row.failure for row in rows if row.failure)) for arm, rows in arms.items()},
        confusion={arm: confusion([row.case.route for row in arms[arm]], [row.route for row in arms[arm]]) for arm in (FREE, BOUND)},
        routes_paired=paired(arms[FREE], arms[BOUND]),
        examples=[example for arm, rows in arms.items() for example in examples(arm, rows)],
        raw=workspace.relative(raw),
    )


def forms(suite: Suite) -> dict[str, dict[str, Any]]:
    """Return the extra request fields of each way to ask."""
    form = {"type": "json_schema", "json_schema": {"name": "router", "schema": suite.schema, "strict": True}}
    return {FREE: {}, BOUND: {"response_format": form}}


@dataclass(frozen=True)
class Sender:
    """Sends the cases of a suite to a server, one request at a time."""

    settings: RouterConfig
    suite: Suite
    server: Server
    target: Endpoint
    workspace: Workspace

    def send(self, arm: str, cases: Sequence[Case], payload: Callable[..., dict[str, Any]], extra: Mapping[str, Any]) -> list[CaseResult]:
        """Return the cases with their answers; NothingAnsweredError when none is answered."""
        what, suite, timeout_s = f"router, {arm.replace('_', '-')}", self.suite, self.settings.timeout_s
        self.workspace.say(f"{what}: {len(cases)} cases of {suite.name}")
        payloads = [payload(self.server.model, suite.messages(case), self.settings.max_tokens, **extra) for case in cases]
        # The first request pays for the prompt's stable part and for compiling the grammar; it is sent once, uncounted.
        closed_loop(self.target, payloads[:1], 1, timeout_s)
        answers, _ = closed_loop(self.target, payloads, 1, timeout_s, on_progress=self.workspace.progress(what, len(cases)))
        if len(answers) < len(cases):  # whoever watches the server says what became of it
            missed = f"{what}: {len(answers)} of {len(cases)} requests were sent before the server was gone"
            raise MeasureError(missed, "see the server's log")
        if not any(answer.ok for answer in answers):
            log = log_of(self.server, self.workspace)
            raise NothingAnsweredError(f"{what}: no request succeeded: {answers[0].error}", "see the server's log", log)
        checked = [check(answer.text, answer.finish_reason, suite.validator) for answer in answers]
        return [CaseResult(*row) for row in zip(cases, answers, checked, strict=True)]


def router_figures(rows: Sequence[CaseResult]) -> dict[str, Figure]:
    """Return validity, accuracy and latency of one arm; a failed request counts against every share."""
    n = len(rows)
    good = [row for row in rows if row.answer.ok]
    e2e = [e2e_ms(row.answer.sent_ns, row.answer.last_ns) for row in good]
    return {
        "answered": share_figure(len(good), n),
        "json_strict": share_figure(sum(row.checked.strict for row in good), n),
        "json_lenient": share_figure(sum(row.checked.lenient for row in good), n),
        "repair_rate": share_figure(sum(row.checked.lenient and not row.checked.strict for row in good), n),
        "schema_valid": share_figure(sum(row.checked.valid for row in good), n),
        "truncated": share_figure(sum(row.answer.finish_reason == "length" for row in good), n),
        "route_accuracy": share_figure(sum(row.route_right for row in rows), n),
        "route_macro_f1": bootstrap_figure([(row.case.route, row.route) for row in rows], f1_percent, "%"),
        "joint_accuracy": share_figure(sum(row.all_right for row in rows), n),
        "latency_ms_p50": percentile_figure(e2e, 0.5, "ms", failed=n - len(good)),
        "latency_ms_p95": percentile_figure(e2e, 0.95, "ms", failed=n - len(good)),
    }


def first_token_figure(rows: Sequence[CaseResult]) -> Figure:
    """Return the median TTFT of streamed answers."""
    good = [row.answer for row in rows if row.answer.ok]
    return percentile_figure([ttft_ms(answer.sent_ns, answer.first_ns) for answer in good], 0.5, "ms", failed=len(rows) - len(good))


def f1_percent(pairs: Sequence[tuple[str, str]]) -> float:
    """Return macro-F1 of pairs of (golden, answered) in percent."""
    return 100 * macro_f1([golden for golden, _ in pairs], [answered for _, answered in pairs])


def constraint_cost(free: Sequence[CaseResult], bound: Sequence[CaseResult]) -> dict[str, Figure]:
    """Return what the schema costs, case by case: median of constrained − prompt-only, over the cases that both answered."""
    both = [(first.answer, second.answer) for first, second in zip(free, bound, strict=True) if first.answer.ok and second.answer.ok]
    first_token = [ttft_ms(b.sent_ns, b.first_ns) - ttft_ms(a.sent_ns, a.first_ns) for a, b in both]
    whole = [e2e_ms(b.sent_ns, b.last_ns) - e2e_ms(a.sent_ns, a.last_ns) for a, b in both]
    # Answers differ in length, so the time per token tells what the grammar itself costs.
    per_token = [ms_per_token(b) - ms_per_token(a) for a, b in both if a.tokens and b.tokens]
    none, failed = _("no case was answered in both arms"), len(free) - len(both)
    wrong = sum(answer.contradicts_itself for pair in both for answer in pair)
    contradiction = _("the usage of {n} answers is not what came", n=wrong) if wrong else ""
    gained = [second.route_right - first.route_right for first, second in zip(free, bound, strict=True)]
    return {
        "constraint_ttft_ms_p50": percentile_figure(first_token, 0.5, "ms", none, failed),
        "constraint_latency_ms_p50": percentile_figure(whole, 0.5, "ms", none, failed),
        **invalidated(
            {"constraint_ms_per_token_p50": percentile_figure(per_token, 0.5, "ms", none, len(free) - len(per_token))}, contradiction
        ),
        "constraint_route_accuracy_points": bootstrap_figure(gained, lambda values: 100 * sum(values) / len(values), _("points")),
    }


def ms_per_token(answer: Answer) -> float:
    """Return E2E latency / output tokens."""
    return e2e_ms(answer.sent_ns, answer.last_ns) / answer.tokens


def paired(free: Sequence[CaseResult], bound: Sequence[CaseResult]) -> Paired:
    """Return the routes that both, one or none of the arms got right."""
    counts = Counter((first.route_right, second.route_right) for first, second in zip(free, bound, strict=True))
    only_free, only_bound = counts[True, False], counts[False, True]
    return Paired(
        both=counts[True, True],
        only_prompt_only=only_free,
        only_constrained=only_bound,
        neither=counts[False, False],
        p=mcnemar_p(only_free, only_bound),
    )


def same_text(whole: Sequence[CaseResult], in_one_piece: Sequence[CaseResult]) -> Figure:
    """Return the share of unary answers that equal the streamed one of the same case."""
    pairs = list(zip(whole, in_one_piece, strict=False))
    return share_figure(sum(a.answer.ok and b.answer.ok and a.answer.text == b.answer.text for a, b in pairs), len(pairs))


def examples(arm: str, rows: Sequence[CaseResult]) -> list[Example]:
    """Return the first failed answers of each class, and of those that fit the schema but name another route."""
    shown: Counter[str] = Counter()
    result = []
    for row in rows:
        failure = row.failure or ("" if row.route_right else _("route {name}, golden {reason}", name=row.route, reason=row.case.route))
        kind = row.failure or "wrong route"
        if failure and shown[kind] < SHOWN_FAILURES:
            shown[kind] += 1
            text = (row.answer.text or row.answer.error)[:SHOWN_CHARACTERS]
            result.append(Example(case=row.case.id, arm=arm, failure=failure, text=text))
    return result


def case_line(arm: str, row: CaseResult) -> dict[str, Any]:
    """Return one answer with its stamps, relative to its send, for computing any figure again."""
    answer = row.answer
    return {
        "arm": arm,
        "case": row.case.id,
        "failure": row.failure,
        "route_right": row.route_right,
        "all_right": row.all_right,
        "error": answer.error,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
        "tokens": answer.tokens,
        "chunk_ns": [at - answer.sent_ns for at in answer.chunk_ns if at >= answer.first_ns],
        "answer_ns": answer.answer_ns - answer.sent_ns if answer.answer_ns else None,
        "reasoning": answer.reasoning,
        "text": answer.text,
    }
