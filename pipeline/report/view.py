"""From records to what the templates show: words and formatted figures, no layout."""

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from pipeline.config.schema import Alternative, Gate, ReportConfig, is_loopback
from pipeline.engine.record import BLOCKED, Failure, Outcome
from pipeline.errors import MeaninglessError
from pipeline.measure.digits import ends_of, number, shown
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import asked
from pipeline.report.definitions import Definition, definitions, noted
from pipeline.report.gates import Judged, JudgedGate
from pipeline.report.language import ENGLISH, Words
from pipeline.report.sweep import CellRecord
from pipeline.vllm.remedies import NoRemedy, Remedy, remedy_for

MARKS = {
    "PASS": "✅ PASS",
    "FAIL": "❌ FAIL",
    "INCONCLUSIVE": "⚠️ INCONCLUSIVE",
    "NOT_MEASURED": "▫️ NOT_MEASURED",
    "SIMULATED": "🚫 SIMULATED",
}
NOTES = ("stop", "determinism-remedy")  # records that no stage makes

ADDED = "measure-vram"  # whose load was sent for the memory's sake
THROTTLED_PERCENT = 5  # of the samples under load; a touch of the power limit is no news
S_PER_H = 3600
Marks = Mapping[str, Collection[float]]  # by <stage>.<figure>: what its gates ask


@dataclass(frozen=True)
class GateRow:
    """One line of a table of targets."""

    label: str
    target: str
    measured: str
    verdict: str
    source: str
    metric: str = ""  # <stage>.<figure>
    notes: tuple[str, ...] = ()  # of its definitions


@dataclass(frozen=True)
class FigureRow:
    """One figure: what it is, its value with bounds and n, and where it stands."""

    label: str
    measured: str
    source: str
    metric: str = ""  # <stage>.<figure>
    notes: tuple[str, ...] = ()  # of its definitions


Row = TypeVar("Row", GateRow, FigureRow)


@dataclass(frozen=True)
class StageRow:
    """One stage: how it ended in words and in kind (ok, failed, skipped, never), how long it took, when."""

    name: str
    state: str
    took: str
    when: str
    kind: str = "never"


@dataclass(frozen=True)
class FailureNote:
    """A failed stage with cause, fix and the end of its log."""

    stage: str
    failure: Failure


@dataclass(frozen=True)
class Table:
    """A table beneath the figures."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()
    shaded: bool = False  # counts that are the darker the larger


@dataclass(frozen=True)
class Scenario:
    """One of the guide's tests: its facts, figures, and why there are none if so."""

    title: str
    reason: str
    facts: list[str]
    figures: list[FigureRow]
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CellRow:
    """One cell of a sweep: what became of it, its model, its figures under the section's header, its own verdict and report."""

    name: str
    state: str
    model: str
    figures: list[str]
    gates: str
    source: str
    metric: str  # sweep.<name>


@dataclass(frozen=True)
class SweepSection:
    """The last sweep beside the guide's models, or the reason why there is none."""

    title: str
    reason: str = ""
    facts: list[str] = field(default_factory=list)
    recommendation: str = ""
    rule: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[CellRow] = field(default_factory=list)
    picture: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """All that the report says."""

    title: str
    headline: str
    alert: str
    profile: str
    again: str
    model: str
    device: str
    measured_on: str
    cautions: list[str]
    targets: list[GateRow]
    criteria: list[GateRow]
    scenarios: list[Scenario]
    alternatives: list[tuple[str, str, str, str, str]]
    stages: list[StageRow]
    failures: list[FailureNote]
    environment: list[tuple[str, str]]
    command: str
    proofs: list[tuple[str, str, str]]
    not_measured: list[tuple[str, str]]
    definitions: list[Definition] = field(default_factory=list)
    edges: list[tuple[str, str]] = field(default_factory=list)  # (needed, needing) of the stages
    badge: str = ""  # the path of its picture
    badge_text: str = ""
    licence: str = ""  # where it forbids commercial use
    left_out: list[str] = field(default_factory=list)  # so that the report fits
    sweep: SweepSection | None = None


def build_view(
    settings: ReportConfig,
    profile: str,
    given: Sequence[str],
    instead: Sequence[str],
    alternatives: Sequence[Alternative],
    judged: Judged,
    pictures: Sequence[str] = (),
    t: Words = ENGLISH,
    soak: Outcome[Any] | None = None,
    edges: Sequence[tuple[str, str]] = (),
    badge: str = "",
    sweep: SweepSection | None = None,
    cells: Sequence[CellRecord] = (),
) -> View:
    """Return what the report shows of these outcomes."""
    outcomes = judged.outcomes
    server = outcomes["serve"].data
    model = outcomes["download-model"].data
    measured = [outcomes[name].envelope for name in ("test-router", "test-determinism", "bench", "measure-vram")]
    times = [envelope.started for envelope in measured if envelope and envelope.data]
    marks = marks_of(judged.gates)
    scenarios = [
        router_scenario(outcomes["test-router"], t, marks),
        determinism_scenario(
            outcomes["test-determinism"], outcomes["serve"], outcomes["check-gpu"], outcomes["determinism-remedy"], t, marks
        ),
        bench_scenario(outcomes["bench"], outcomes["measure-vram"], t, marks),
        with_soak(memory_scenario(outcomes["measure-vram"], outcomes["stop"], outcomes["serve"], pictures, t, marks), soak, outcomes, t),
    ]
    stages = [stage_row(outcome, t) for name, outcome in outcomes.items() if name not in NOTES]
    targets, criteria = (
        footnoted([gate_row(row, t) for row in judged.gates if row.gate.table == table]) for table in ("targets", "criteria")
    )
    view = View(
        title=settings.title,
        headline=headline(judged, t),
        alert={0: "TIP", 1: "CAUTION"}.get(judged.code, "WARNING"),
        profile=profile,
        again=shlex.join(["./inv", "all", "--profile", profile, *(word for setting in given for word in ("--set", setting))]),
        model=server.model if server else model.name if model else t("no model"),
        device=server.device if server else t("no server"),
        measured_on=t("measured {when} UTC", when=f"{min(times):%Y-%m-%d %H:%M}") if times else t("nothing was measured"),
        cautions=[
            *(t.said(reason) for reason in instead),
            *(cautions(server, t) if server else []),
            *of_the_machine(outcomes["check-gpu"].data, server, t),
            *uncounted(outcomes["bench"].data, t),
            *throttled(outcomes["measure-vram"].data, t),
        ],
        targets=targets,
        criteria=criteria,
        scenarios=scenarios,
        alternatives=[alternative_row(entry, profile, outcomes, t, marks, cells) for entry in alternatives],
        stages=stages,
        failures=failure_notes(outcomes),
        environment=environment(outcomes, t),
        command=shell_command(server.environment, server.command) if server else "",
        proofs=[(t.said(proof.claim), t("yes") if proof.holds else t("no"), t.said(proof.seen)) for proof in server.proofs]
        if server
        else [],
        not_measured=missing(judged.gates, scenarios, t),
        edges=[edge for edge in edges if {row.name for row in stages}.issuperset(edge)],
        badge=badge,
        badge_text=badge_words(judged),
        licence=forbidding_licence(model, t),
        sweep=sweep,
    )
    return replace(view, definitions=definitions(used(view), t))


