"""test-router: Check that the answers to the router's prompts are JSON, fit the schema and are right; measure how fast they come."""

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
from pipeline.measure.answers import FAILED, Checked, check, is_right
from pipeline.measure.classification import Confusion, confusion, macro_f1, majority_share, mcnemar_p
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.latency import e2e_ms, ttft_ms
from pipeline.measure.statistics import bootstrap_figure, percentile_figure, share_figure
from pipeline.message import Sentence, _
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, insist_on_answers, log_of
from pipeline.suite import BOUND, FREE, Case, Suite, System, suite_for
from pipeline.values import Frozen

SHOWN_FAILURES = 3  # of each failure class
SHOWN_CHARACTERS = 300
NO_ANSWER = _("(no valid JSON)")
NO_PLAN = _("the suite's cases have no tool plan")


class Example(Frozen):
    """A failed answer, verbatim up to SHOWN_CHARACTERS."""

    case: str
    arm: str
    failure: Sentence
    text: str


class Paired(Frozen):
    """Right routes on the same cases, prompt-only against constrained, with the exact p of McNemar's test."""

    both: int
    only_prompt_only: int
    only_constrained: int
    neither: int
    p: float


class RouterResult(Measurement):
    """Figures per arm (prompt_only, constrained, each also _unary), failure classes, confusion, examples, the raw answers' file."""

    suite: str
    language: str
    system: System = "role"
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
    """A case, its answer and the checks of the answer; `failure` is its class, None for an answer that fits the schema."""

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
        return self.route in self.case.routes

    @property
    def route_told(self) -> str:
        """The route for confusion and F1, where any right one counts as the golden one."""
        return self.case.route if self.route_right else self.route

    @property
    def plan_right(self) -> bool | None:
        """Whether the tool plan is right; None where the case has none."""
        if self.case.tool_plan is None:
            return None
        return self.value.get("tool_plan") in [answer["tool_plan"] for answer in self.case.answers]

    @property
    def all_right(self) -> bool:
        return any(is_right(self.value, answer) for answer in self.case.answers)


def test_router(settings: RouterConfig, server: Server, workspace: Workspace) -> RouterResult:
    """Send the router suite, prompt-only and constrained, streamed and in one piece, and check every answer."""
    insist_on_answers(server)
    with watched(server.handle, workspace, "test-router") as target:
        return send_suite(settings, server, target, workspace)


def send_suite(settings: RouterConfig, server: Server, target: Endpoint, workspace: Workspace, raw: Path | None = None) -> RouterResult:
    """Return the record of a run, whose answers go to `raw`; the server is watched by the caller."""
    suite = suite_for(settings, server.takes_system, workspace.root)
    cases = suite.cases[: settings.cases]
    unary_cases = cases[: settings.unary_cases]
    most = {FREE: settings.prompt_only_cases or len(cases), BOUND: len(cases)}
    sender = Sender(settings, suite, server, target, workspace)
    arms: dict[str, list[CaseResult]] = {}
    # The gates judge the constrained arm, so it goes first: a server that knows a prompt when it comes again gains nothing there.
    for name, extra in reversed(suite.request_fields.items()):
        arms[name] = sender.send(name, cases[: most[name]], streamed, extra)
        if unary_cases:
            arms[f"{name}_unary"] = sender.send(f"{name}_unary", unary_cases[: most[name]], unary, extra)
    arms = {name: arms[name] for name in sorted(arms, key=lambda name: name.startswith(BOUND))}
    figures = {f"{arm}_{name}": figure for arm, rows in arms.items() for name, figure in router_figures(rows).items()}
    figures |= {f"{arm}_ttft_ms_p50": first_token_figure(arms[arm]) for arm in (FREE, BOUND)}
    both = arms[BOUND][: len(arms[FREE])]
    majority_route, count = majority_share([route for case in cases for route in case.routes])
    raw = raw or workspace.artifacts / "raw" / "test-router.jsonl"
    write_atomic(raw, "".join(json.dumps(case_line(arm, row), ensure_ascii=False) + "\n" for arm, rows in arms.items() for row in rows))
    return RouterResult(
        launch_id=server.handle.launch_id,
        simulated=not server.real,
        figures={
            **figures,
            "majority_baseline": share_figure(count, len(cases)),
            **{f"{arm}_route_gain_points": gain_figure(figures[f"{arm}_route_accuracy"], constant(rows)) for arm, rows in arms.items()},
            **constraint_cost(arms[FREE], both),
            **{f"{arm}_unary_same_text": same_text(arms[arm], arms[f"{arm}_unary"]) for arm in (FREE, BOUND) if unary_cases},
        },
        suite=suite.name,
        language=suite.language,
        system=suite.system,
        cases=len(cases),
        unary_cases=len(unary_cases),
        majority_route=majority_route,
        failures={arm: dict(Counter(row.failure for row in rows if row.failure)) for arm, rows in arms.items()},
        confusion={arm: confusion([row.case.route for row in arms[arm]], [row.route_told for row in arms[arm]]) for arm in (FREE, BOUND)},
        routes_paired=compare_routes(arms[FREE], both),
        examples=[example for arm, rows in arms.items() for example in examples(arm, rows)],
        raw=workspace.relative(raw),
    )


