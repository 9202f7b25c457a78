"""The guide's test 1: whether the model answers in the router's JSON."""

from collections.abc import Mapping

from pipeline.measure.classification import Confusion
from pipeline.message import Code, Digits, Message, _, joined
from pipeline.report.cells import Cell, Text, comma_separated, glued
from pipeline.report.figures import rows
from pipeline.report.inputs import Inputs
from pipeline.report.parts import Scenario, Table
from pipeline.report.sections.common import reason_of
from pipeline.stages.test_router import Paired, RouterResult

ARMS: dict[str, Text] = {"prompt_only": _("prompt-only"), "constrained": _("constrained")}
IN_ONE_PIECE: dict[str, Text] = {f"{arm}_unary": _("{arm}, in one piece", arm=name) for arm, name in ARMS.items()}
NAMES = ARMS | IN_ONE_PIECE
FIGURES: dict[str, Text] = {
    "answered": _("requests answered"),
    "json_strict": _("strictly JSON"),
    "json_lenient": _("JSON after extraction"),
    "repair_rate": _("JSON only after extraction"),
    "schema_valid": _("valid against the schema"),
    "truncated": _("cut off at max_tokens"),
    "route_accuracy": _("route right"),
    "route_macro_f1": _("macro-F1 of the routes"),
    "tool_plan_accuracy": _("tool plan right"),
    "joint_accuracy": _("route, intent and slots right"),
    "ttft_ms_p50": _("TTFT, median"),
    "latency_ms_p50": _("E2E latency, median"),
    "latency_ms_p95": _("E2E latency, p95"),
}
UNARY = ("answered", "json_strict", "schema_valid", "route_accuracy", "latency_ms_p50")


def router(inputs: Inputs) -> Scenario:
    """Return the guide's test 1."""
    title = _("Test 1: Router JSON output")
    outcome = inputs.outcomes[RouterResult]
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome))
    examples = [(one.case, NAMES.get(one.arm, one.arm), one.failure, one.text) for one in data.examples]
    return Scenario(
        title,
        facts=facts(data),
        figures=rows(outcome.stage, data.figures, labels(data), inputs.marks),
        examples=examples,
        tables=[confusion_table(NAMES.get(arm, arm), counts) for arm, counts in data.confusion.items()],
    )


def labels(data: RouterResult) -> dict[str, Text]:
    """Return the figures' labels."""
    result: dict[str, Text] = {f"{arm}_{name}": joined(": ", [NAMES[arm], label]) for arm in ARMS for name, label in FIGURES.items()}
    for arm in ARMS:
        if (plan := data.figures.get(f"{arm}_tool_plan_accuracy")) and plan.value is not None:
            result[f"{arm}_joint_accuracy"] = joined(": ", [ARMS[arm], _("route, intent, slots and tool plan right")])
    result["constrained_route_gain_points"] = _("constrained: route right, percentage points above that baseline")
    result["majority_baseline"] = _("baseline: always {route}", route=Code(data.majority_route))
    result |= {
        "constraint_ttft_ms_p50": _("cost of the schema, per case: TTFT, median"),
        "constraint_ms_per_token_p50": _("cost of the schema, per case: E2E latency / output tokens, median"),
        "constraint_latency_ms_p50": _("cost of the schema, per case: E2E latency, median"),
        "constraint_route_accuracy_points": _("gain by the schema: route right, percentage points"),
    }
    for arm, arm_label in IN_ONE_PIECE.items():
        result |= {f"{arm}_{name}": joined(": ", [arm_label, FIGURES[name]]) for name in UNARY}
        result[f"{arm}_same_text"] = joined(": ", [arm_label, _("same text as streamed")])
    return result


def facts(data: RouterResult) -> list[Text]:
    """Return what was sent, what failed, and how the arms compare."""
    return [
        _(
            "Suite {suite} ({language}), {cases} cases streamed and {unary} in one piece, each arm, one at a time, temperature 0.",
            suite=Code(data.suite),
            language=data.language,
            cases=data.cases,
            unary=data.unary_cases,
        ),
        *([_("The system prompt stands in front of the user's text, in one message.")] if data.system == "user" else []),
        *(
            _("Failure classes, {arm}: {classes}.", arm=NAMES.get(arm, arm), classes=classes_words(classes))
            for arm, classes in data.failures.items()
        ),
        *([paired_words(data.routes_paired)] if data.routes_paired is not None else []),
    ]


def paired_words(pairs: Paired) -> Message:
    """Return how the two arms compare case by case."""
    return _(
        "Routes, case by case: both arms right {both}, only prompt-only {prompt_only}, only constrained {constrained}, "
        "neither {neither}; McNemar's exact p of the difference {p}.",
        both=pairs.both,
        prompt_only=pairs.only_prompt_only,
        constrained=pairs.only_constrained,
        neither=pairs.neither,
        p=Digits(f"{pairs.p:.2g}"),
    )


def classes_words(classes: Mapping[str, int]) -> Message:
    """Return the number of answers in each failure class."""
    return comma_separated(glued(Message(name), " ", count) for name, count in classes.items()) if classes else _("none")


def confusion_table(arm: Text, counts: Confusion) -> Table:
    """Return the confusion matrix of golden and answered routes."""
    guesses = sorted({guess for row in counts.values() for guess in row})
    body: list[list[Cell]] = [[golden, *(row.get(guess, 0) for guess in guesses)] for golden, row in counts.items()]
    return Table(
        _("Routes, {arm}: golden down, answered across", arm=arm),
        [_("Golden"), *(guess if guess in counts else Message(guess) for guess in guesses)],
        body,
        shaded=True,
    )