def forbidding_licence(model: Any, t: Words = ENGLISH) -> str:
    """Return the words for a licence that forbids commercial use; empty for any other."""
    if model is None or not model.facts.non_commercial:
        return ""
    return t("licence {licence}: no commercial use", licence=model.facts.license or t("not stated"))


def marks_of(gates: Sequence[JudgedGate]) -> dict[str, list[float]]:
    """Return what the gates ask of each metric, which no rounding may hide."""
    found: dict[str, list[float]] = {}
    for row in gates:
        found.setdefault(row.gate.metric, []).extend(row.gate.numbers)
    return found


def footnoted(listed: Sequence[Row]) -> list[Row]:
    """Return the rows with each definition noted at the first row that needs it."""
    seen: set[str] = set()
    result = []
    for row in listed:
        fresh = tuple(note for note in noted(row.metric) if note not in seen)
        seen.update(fresh)
        result.append(replace(row, notes=fresh))
    return result


def used(view: View) -> set[str]:
    """Return the notes that stand anywhere."""
    listed: list[GateRow | FigureRow] = [*view.targets, *view.criteria, *(row for scenario in view.scenarios for row in scenario.figures)]
    tables = [table for scenario in view.scenarios for table in scenario.tables]
    of_sweep = set(view.sweep.notes) if view.sweep else set()
    return {note for row in listed for note in row.notes} | {note for table in tables for note in table.notes} | of_sweep


def cautions(server: Any, t: Words = ENGLISH) -> list[str]:
    """Return what a reader must know before any figure."""
    found = []
    if server.attached:
        found.append(
            t(
                "Measured on the server at {address}, which someone else runs: its identity is what its endpoint shows, "
                "and its life cycle and memory were not ours to measure.",
                address=server.attached,
            )
        )
    found += [
        t("A start failed and was repeated with {changed}: {cause}.", changed=entry.changed, cause=t.said(entry.cause))
        for entry in server.attempts
    ]
    if server.random_weights:
        found.append(t("This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."))
    if "--trust-remote-code" in server.command:
        found.append(t("The server ran code that came with the model (`serve.trust_remote_code`)."))
    host = server.command[server.command.index("--host") + 1] if "--host" in server.command else ""
    if host and not is_loopback(host):
        found.append(t("The server listened on {host}, open to everyone who reached that machine, with an API key.", host=host))
    return found


def of_the_machine(machine: Any, server: Any, t: Words = ENGLISH) -> list[str]:
    """Return what check-gpu found worth knowing about the devices, where they are the server's."""
    if machine is None or (server is not None and server.attached):
        return []
    return [f"{t.said(caution.fact)} → {t.said(caution.fix)}" for caution in machine.cautions]


def uncounted(bench: Any, t: Words = ENGLISH) -> list[str]:
    """Return that client and server did not count the same, where both counted."""
    differ = [count for count in bench.ledger if count.server is not None and not count.agrees] if bench else []
    if not differ:
        return []
    parts = [t("{name} {client} and {server}", name=t.said(count.name), client=count.client, server=count.server) for count in differ]
    return [
        t("Client and server did not count the same ({counts}): others were served meanwhile, or requests failed.", counts=", ".join(parts))
    ]


def throttled(memory: Any, t: Words = ENGLISH) -> list[str]:
    """Return that the GPU was slower than it could be for more than a moment of the load, where it was."""
    share = memory.figures.get("gpu_throttled") if memory else None
    if share is None or share.value is None or share.value < THROTTLED_PERCENT:
        return []
    reasons = ", ".join(t("{name} in {count}", name=name, count=count) for name, count in memory.throttled.items())
    return [
        t(
            "The GPU was throttled in {share} % of {n} samples under load ({reasons}): better cooled or fed it is faster.",
            share=number(share.value, ends_of("%")),
            n=share.n,
            reasons=reasons,
        )
    ]


def failure_notes(outcomes: Mapping[str, Outcome[Any]]) -> list[FailureNote]:
    """Return the stages that failed by themselves."""
    failures = [(name, outcome.failure) for name, outcome in outcomes.items()]
    return [FailureNote(name, failure) for name, failure in failures if failure and failure.kind not in (BLOCKED, MeaninglessError.kind)]


def headline(judged: Judged, t: Words = ENGLISH) -> str:
    """Return the verdict in one line."""
    required, failures = [row for row in judged.gates if row.gate.required], failure_notes(judged.outcomes)
    if judged.code == 2 and not required and not failures:
        return t("NOT MEASURED: no gate is required.")
    word = {0: "PASS", 1: "NOT PASSED", 2: "NOT MEASURED"}[judged.code]
    waived = [row for row in required if row.waived]
    passed = passing(required)
    if passed == len(required) and judged.code == 0:
        counts = t("all {passed} required gates pass", passed=passed)
    else:
        counts = t("{passed} of {required} required gates pass", passed=passed, required=len(required))
    if len(waived) == 1:
        counts += t(", 1 is waived")
    elif waived:
        counts += t(", {count} are waived", count=len(waived))
    said = f"{word}: {counts}."
    if failures:
        first = failures[0]
        return f"{said} {t('{stage} failed: {message}.', stage=first.stage, message=t.said(first.failure.message))}"
    # Where a waiver covers all that is open and the run is no pass all the same, these are what it lacks.
    bad = [row for row in required if row.counts and row.judgement.verdict != "PASS"] or waived
    listed = ", ".join(f"{t.given(row.gate.label)} ({row.judgement.verdict})" for row in bad)
    return f"{said} {t('Open: {gates}.', gates=listed)}" if judged.code else said