@dataclass(frozen=True)
class Sender:
    """A sender of a suite's cases to a server, one request at a time."""

    settings: RouterConfig
    suite: Suite
    server: Server
    target: Endpoint
    workspace: Workspace

    def send(self, arm: str, cases: Sequence[Case], payload: Callable[..., dict[str, Any]], extra: Mapping[str, Any]) -> list[CaseResult]:
        """Send the cases and return their results; MeasureError when the server is gone, NothingAnsweredError when all requests fail."""
        what, suite, timeout_s = f"router, {arm.replace('_', '-')}", self.suite, self.settings.timeout_s
        self.workspace.say(f"{what}: {len(cases)} cases of {suite.name}")
        payloads = [payload(self.server.model, suite.messages(case), self.settings.max_tokens, **extra) for case in cases]
        # The first request computes the prompt's fixed part and compiles the grammar, so it is sent once before and not counted.
        closed_loop(self.target, payloads[:1], 1, timeout_s)
        answers, _ = closed_loop(self.target, payloads, 1, timeout_s, on_progress=self.workspace.progress(what, len(cases)))
        if len(answers) < len(cases):  # the caller, who watches the server, reports its cause of death
            problem = f"{what}: {len(answers)} of {len(cases)} requests were sent before the server was gone"
            raise MeasureError(problem, "see the server's log")
        if not any(answer.ok for answer in answers):
            log = log_of(self.server, self.workspace)
            raise NothingAnsweredError(f"{what}: no request succeeded: {answers[0].error}", "see the server's log", log)
        checks = [check(answer.text, answer.finish_reason, suite.validator) for answer in answers]
        return [CaseResult(*row) for row in zip(cases, answers, checks, strict=True)]


def router_figures(rows: Sequence[CaseResult]) -> dict[str, Figure]:
    """Return validity, accuracy and latency of one arm; a failed request counts against every share."""
    n = len(rows)
    good = [row for row in rows if row.answer.ok]
    e2e = [e2e_ms(row.answer.sent_ns, row.answer.last_ns) for row in good]
    plans = [row.plan_right for row in rows if row.plan_right is not None]
    return {
        "answered": share_figure(len(good), n),
        "json_strict": share_figure(sum(row.checked.strict for row in good), n),
        "json_lenient": share_figure(sum(row.checked.lenient for row in good), n),
        "repair_rate": share_figure(sum(row.checked.lenient and not row.checked.strict for row in good), n),
        "schema_valid": share_figure(sum(row.checked.valid for row in good), n),
        "truncated": share_figure(sum(row.answer.finish_reason == "length" for row in good), n),
        "route_accuracy": share_figure(sum(row.route_right for row in rows), n),
        "route_macro_f1": bootstrap_figure([(row.case.route, row.route_told) for row in rows], f1_percent, "%"),
        "tool_plan_accuracy": share_figure(sum(plans), len(plans)) if plans or not rows else not_measured("%", NO_PLAN),
        "joint_accuracy": share_figure(sum(row.all_right for row in rows), n),
        "latency_ms_p50": percentile_figure(e2e, 0.5, "ms", failed=n - len(good)),
        "latency_ms_p95": percentile_figure(e2e, 0.95, "ms", failed=n - len(good)),
    }


def constant(rows: Sequence[CaseResult]) -> float:
    """Return the share of the cases in percent for which the route is right that most of them have."""
    return 100 * majority_share([route for row in rows for route in row.case.routes])[1] / len(rows)


def gain_figure(accuracy: Figure, constant_percent: float) -> Figure:
    """Return how many percentage points an arm's route accuracy lies above a constant answer's, whose share the suite fixes."""
    points = {
        end: None if value is None else value - constant_percent
        for end, value in accuracy.model_dump(include={"value", "low", "high"}).items()
    }
    return accuracy.model_copy(update={**points, "unit": _("points")})