def passing(gates: Sequence[JudgedGate]) -> int:
    """Return how many of the gates pass."""
    return sum(row.judgement.verdict == "PASS" for row in gates)


def badge_words(judged: Judged) -> str:
    """Return the verdict in a few signs: its word, and how many of the required gates pass."""
    required = [row for row in judged.gates if row.gate.required]
    return f"{ {0: 'PASS', 1: 'NOT PASSED', 2: 'NOT MEASURED'}[judged.code] } {passing(required)}/{len(required)}"


def gate_row(row: JudgedGate, t: Words = ENGLISH) -> GateRow:
    """Return the row of a judged gate."""
    gate = row.gate
    verdict = with_notes(MARKS[row.judgement.verdict], t.said(row.waiver), t.said(row.judgement.reason))
    if not gate.required:
        verdict += t(" (not required by this profile)")
    stage, _, metric = gate.metric.partition(".")
    return GateRow(
        t.given(gate.label),
        target_words(gate, t),
        measured_words(row.figure, t=t, marks=gate.numbers),
        verdict,
        source(stage, metric),
        gate.metric,
    )


def with_notes(verdict: str, waiver: str, reason: str) -> str:
    """Return the verdict with its waiver and its reason, where it has them."""
    return verdict + (f" ({waiver})" if waiver else "") + (f": {reason}" if reason else "")


def target_words(gate: Gate, t: Words = ENGLISH) -> str:
    """Return what the figure must meet."""
    statistic = t.said(gate.statistic)
    return asked(gate.comparator, gate.target, t.said(gate.unit)) + (f" ({statistic})" if statistic else "")


def measured_words(figure: Figure | None, bold: str = "**", t: Words = ENGLISH, marks: Collection[float] = ()) -> str:
    """Return value, bounds and n as words, with the digits that the bounds carry and no rounding across one of the marks."""
    if figure is None or figure.value is None:
        return "NOT_MEASURED"
    said = shown(figure.value, figure.low, figure.high, (*marks, *ends_of(figure.unit)))
    value = f"{bold}{said.value} {t.said(figure.unit)}{bold}"
    bounds = bounds_words(said.low, said.high, t)
    return f"{value} (n = {figure.n}; {t('95 %')}: {bounds})" if bounds else f"{value} (n = {figure.n})"


def bounds_words(low: str, high: str, t: Words = ENGLISH) -> str:
    """Return the bounds in a few words; empty where there is none."""
    if low and high:
        return t("{low} to {high}", low=low, high=high)
    return f"≥ {low}" if low else f"≤ {high}" if high else ""


def source(stage: str, metric: str) -> str:
    """Return where the figure stands."""
    return f"`artifacts/{stage}.json` → `{metric}`"


def rows(stage: str, figures: Mapping[str, Figure], labels: Mapping[str, str], t: Words, marks: Marks) -> list[FigureRow]:
    """Return the labelled ones of the stage's figures; why there is none is told at the first that lacks it."""
    found, told_already = [], {""}
    for name, label in labels.items():
        if name in figures:
            metric, figure = f"{stage}.{name}", figures[name]
            said = measured_words(figure, t=t, marks=marks.get(metric, ()))
            if figure.value is None and figure.reason not in told_already:
                told_already.add(figure.reason)
                said += f": {t.said(figure.reason)}"
            found.append(FigureRow(label, said, source(stage, name), metric))
    return footnoted(found)


def reason_of(outcome: Outcome[Any], t: Words = ENGLISH) -> str:
    """Return why the outcome has no data; empty when it has."""
    if outcome.data is not None:
        return ""
    return t.said(outcome.failure.message) if outcome.failure else t("this stage never ran")


def router_scenario(outcome: Outcome[Any], t: Words, marks: Marks) -> Scenario:
    """Return the guide's test 1."""
    title = t("Test 1: Router JSON output")
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome, t), [], [])
    names = {
        "answered": t("requests answered"),
        "json_strict": t("strictly JSON"),
        "json_lenient": t("JSON after extraction"),
        "repair_rate": t("JSON only after extraction"),
        "schema_valid": t("valid against the schema"),
        "truncated": t("cut off at max_tokens"),
        "route_accuracy": t("route right"),
        "route_macro_f1": t("macro-F1 of the routes"),
        "joint_accuracy": t("route, intent and slots right"),
        "ttft_ms_p50": t("TTFT, median"),
        "latency_ms_p50": t("E2E latency, median"),
        "latency_ms_p95": t("E2E latency, p95"),
    }
    unary = ("answered", "json_strict", "schema_valid", "route_accuracy", "latency_ms_p50")
    arms = {"prompt_only": t("prompt-only"), "constrained": t("constrained")}
    told = {**arms, **{f"{arm}_unary": t("{arm}, in one piece", arm=name) for arm, name in arms.items()}}
    labels = {f"{arm}_{name}": f"{told[arm]}: {label}" for arm in arms for name, label in names.items()}
    labels["majority_baseline"] = t("baseline: always `{route}`", route=data.majority_route)
    labels |= {
        "constraint_ttft_ms_p50": t("cost of the schema, per case: TTFT, median"),
        "constraint_ms_per_token_p50": t("cost of the schema, per case: E2E latency / output tokens, median"),
        "constraint_latency_ms_p50": t("cost of the schema, per case: E2E latency, median"),
        "constraint_route_accuracy_points": t("gain by the schema: route right, percentage points"),
    }
    for arm in arms:
        labels |= {f"{arm}_unary_{name}": f"{told[f'{arm}_unary']}: {names[name]}" for name in unary}
        labels[f"{arm}_unary_same_text"] = f"{told[f'{arm}_unary']}: {t('same text as streamed')}"
    facts = [
        t(
            "Suite `{suite}` ({language}), {cases} cases streamed and {unary} in one piece, each arm, one at a time, temperature 0.",
            suite=data.suite,
            language=data.language,
            cases=data.cases,
            unary=data.unary_cases,
        )
    ]
    for arm, classes in data.failures.items():
        listed = ", ".join(f"{t.said(name)} {count}" for name, count in classes.items()) or t("none")
        facts.append(t("Failure classes, {arm}: {classes}.", arm=told.get(arm, arm), classes=listed))
    pairs = data.routes_paired
    if pairs is not None:
        facts.append(
            t(
                "Routes, case by case: both arms right {both}, only prompt-only {prompt_only}, only constrained {constrained}, "
                "neither {neither}; McNemar's exact p of the difference {p}.",
                both=pairs.both,
                prompt_only=pairs.only_prompt_only,
                constrained=pairs.only_constrained,
                neither=pairs.neither,
                p=f"{pairs.p:.2g}",
            )
        )
    tables = [confusion_table(told.get(arm, arm), counts, t) for arm, counts in data.confusion.items()]
    examples = [(example.case, told.get(example.arm, example.arm), t.said(example.failure), example.text) for example in data.examples]
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels, t, marks), examples, tables)