def first_token_figure(rows: Sequence[CaseResult]) -> Figure:
    """Return the median TTFT of streamed answers."""
    good = [row.answer for row in rows if row.answer.ok]
    return percentile_figure([ttft_ms(answer.sent_ns, answer.first_ns) for answer in good], 0.5, "ms", failed=len(rows) - len(good))


def f1_percent(pairs: Sequence[tuple[str, str]]) -> float:
    """Return macro-F1 of pairs of (golden, answered) in percent."""
    return 100 * macro_f1([golden for golden, _ in pairs], [answer for _, answer in pairs])


def constraint_cost(free: Sequence[CaseResult], bound: Sequence[CaseResult]) -> dict[str, Figure]:
    """Return the cost of the schema: medians of constrained − prompt-only per case; latency over the cases answered in both arms."""
    both = [(first.answer, second.answer) for first, second in zip(free, bound, strict=True) if first.answer.ok and second.answer.ok]
    first_token = [ttft_ms(b.sent_ns, b.first_ns) - ttft_ms(a.sent_ns, a.first_ns) for a, b in both]
    whole = [e2e_ms(b.sent_ns, b.last_ns) - e2e_ms(a.sent_ns, a.last_ns) for a, b in both]
    # Answers differ in length, so the cost of the grammar itself shows in the time per token.
    per_token = [ms_per_token(b) - ms_per_token(a) for a, b in both if a.tokens and b.tokens]
    reason, failed = _("no case was answered in both arms"), len(free) - len(both)
    wrong = sum(answer.contradicts_itself for pair in both for answer in pair)
    contradiction = _("the usage of {n} answers is not what came", n=wrong) if wrong else ""
    ms_per_token_figure = percentile_figure(per_token, 0.5, "ms", reason, len(free) - len(per_token))
    gains = [second.route_right - first.route_right for first, second in zip(free, bound, strict=True)]
    return {
        "constraint_ttft_ms_p50": percentile_figure(first_token, 0.5, "ms", reason, failed),
        "constraint_latency_ms_p50": percentile_figure(whole, 0.5, "ms", reason, failed),
        **invalidated({"constraint_ms_per_token_p50": ms_per_token_figure}, contradiction),
        "constraint_route_accuracy_points": bootstrap_figure(gains, lambda values: 100 * sum(values) / len(values), _("points")),
    }


def ms_per_token(answer: Answer) -> float:
    """Return E2E latency / output tokens."""
    return e2e_ms(answer.sent_ns, answer.last_ns) / answer.tokens


def compare_routes(free: Sequence[CaseResult], bound: Sequence[CaseResult]) -> Paired:
    """Count the cases whose route both, one or none of the arms got right."""
    counts = Counter((first.route_right, second.route_right) for first, second in zip(free, bound, strict=True))
    only_free, only_bound = counts[True, False], counts[False, True]
    return Paired(
        both=counts[True, True],
        only_prompt_only=only_free,
        only_constrained=only_bound,
        neither=counts[False, False],
        p=mcnemar_p(only_free, only_bound),
    )


def same_text(streamed_rows: Sequence[CaseResult], unary_rows: Sequence[CaseResult]) -> Figure:
    """Return the share of unary answers that equal the streamed one of the same case."""
    pairs = list(zip(streamed_rows, unary_rows, strict=False))
    return share_figure(sum(a.answer.ok and b.answer.ok and a.answer.text == b.answer.text for a, b in pairs), len(pairs))


def examples(arm: str, rows: Sequence[CaseResult]) -> list[Example]:
    """Return the first failed answers of each class; a valid answer with a wrong route is a class of its own."""
    counts: Counter[str] = Counter()
    result = []
    for row in rows:
        failure = row.failure or ("" if row.route_right else _("route {name}, golden {reason}", name=row.route, reason=row.case.route))
        kind = row.failure or "wrong route"
        if failure and counts[kind] < SHOWN_FAILURES:
            counts[kind] += 1
            text = (row.answer.text or row.answer.error)[:SHOWN_CHARACTERS]
            result.append(Example(case=row.case.id, arm=arm, failure=failure, text=text))
    return result


def case_line(arm: str, row: CaseResult) -> dict[str, Any]:
    """Return one answer with its time stamps relative to the send, from which every figure can be computed again."""
    answer = row.answer
    return {
        "arm": arm,
        "case": row.case.id,
        "failure": row.failure,
        "route_right": row.route_right,
        "tool_plan_right": row.plan_right,
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