def confusion_table(arm: str, counts: Mapping[str, Mapping[str, int]], t: Words = ENGLISH) -> Table:
    """Return how often each golden route was answered with which."""
    told = sorted({guess for row in counts.values() for guess in row})
    return Table(
        t("Routes, {arm}: golden down, answered across", arm=arm),
        [t("Golden"), *(t.said(guess) for guess in told)],
        [[golden, *(str(row.get(guess, 0)) for guess in told)] for golden, row in counts.items()],
        shaded=True,
    )


def determinism_scenario(
    outcome: Outcome[Any], server: Outcome[Any], machine: Outcome[Any], remedied: Outcome[Any], t: Words, marks: Marks
) -> Scenario:
    """Return the guide's test 2, the arms beside it, and what a remedy did on a server like this one."""
    title = t("Test 2: Determinism")
    data, proof = outcome.data, remedied.data
    alike = proof and server.data and (proof.model, proof.vllm) == (server.data.model, server.data.vllm)
    tables = [remedy_table(proof, t)] if alike else []
    if data is None:
        return Scenario(title, reason_of(outcome, t), [], [], tables=tables)
    facts = [t("D1, the guide's test: temperature 0, seed {seed}, one after the other, compared as token ids.", seed=data.seed)]
    same = [prompt for prompt in data.prompts if prompt.agreeing == prompt.runs]
    if same:
        shortest, longest = min(prompt.tokens for prompt in same), max(prompt.tokens for prompt in same)
        span = str(shortest) if shortest == longest else t("{low} to {high}", low=shortest, high=longest)
        facts.append(
            t(
                "D1, {same} of {prompts} prompts: all {runs} answers identical, {span} tokens.",
                same=len(same),
                prompts=len(data.prompts),
                runs=same[0].runs,
                span=span,
            )
        )
    for prompt in data.prompts:
        if prompt not in same:
            agree = t("{agreeing} of {runs} identical", agreeing=prompt.agreeing, runs=prompt.runs)
            facts.append(f"D1, {prompt.prompt!r}: {agree}{divergence([prompt], t)}.")
    for arm in data.arms:
        named = f"{arm.arm}, {t.said(arm.what)}"
        if arm.reason:
            facts.append(f"{named}: NOT_MEASURED, {t.said(arm.reason)}.")
            continue
        evidence = f" ({t.said(arm.evidence)})" if arm.evidence else ""
        if arm.arm == "D5":
            agree = t("{agreeing} of {runs} equal the first answer", agreeing=arm.agreeing, runs=arm.runs)
        else:
            agree = t("{agreeing} of {runs} equal the sequential answer", agreeing=arm.agreeing, runs=arm.runs)
        facts.append(f"{named}: {agree}{divergence(arm.prompts, t)}{evidence}.")
    if server.data is not None:
        facts.append(batch_invariance(server.data, t))
        parted = len(same) < len(data.prompts) or any(arm.agreeing < arm.runs for arm in data.arms if arm.arm != "D5")
        if parted and machine.data is not None:
            facts.append(remedy_words(remedy_for(server.data.distribution, machine.data.gpus, server.data.attached), server.data, t))
    labels = {
        "identical": t("D1: identical answers"),
        "tarr": t("D1: prompts whose answers all agree (TARr@N)"),
        "tara": t("D1: the same as canonical JSON (TARa@N)"),
        "d2_identical": t("D2: identical with a cold and a warm prefix cache"),
        "d3_identical": t("D3: identical under load"),
        "d4_identical": t("D4: identical after a restart"),
        "d5_same_seed_identical": t("D5: control, the same seed (must be 100 %)"),
        "d5_other_seed_identical": t("D5: control, another seed (must be under 100 %)"),
    }
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels, t, marks), tables=tables)


def remedy_words(found: Remedy | NoRemedy, server: Any, t: Words = ENGLISH) -> str:
    """Return what helps against answers that differ, or why nothing is known to."""
    if isinstance(found, NoRemedy):
        return t("No remedy is known here: {reason}.", reason=t.said(found.reason))
    proof = t("`./inv determinism-remedy` measures without and with it")
    if found.in_force(server.environment):
        return t("The remedy for this device, `{remedy}`, is in force already and so does not help; {proof}.", remedy=found, proof=proof)
    return t("Remedy for this device: `{remedy}` in `serve.env` ({why}); {proof}.", remedy=found, why=t.said(found.why), proof=proof)


def remedy_table(proof: Any, t: Words = ENGLISH) -> Table:
    """Return what was measured without and with the remedy, side by side."""
    sides = (proof.without, proof.remedied)
    arms = dict.fromkeys((arm.arm, arm.what) for side in sides for arm in side.arms if arm.arm != "D5")
    optional = {
        t("failed requests for speed"): [f"{len(side.errors)}: {side.errors[0]}" if side.errors else "" for side in sides],
        t("a failed start was repeated with"): ["; ".join(attempt.changed for attempt in side.attempts) for side in sides],
        t("failed"): [t.said(side.failure.message) if side.failure else "" for side in sides],
        t("SIMULATED, not a real vLLM"): [t("yes") if side.simulated else "" for side in sides],
    }
    remedy = f"{proof.variable}={proof.value}"
    return Table(
        t(
            "Answers equal to the sequential ones, and speed, without and with `{remedy}` "
            "({distribution} {vllm} on {device}; `artifacts/determinism-remedy.json`)",
            remedy=remedy,
            distribution=proof.distribution,
            vllm=proof.vllm,
            device=proof.device,
        ),
        ["", t("without `{variable}`", variable=proof.variable), t("with `{remedy}`", remedy=remedy)],
        [
            *([f"{arm}, {t.said(what)}", *(arm_words(side.arms, arm, what, t) for side in sides)] for arm, what in arms),
            [t("decode at concurrency 1, median"), *(speed_words(side.decode_tok_s, t) for side in sides)],
            [
                t("system throughput at concurrency {concurrency}", concurrency=proof.concurrency),
                *(speed_words(side.system_tok_s, t) for side in sides),
            ],
            [t("launches"), *(", ".join(side.launch_ids) or t("none") for side in sides)],
            *([name, *(cell or t("no") for cell in cells)] for name, cells in optional.items() if any(cells)),
        ],
    )


def arm_words(arms: Sequence[Any], name: str, what: str, t: Words = ENGLISH) -> str:
    """Return how many answers of that arm agreed, or why none was asked for."""
    arm = next((arm for arm in arms if (arm.arm, arm.what) == (name, what)), None)
    if arm is None:
        return t("not measured")
    if arm.reason:
        return t("not measured: {reason}", reason=t.said(arm.reason))
    return t("{agreeing} of {runs}", agreeing=arm.agreeing, runs=arm.runs) + divergence(arm.prompts, t)


def speed_words(figure: Figure, t: Words = ENGLISH) -> str:
    """Return the figure, or why there is none."""
    return t("not measured: {reason}", reason=t.said(figure.reason)) if figure.value is None else measured_words(figure, bold="", t=t)


def divergence(prompts: Sequence[Any], t: Words = ENGLISH) -> str:
    """Return where the answers first part, and how close the model's two best tokens were there."""
    parted = [prompt for prompt in prompts if prompt.first_divergence is not None]
    if not parted:
        return ""
    first = min(parted, key=lambda prompt: prompt.first_divergence)
    at = t(", first difference at token {token}", token=first.first_divergence)
    return at if first.gap is None else at + t(" (logprob gap of the two best there {gap})", gap=f"{first.gap:.3g}")


def batch_invariance(server: Any, t: Words = ENGLISH) -> str:
    """Return whether answers are promised to be independent of the load."""
    if server.environment.get("VLLM_BATCH_INVARIANT") == "1":
        return t("`VLLM_BATCH_INVARIANT=1`: vLLM promises answers that do not depend on what else it computes.")
    return t("Without `VLLM_BATCH_INVARIANT=1` vLLM does not promise the same answer under another load.")


def bench_scenario(outcome: Outcome[Any], memory: Outcome[Any], t: Words, marks: Marks) -> Scenario:
    """Return latency and throughput."""
    title = t("Latency and throughput")
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome, t), [], [])
    first = t("failed") if data.first_request_ttft_ms is None else f"{number(data.first_request_ttft_ms)} ms"
    bounds = {"TTFT": data.limits.ttft_ms, "TPOT": data.limits.tpot_ms, "E2E": data.limits.e2e_ms}
    limits = ", ".join(f"{name} < {number(limit)} ms" for name, limit in bounds.items() if limit is not None) or t("none")
    facts = [
        t(
            "Prompt {prompt} tokens, {output} output tokens (ignore_eos), tokens per chunk {per_chunk}. Cold: a cache salt per "
            "request; warm: the same requests again.",
            prompt=data.prompt_tokens,
            output=data.output_tokens,
            per_chunk=t("not available") if data.tokens_per_chunk is None else number(data.tokens_per_chunk),
        ),
        t(
            "Tokens from the prefix cache by the server's own counter: cold {cold}, warm {warm}.",
            cold=told(data.cold_hit_tokens, t),
            warm=told(data.warm_hit_tokens, t),
        ),
        t(
            "First request of the run: {first} to the first token. Not counted: it, {warmups} warm-ups, and those of each concurrency.",
            first=first,
            warmups=data.warmups,
        ),
        t("Goodput: requests that meet {limits} (the gates' limits), of all that were sent.", limits=limits),
        *ledger_facts(data, t),
    ]
    if data.ceiling_chunks_s is not None:
        facts.append(
            t(
                "The client against a stub: it takes {ceiling} chunks/s at most; delays and CPU time per chunk are below.",
                ceiling=number(data.ceiling_chunks_s),
            )
        )
    facts += [
        t("INVALID at concurrency {concurrency}: {why}.", concurrency=entry.concurrency, why=t.said(entry.invalid))
        for entry in data.levels
        if entry.invalid
    ]
    facts += [
        t("OVER-SATURATED at {rate} requests/s ({arrival}): latency kept rising.", rate=number(entry.rate_per_s), arrival=entry.arrival)
        for entry in data.open_levels
        if entry.overloaded
    ]
    facts += kernel_facts(data, memory.data, t)
    failed = sum(entry.failed for entry in (*data.levels, *data.open_levels))
    if failed:
        facts.append(t("{failed} requests under load failed.", failed=failed))
    tables = [table for table in (closed_table(data, t), open_table(data, t), capacity_table(data, t)) if table.rows]
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, bench_labels(data, t), t, marks), tables=tables)


def kernel_facts(data: Any, memory: Any, t: Words) -> list[str]:
    """Return what the server's log says of kernels that were compiled while it was measured, where it watched for them."""
    if memory is None or memory.launch_id != data.launch_id or memory.compiled_kernels is None:
        return []
    names = memory.compiled_kernels
    if not names:
        return [t("No kernel compiled while measuring.")]
    many = t("1 kernel") if len(names) == 1 else t("{count} kernels", count=len(names))
    listed = ", ".join(f"`{name}`" for name in names)
    return [t("{kernels} compiled while measuring ({names}): the first requests that needed them were slower.", kernels=many, names=listed)]


def bench_labels(data: Any, t: Words) -> dict[str, str]:
    """Return what bench's figures are called."""
    labels = {
        "ttft_ms_p50": t("TTFT, cold prefix cache, median"),
        "ttft_ms_p95": t("TTFT, cold prefix cache, p95"),
        "ttft_warm_ms_p50": t("TTFT, warm prefix cache, median"),
        "ttft_warm_ms_p95": t("TTFT, warm prefix cache, p95"),
        "first_byte_ms_p50": t("time to first byte, median"),
        "tpot_ms_p50": t("TPOT, median"),
        "itl_ms_p50": t("ITL, median"),
        "itl_ms_p95": t("ITL, p95"),
        "decode_tok_s_p50": t("decode throughput at concurrency 1, median"),
        "e2e_ms_p50": t("E2E latency of {tokens} tokens, median", tokens=data.output_tokens),
    }
    for entry in data.levels:
        loop = t("closed loop, concurrency {concurrency}", concurrency=entry.concurrency)
        labels[f"system_tok_s_c{entry.concurrency}"] = t("system throughput, {loop}", loop=loop)
        labels[f"goodput_c{entry.concurrency}"] = t("goodput, {loop}", loop=loop)
    for entry in data.open_levels:
        loop = t("open loop, {arrival} arrivals at {rate} requests/s", arrival=entry.arrival, rate=number(entry.rate_per_s))
        labels[f"{entry.arrival}_ttft_ms_p95"] = t("TTFT from the scheduled send, p95, {loop}", loop=loop)
        labels[f"{entry.arrival}_e2e_ms_p50"] = t("E2E latency from the scheduled send, median, {loop}", loop=loop)
        labels[f"{entry.arrival}_e2e_ms_p95"] = t("E2E latency from the scheduled send, p95, {loop}", loop=loop)
        labels[f"{entry.arrival}_goodput"] = t("goodput, {loop}", loop=loop)
    labels["capacity_req_s"] = t("capacity: highest rate that meets the limits")
    return labels


def closed_table(data: Any, t: Words) -> Table:
    """Return the closed loops, and what the client had to do there."""
    return Table(
        t("Closed loops, and the client there"),
        [
            t("Concurrency"),
            t("Requests (warm-ups)"),
            t("Failed"),
            "tok/s",
            t("while full"),
            t("Client: chunk delay p50, p95"),
            t("per chunk"),
            t("CPU share"),
        ],
        [
            [
                str(entry.concurrency),
                f"{entry.requests} ({entry.warmups})",
                str(entry.failed),
                number(entry.throughput_tok_s),
                t("never full") if entry.steady_tok_s is None else number(entry.steady_tok_s),
                f"{number(own.delay_ms_p50)}, {number(own.delay_ms_p95)} ms",
                f"{number(own.cpu_us_per_chunk)} µs",
                t("{share} % of a core", share=f"{100 * entry.client_cpu_share:.2g}") + clients(entry, own, t),
            ]
            for entry, own in zip(data.levels, data.calibrations, strict=False)  # an older record has no calibrations
        ],
        notes=("closed", "client"),
    )


def clients(entry: Any, own: Any, t: Words) -> str:
    """Return how many clients sent a closed loop, where it was not one."""
    if own.nodes:
        return t(
            ", {clients} clients on {nodes} nodes, times between them within {clock} ms",
            clients=own.processes,
            nodes=own.nodes,
            clock=number(entry.clock_ms),
        )
    return t(", {processes} processes", processes=own.processes) if own.processes > 1 else ""


def open_table(data: Any, t: Words) -> Table:
    """Return the open loops."""
    return Table(
        t("Open loops"),
        [
            t("Arrivals"),
            t("Offered requests/s"),
            t("Requests"),
            t("Failed"),
            t("Most in flight"),
            t("Schedule's own delay p50, max"),
            t("Kept up"),
        ],
        [
            [
                entry.arrival,
                number(entry.rate_per_s),
                str(entry.requests),
                str(entry.failed),
                str(entry.in_flight_max),
                f"{number(entry.delay_ms_p50)}, {number(entry.delay_ms_max)} ms",
                yes(not entry.overloaded, t),
            ]
            for entry in data.open_levels
        ],
        notes=("open",),
    )


def capacity_table(data: Any, t: Words) -> Table:
    """Return the rates that the search for capacity tried."""
    return Table(
        t("Search for capacity"),
        [t("Requests/s"), t("Goodput"), t("Kept up"), t("Meets")],
        [
            [
                number(trial.rate_per_s),
                f"{number(trial.goodput_percent, ends_of('%'))} %",
                yes(not trial.overloaded, t),
                yes(trial.meets, t),
            ]
            for trial in data.trials
        ],
    )


def yes(holds: bool, t: Words = ENGLISH) -> str:
    """Return whether it holds, so that what does not stands out."""
    return t("yes") if holds else t("NO")


def told(count: int | None, t: Words = ENGLISH) -> str:
    """Return a server's counter in words."""
    return t("not available") if count is None else str(count)


def ledger_facts(data: Any, t: Words = ENGLISH) -> list[str]:
    """Return the client's counts and means beside the server's own."""
    facts = []
    for count in data.ledger:
        said = t(
            "Ledger, {name}: {client} by the client, {server} by the server's counter",
            name=t.said(count.name),
            client=count.client,
            server=told(count.server, t),
        )
        if count.server is not None:
            said += t(", equal") if count.agrees else t(", NOT EQUAL: other clients were served, or requests failed")
        facts.append(f"{said}.")
    for check in data.means:
        said = t(
            "Mean {name}: {client} ms by the client, {server} by the server's metrics",
            name=check.name,
            client=f"{check.client_ms:.4g}",
            server=told(None, t) if check.server_ms is None else f"{check.server_ms:.4g} ms",
        )
        if check.server_ms is not None and check.agrees:
            said += t(" (within {tolerance} ms)", tolerance=f"{check.tolerance_ms:.3g}")
        elif check.server_ms is not None:
            said += t(" (OUTSIDE {tolerance} ms)", tolerance=f"{check.tolerance_ms:.3g}")
        facts.append(f"{said}.")
    return facts


def series_names(t: Words = ENGLISH) -> dict[str, str]:
    """Return what the series of memory are called."""
    return {"vram": "VRAM", "host_pss": t("host memory (PSS)"), "host_rss": t("host memory (RSS)")}


def memory_labels(t: Words = ENGLISH) -> dict[str, str]:
    """Return what the figures of memory are called."""
    parts = {
        "peak_mib": t("peak"),
        "steady_mib": t("steady (median under load)"),
        "range_mib": t("range under load"),
        "drift_mib_h": t("drift under load (Theil–Sen)"),
        "change_mib": t("last tenth of the load − first"),
        "stable": t("stable (n: seconds of load)"),
    }
    return {f"{series}_{part}": f"{name}, {words}" for series, name in series_names(t).items() for part, words in parts.items()}


def memory_scenario(
    outcome: Outcome[Any], closing: Outcome[Any], server: Outcome[Any], pictures: Sequence[str], t: Words, marks: Marks
) -> Scenario:
    """Return the guide's test 3, with what was left after the stop."""
    title = t("Test 3: VRAM usage")
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome, t), [], [])
    labels = memory_labels(t) | {
        "plan_error": t("error of the plan: planned peak above the measured one"),
        "kv_cache_peak": t("KV cache in use, highest reading under load"),
        "gpu_utilization": t("GPU utilisation, median under load"),
        "gpu_temperature_c": t("GPU temperature, median under load"),
        "gpu_power_w": t("GPU power, median under load"),
        "gpu_clock_mhz": t("GPU clock (SM), median under load"),
        "gpu_throttled": t("GPU throttled, by heat or power, share of samples under load"),
    }
    facts = load_facts(data, t)
    if data.method:
        facts.append(t("Told apart by: {method}.", method=t.said(data.method)))
    if len(data.device_peaks_mib) > 1:
        listed = ", ".join(f"GPU {at} {number(mib)} MiB" for at, mib in sorted(data.device_peaks_mib.items()))
        facts.append(t("VRAM, peak of each device: {devices}.", devices=listed))
    for series, name in series_names(t).items():
        against = data.figures.get(f"{series}_stable")
        if against is not None and against.value == 0:
            facts.append(t("NOT STABLE, {name}: {reasons}.", name=name, reasons=t.said(against.reason)))
    facts += sampling_facts(data, t)
    facts += plan_facts(server.data.plan if server.data else None, data, t)
    end = closing.data
    if end is None or end.launch_id != data.launch_id:
        facts.append(t("After stop: NOT_MEASURED, the server was not stopped by this run."))
    else:
        how = t("{count} processes had to be killed", count=len(end.killed)) if end.killed else t("ended when asked")
        port = t("port free") if end.port_free else t("PORT STILL TAKEN")
        facts.append(t("After stop ({seconds} s): {how}, {port}.", seconds=number(end.took_s), how=how, port=port))
        residual = end.residual()
        if residual is not None and residual.value is None:
            facts.append(t("VRAM residual: NOT_MEASURED, {reason}.", reason=t.said(residual.reason)))
        elif residual is not None:
            why = f" ({t.said(residual.reason)})" if residual.reason else ""
            facts.append(t("VRAM residual: {mib} MiB above the baseline{why}.", mib=number(residual.value), why=why))
    measured = {name: figure for name, figure in data.figures.items() if figure.value is not None or not name.startswith("gpu_")}
    return Scenario(title, "", facts, rows(outcome.stage, measured, labels, t, marks), pictures=list(pictures))


def load_facts(data: Any, t: Words = ENGLISH) -> list[str]:
    """Return whose load the figures are of, and how many samples."""
    load = data.load
    if load.seconds_by:
        listed = ", ".join(f"{name} {seconds:.4g} s" for name, seconds in load.seconds_by.items() if name != ADDED)
        said = t(
            "{samples} samples from before the start; {seconds} s of load count",
            samples=data.samples,
            seconds=f"{load.seconds:.4g}",
        )
        said += f": {listed}" if listed else ""
        if load.requests:
            added = f"{load.seconds_by.get(ADDED, 0):.4g}"
            said += t("; {seconds} s were added, {requests} requests", seconds=added, requests=load.requests)
        else:
            said += t("; none was added")
    else:  # a record from before other tests' load counted
        said = t(
            "{samples} samples from before the start; {seconds} s of load, {requests} requests",
            samples=data.samples,
            seconds=f"{load.seconds:.4g}",
            requests=load.requests,
        )
    if load.failed:
        said += t(", of which {failed} failed ({error})", failed=load.failed, error=load.error)
    return [f"{said}."]


def with_soak(scenario: Scenario, soak: Outcome[Any] | None, outcomes: Mapping[str, Outcome[Any]], t: Words = ENGLISH) -> Scenario:
    """Return the scenario with the soak on record: its figures where it is of the same launch, else of which launch it was."""
    made = soak.data if soak else None
    if made is None:
        return scenario
    memory, server = outcomes["measure-vram"].data, outcomes["serve"].data
    launch = memory.launch_id if memory else server.handle.launch_id if server and server.handle else None
    hours = {"hours": number(made.load.seconds / S_PER_H), "asked": f"{made.asked_h:g}", "launch": made.launch_id}
    if launch != made.launch_id:
        line = t("A soak of {hours} of {asked} h is on record (`artifacts/soak.json`), of another launch: {launch}.", **hours)
        return replace(scenario, facts=[*scenario.facts, line])
    states = {"complete": t("complete"), "running": t("running or killed"), "interrupted": t("interrupted"), "failed": t("failed")}
    told = [
        [label, measured_words(made.figures[name], bold="", t=t)]
        for name, label in memory_labels(t).items()
        if name in made.figures and made.figures[name].value is not None
    ]
    title = t(
        "Soak, {state}: {hours} of {asked} h of load, {requests} requests, {failed} failed (`artifacts/soak.json`)",
        state=states[made.state],
        hours=hours["hours"],
        asked=hours["asked"],
        requests=made.load.requests,
        failed=made.load.failed,
    )
    return replace(scenario, tables=[*scenario.tables, Table(title, [t("Figure"), t("Measured")], told, notes=("load", "stable"))])


def sampling_facts(data: Any, t: Words = ENGLISH) -> list[str]:
    """Return what the samples lack."""
    facts = []
    if data.gaps.count:
        gaps = data.gaps
        many = t("a gap") if gaps.count == 1 else t("{count} gaps", count=gaps.count)
        facts.append(
            t(
                "Samples are missing: {many}, {longest} s the longest, {total} s in all.",
                many=many,
                longest=number(gaps.longest_s),
                total=number(gaps.total_s),
            )
        )
    facts += [t("NVML failed in {count} samples: {name}.", count=count, name=name) for name, count in data.gpu_errors.items()]
    return facts


def plan_facts(plan: Any, data: Any, t: Words = ENGLISH) -> list[str]:
    """Return what was planned beside what the server's log says."""
    log = data.breakdown
    facts = []
    if data.preemptions is not None:
        facts.append(
            t(
                "Preemptions since the start: {count}; under this load: {under_load}.",
                count=data.preemptions,
                under_load=told(data.load.preempted, t),
            )
        )
    if plan is None:
        return facts
    devices = data.device_peaks_mib
    peak = max(devices.values()) if len(devices) > 1 else data.figures["vram_peak_mib"].value
    if peak is not None:
        facts.append(
            t(
                "Peak: {planned} MiB planned, {measured} measured ({off} %).",
                planned=number(plan.peak_mib),
                measured=number(peak),
                off=f"{100 * (plan.peak_mib / peak - 1):+.1f}",
            )
        )
    parts = [
        (t("weights"), plan.weights_mib, log.weights_mib),
        (t("activations"), plan.activations_mib, log.activations_mib),
        (t("CUDA graphs"), plan.graphs_mib, log.graphs_mib),
        (t("KV cache"), plan.kv_cache_mib, log.kv_cache_mib),
    ]
    listed = ", ".join(
        f"{name} {number(planned)} MiB ({t('not in the log') if seen is None else t('log: {mib}', mib=number(seen))})"
        for name, planned, seen in parts
    )
    facts.append(
        t(
            "Plan for {budget} MiB, beside vLLM's log: {parts}; context {context} MiB planned.",
            budget=number(plan.budget_mib),
            parts=listed,
            context=number(plan.context_mib),
        )
    )
    if log.kv_tokens is not None:
        off = f"{100 * (plan.kv_tokens / log.kv_tokens - 1):+.1f}"
        facts.append(
            t("KV cache: {seen} tokens by the log, {planned} planned ({off} %).", seen=log.kv_tokens, planned=plan.kv_tokens, off=off)
        )
    return facts


def alternative_row(
    entry: Alternative,
    profile: str,
    outcomes: Mapping[str, Outcome[Any]],
    t: Words = ENGLISH,
    marks: Marks | None = None,
    cells: Sequence[CellRecord] = (),
) -> tuple[str, str, str, str, str]:
    """Return the guide's row with what this run measured of that model."""
    known = entry.model, entry.size, entry.vram, t.given(entry.use_case)
    if entry.profile != profile:
        note = t("not measured in this run")
        of_sweep = [cell for cell in cells if cell.profile == entry.profile]
        if of_sweep:
            return *known, t("{note}; in the sweep below: {states}", note=note, states=counted_states(of_sweep, t))
        return *known, f"{note}; `./inv all --profile {entry.profile}`" if entry.profile else note
    found = [(outcomes["measure-vram"], "vram_peak_mib"), (outcomes["bench"], "decode_tok_s_p50")]
    parts = [
        measured_words(outcome.data.figures.get(name), t=t, marks=(marks or {}).get(f"{outcome.stage}.{name}", ()))
        for outcome, name in found
        if outcome.data
    ]
    return *known, ", ".join(parts) or "NOT_MEASURED"


def counted_states(cells: Sequence[CellRecord], t: Words = ENGLISH) -> str:
    """Return how many cells of a sweep are in which state."""
    called = {
        "measured": t("measured"),
        "failed": t("failed"),
        "skipped": t("skipped"),
        "interrupted": t("interrupted"),
        "waiting": t("not run yet"),
    }
    counts = Counter[str](cell.state for cell in cells)
    return ", ".join(f"{counts[state]} {name}" for state, name in called.items() if counts[state])


def stage_row(outcome: Outcome[Any], t: Words = ENGLISH) -> StageRow:
    """Return how a stage ended."""
    envelope, failure = outcome.envelope, outcome.failure
    kind = "ok" if failure is None else "skipped" if failure.kind in (BLOCKED, MeaninglessError.kind) else "failed"
    if envelope is None:
        if failure is None:
            return StageRow(outcome.stage, t("never ran"), "", "")
        return StageRow(outcome.stage, t.said(failure.message), "", "", kind)
    state = "ok" if envelope.data else t("failed: {message}", message=t.said(failure.message) if failure else "")
    return StageRow(outcome.stage, state, f"{number(envelope.duration_s)} s", moment(envelope.started), kind)


def moment(when: datetime) -> str:
    """Return a wall-clock label."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def environment(outcomes: Mapping[str, Outcome[Any]], t: Words = ENGLISH) -> list[tuple[str, str]]:
    """Return what the figures depend on."""
    result: list[tuple[str, str]] = []
    machine, installation, model, server = (outcomes[name].data for name in ("check-gpu", "install", "download-model", "serve"))
    if machine:
        host = machine.host
        said = t(
            "{cpu}, {cores} cores, {vector}, {memory} MiB",
            cpu=host.cpu,
            cores=host.cores,
            vector=" ".join(host.vector) or t("no wide vectors"),
            memory=host.memory_mib,
        )
        result.append((t("Processor"), said))
        for gpu in machine.gpus:
            said = t(
                "{name}, {mib} MiB, compute capability {capability}",
                name=gpu.name,
                mib=f"{gpu.total_mib:.0f}",
                capability=gpu.compute_capability,
            )
            result.append(("GPU", said))
        driver = machine.driver
        none = t("none: {reason}", reason=t.said(machine.reason))
        result.append((t("NVIDIA driver"), f"{driver.version} (CUDA {driver.cuda})" if driver else none))
    if installation:
        result.append(
            ("vLLM", f"{installation.distribution} {installation.vllm}, torch {installation.torch}, Python {installation.python}")
        )
        pinned = f", sha256 {installation.requirements_sha256[:12]}" if installation.requirements_sha256 else ""
        why = t("set {name} ({reason})", name=installation.set, reason=t.said(installation.reason))
        result.append((t("Requirements"), why + pinned))
    if model:
        facts = model.facts
        size = sum(entry.bytes for entry in model.files) / 2**20
        result.append((t("Model"), t("{name} from {origin}, {revision}", name=model.name, origin=model.origin, revision=model.revision)))
        shape = t("{tokens} tokens", tokens=facts.context_length)
        listed = [facts.architecture, facts.dtype, facts.quantization or t("unquantised"), shape, f"{size:.0f} MiB"]
        licence = forbidding_licence(model, t) or t("licence {licence}", licence=facts.license or t("not stated"))
        result.append((t("Model facts"), f"{', '.join(str(part) for part in listed)}; {licence}"))
    if server and not server.attached:
        phases = ", ".join(f"{t.said(name)} {seconds:.1f}" for name, seconds in server.handle.phases_s.items())
        result.append((t("Server ready after"), f"{server.handle.ready_s:.1f} s ({phases})"))
    envelope = outcomes["check-gpu"].envelope
    if envelope:
        result.append((t("Pipeline"), envelope.host))
    return result


def shell_command(variables: Mapping[str, str], words: Sequence[str]) -> str:
    """Return the exact command, one option a line."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    current = ""
    for word in words:
        if word.startswith("--") and current:
            lines.append(current)
            current = ""
        current = f"{current} {shlex.quote(word)}".strip()
    return " \\\n  ".join([*lines, current])


def missing(judged: Sequence[JudgedGate], scenarios: Sequence[Scenario], t: Words = ENGLISH) -> list[tuple[str, str]]:
    """Return what was not measured, and why."""
    result = [
        (t.given(row.gate.label), t.said(row.judgement.reason)) for row in judged if row.judgement.verdict in ("NOT_MEASURED", "SIMULATED")
    ]
    result += [(scenario.title, scenario.reason) for scenario in scenarios if scenario.reason]
    return list(dict.fromkeys(result))
