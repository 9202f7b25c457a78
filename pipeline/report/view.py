"""From records to what the templates show: words and formatted figures, no layout."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from pipeline.config import Alternative, Gate, ReportConfig, is_loopback
from pipeline.errors import MeaninglessError
from pipeline.gpu.remedies import NoRemedy, Remedy, remedy_for
from pipeline.measure.figures import Figure
from pipeline.measure.memory import SERIES
from pipeline.measure.verdicts import SIGNS
from pipeline.record import BLOCKED, Failure, Outcome
from pipeline.report.gates import Judged, JudgedGate

MARKS = {
    "PASS": "✅ PASS",
    "FAIL": "❌ FAIL",
    "INCONCLUSIVE": "⚠️ INCONCLUSIVE",
    "NOT_MEASURED": "▫️ NOT_MEASURED",
    "SIMULATED": "🚫 SIMULATED",
}


MEMORY_PARTS = {
    "peak_mib": "peak",
    "steady_mib": "steady (median under load)",
    "range_mib": "range under load",
    "drift_mib_h": "drift under load (Theil–Sen)",
    "change_mib": "last tenth of the load − first",
    "stable": "stable (n: seconds of load)",
}
NOTES = ("stop", "determinism-remedy")  # records that no stage makes

THROTTLED_PERCENT = 5  # of the samples under load; a touch of the power limit is no news
RANDOM_WEIGHTS = "This model has the shape of the real one and random weights: speed and memory are real, its answers are noise."


@dataclass(frozen=True)
class GateRow:
    """One line of a table of targets."""

    label: str
    target: str
    measured: str
    verdict: str
    source: str


@dataclass(frozen=True)
class FigureRow:
    """One figure: what it is, its value with bounds and n, and where it stands."""

    label: str
    measured: str
    source: str


@dataclass(frozen=True)
class StageRow:
    """One stage: how it ended, how long it took, when."""

    name: str
    state: str
    took: str
    when: str


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


def build_view(
    settings: ReportConfig,
    profile: str,
    given: Sequence[str],
    instead: Sequence[str],
    alternatives: Sequence[Alternative],
    judged: Judged,
    pictures: Sequence[str] = (),
) -> View:
    """Return what the report shows of these outcomes."""
    outcomes = judged.outcomes
    server = outcomes["serve"].data
    model = outcomes["download-model"].data
    measured = [outcomes[name].envelope for name in ("test-router", "test-determinism", "bench", "measure-vram")]
    times = [envelope.started for envelope in measured if envelope and envelope.data]
    scenarios = [
        router_scenario(outcomes["test-router"]),
        determinism_scenario(outcomes["test-determinism"], outcomes["serve"], outcomes["check-gpu"], outcomes["determinism-remedy"]),
        bench_scenario(outcomes["bench"]),
        memory_scenario(outcomes["measure-vram"], outcomes["stop"], outcomes["serve"], pictures),
    ]
    return View(
        title=settings.title,
        headline=headline(judged),
        alert={0: "TIP", 1: "CAUTION"}.get(judged.code, "WARNING"),
        profile=profile,
        again=shlex.join(["./inv", "all", "--profile", profile, *(word for setting in given for word in ("--set", setting))]),
        model=server.model if server else model.name if model else "no model",
        device=server.device if server else "no server",
        measured_on=f"measured {min(times):%Y-%m-%d %H:%M} UTC" if times else "nothing was measured",
        cautions=[
            *instead,
            *(cautions(server) if server else []),
            *uncounted(outcomes["bench"].data),
            *throttled(outcomes["measure-vram"].data),
        ],
        targets=[gate_row(row) for row in judged.gates if row.gate.table == "targets"],
        criteria=[gate_row(row) for row in judged.gates if row.gate.table == "criteria"],
        scenarios=scenarios,
        alternatives=[alternative_row(entry, profile, outcomes) for entry in alternatives],
        stages=[stage_row(outcome) for name, outcome in outcomes.items() if name not in NOTES],
        failures=failure_notes(outcomes),
        environment=environment(outcomes),
        command=shell_command(server.environment, server.command) if server else "",
        proofs=[(proof.claim, "yes" if proof.holds else "no", proof.seen) for proof in server.proofs] if server else [],
        not_measured=missing(judged.gates, scenarios),
    )


def cautions(server: Any) -> list[str]:
    """Return what a reader must know before any figure."""
    found = []
    if server.attached:
        found.append(
            f"Measured on the server at {server.attached}, which someone else runs: its identity is what its endpoint shows, "
            "and its life cycle and memory were not ours to measure."
        )
    found += [f"A start failed and was repeated with {entry.changed}: {entry.cause}." for entry in server.attempts]
    if server.random_weights:
        found.append(RANDOM_WEIGHTS)
    if "--trust-remote-code" in server.command:
        found.append("The server ran code that came with the model (`serve.trust_remote_code`).")
    host = server.command[server.command.index("--host") + 1] if "--host" in server.command else ""
    if host and not is_loopback(host):
        found.append(f"The server listened on {host}, open to everyone who reached that machine, with an API key.")
    return found


def uncounted(bench: Any) -> list[str]:
    """Return that client and server did not count the same, where both counted."""
    differ = [count for count in bench.ledger if count.server is not None and not count.agrees] if bench else []
    listed = ", ".join(f"{count.name} {count.client} and {count.server}" for count in differ)
    return [f"Client and server did not count the same ({listed}): others were served meanwhile, or requests failed."] if differ else []


def throttled(memory: Any) -> list[str]:
    """Return that the GPU was slower than it could be for more than a moment of the load, where it was."""
    share = memory.figures.get("gpu_throttled") if memory else None
    if share is None or share.value is None or share.value < THROTTLED_PERCENT:
        return []
    reasons = ", ".join(f"{name} in {count}" for name, count in memory.throttled.items())
    said = f"The GPU was throttled in {number(share.value)} % of {share.n} samples under load ({reasons})"
    return [f"{said}: better cooled or fed it is faster."]


def failure_notes(outcomes: Mapping[str, Outcome[Any]]) -> list[FailureNote]:
    """Return the stages that failed by themselves."""
    failures = [(name, outcome.failure) for name, outcome in outcomes.items()]
    return [FailureNote(name, failure) for name, failure in failures if failure and failure.kind not in (BLOCKED, MeaninglessError.kind)]


def headline(judged: Judged) -> str:
    """Return the verdict in one line."""
    required, failures = [row for row in judged.gates if row.gate.required], failure_notes(judged.outcomes)
    if judged.code == 2 and not required and not failures:
        return "NOT MEASURED: no gate is required."
    word = {0: "PASS", 1: "NOT PASSED", 2: "NOT MEASURED"}[judged.code]
    waived = [row for row in required if row.waived]
    passed = sum(row.judgement.verdict == "PASS" for row in required)
    counts = f"all {passed}" if passed == len(required) and judged.code == 0 else f"{passed} of {len(required)}"
    note = f", {len(waived)} {'is' if len(waived) == 1 else 'are'} waived" if waived else ""
    said = f"{word}: {counts} required gates pass{note}."
    if failures:
        return f"{said} {failures[0].stage} failed: {failures[0].failure.message}."
    # Where a waiver covers all that is open and the run is no pass all the same, these are what it lacks.
    bad = [row for row in required if row.counts and row.judgement.verdict != "PASS"] or waived
    listed = ", ".join(f"{row.gate.label} ({row.judgement.verdict})" for row in bad)
    return f"{said} Open: {listed}." if judged.code else said


def gate_row(row: JudgedGate) -> GateRow:
    """Return the row of a judged gate."""
    gate = row.gate
    verdict = with_notes(MARKS[row.judgement.verdict], row.waiver, row.judgement.reason)
    if not gate.required:
        verdict += " (not required by this profile)"
    stage, _, metric = gate.metric.partition(".")
    return GateRow(
        gate.label,
        target_words(gate),
        measured_words(row.figure),
        verdict,
        source(stage, metric),
    )


def with_notes(verdict: str, waiver: str, reason: str) -> str:
    """Return the verdict with its waiver and its reason, where it has them."""
    return verdict + (f" ({waiver})" if waiver else "") + (f": {reason}" if reason else "")


def target_words(gate: Gate) -> str:
    """Return what the figure must meet."""
    return f"{SIGNS[gate.comparator]} {gate.target:g} {gate.unit}{f' ({gate.statistic})' if gate.statistic else ''}"


def measured_words(figure: Figure | None, bold: str = "**") -> str:
    """Return value, bounds and n as words."""
    if figure is None or figure.value is None:
        return "NOT_MEASURED"
    bounds = []
    if figure.low is not None:
        bounds.append(f"≥ {number(figure.low)}")
    if figure.high is not None:
        bounds.append(f"≤ {number(figure.high)}")
    return f"{bold}{number(figure.value)} {figure.unit}{bold} (n = {figure.n}{'; 95 %: ' + ', '.join(bounds) if bounds else ''})"


def number(value: float) -> str:
    """Return `value` with three significant digits, whole from 100 on, never in powers of ten."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{Decimal(f'{value:.3g}'):f}" if value else "0"


def source(stage: str, metric: str) -> str:
    """Return where the figure stands."""
    return f"`artifacts/{stage}.json` → `{metric}`"


def rows(stage: str, figures: Mapping[str, Figure], labels: Mapping[str, str]) -> list[FigureRow]:
    """Return the labelled ones of the stage's figures."""
    return [FigureRow(label, measured_words(figures[name]), source(stage, name)) for name, label in labels.items() if name in figures]


def reason_of(outcome: Outcome[Any]) -> str:
    """Return why the outcome has no data; empty when it has."""
    if outcome.data is not None:
        return ""
    return outcome.failure.message if outcome.failure else "this stage never ran"


def router_scenario(outcome: Outcome[Any]) -> Scenario:
    """Return the guide's test 1."""
    title = "Test 1: Router JSON output"
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), [], [])
    names = {
        "answered": "requests answered",
        "json_strict": "strictly JSON",
        "json_lenient": "JSON after extraction",
        "repair_rate": "JSON only after extraction",
        "schema_valid": "valid against the schema",
        "truncated": "cut off at max_tokens",
        "route_accuracy": "route right",
        "route_macro_f1": "macro-F1 of the routes",
        "joint_accuracy": "route, intent and slots right",
        "ttft_ms_p50": "TTFT, median",
        "latency_ms_p50": "E2E latency, median",
        "latency_ms_p95": "E2E latency, p95",
    }
    unary = ("answered", "json_strict", "schema_valid", "route_accuracy", "latency_ms_p50")
    words = {"prompt_only": "prompt-only", "constrained": "constrained"}
    labels = {f"{arm}_{name}": f"{word}: {label}" for arm, word in words.items() for name, label in names.items()}
    labels["majority_baseline"] = f"baseline: always `{data.majority_route}`"
    labels |= {
        "constraint_ttft_ms_p50": "cost of the schema, per case: TTFT, median",
        "constraint_ms_per_token_p50": "cost of the schema, per case: E2E latency / output tokens, median",
        "constraint_latency_ms_p50": "cost of the schema, per case: E2E latency, median",
        "constraint_route_accuracy_points": "gain by the schema: route right, percentage points",
    }
    for arm, word in words.items():
        labels |= {f"{arm}_unary_{name}": f"{word}, in one piece: {names[name]}" for name in unary}
        labels[f"{arm}_unary_same_text"] = f"{word}, in one piece: same text as streamed"
    facts = [
        f"Suite `{data.suite}` ({data.language}), {data.cases} cases streamed and {data.unary_cases} in one piece, each arm, "
        "one at a time, temperature 0."
    ]
    for arm, classes in data.failures.items():
        listed = ", ".join(f"{name} {count}" for name, count in classes.items()) or "none"
        facts.append(f"Failure classes, {arm.replace('_', '-')}: {listed}.")
    pairs = data.routes_paired
    facts.append(
        f"Routes, case by case: both arms right {pairs.both}, only prompt-only {pairs.only_prompt_only}, only constrained "
        f"{pairs.only_constrained}, neither {pairs.neither}; McNemar's exact p of the difference {pairs.p:.2g}."
    )
    tables = [confusion_table(words[arm], counts) for arm, counts in data.confusion.items()]
    examples = [(example.case, example.arm.replace("_", "-"), example.failure, example.text) for example in data.examples]
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels), examples, tables)


def confusion_table(arm: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Return how often each golden route was answered with which."""
    told = sorted({guess for row in counts.values() for guess in row})
    return Table(
        f"Routes, {arm}: golden down, answered across",
        ["Golden", *told],
        [[golden, *(str(row.get(guess, 0)) for guess in told)] for golden, row in counts.items()],
    )


def determinism_scenario(outcome: Outcome[Any], server: Outcome[Any], machine: Outcome[Any], remedied: Outcome[Any]) -> Scenario:
    """Return the guide's test 2, the arms beside it, and what a remedy did on a server like this one."""
    title = "Test 2: Determinism"
    data, proof = outcome.data, remedied.data
    alike = proof and server.data and (proof.model, proof.vllm) == (server.data.model, server.data.vllm)
    tables = [remedy_table(proof)] if alike else []
    if data is None:
        return Scenario(title, reason_of(outcome), [], [], tables=tables)
    facts = [f"D1, the guide's test: temperature 0, seed {data.seed}, one after the other, compared as token ids."]
    same = [prompt for prompt in data.prompts if prompt.agreeing == prompt.runs]
    if same:
        lengths = sorted({min(prompt.tokens for prompt in same), max(prompt.tokens for prompt in same)})
        span = " to ".join(str(length) for length in lengths)
        facts.append(f"D1, {len(same)} of {len(data.prompts)} prompts: all {same[0].runs} answers identical, {span} tokens.")
    for prompt in data.prompts:
        if prompt not in same:
            facts.append(f"D1, {prompt.prompt!r}: {prompt.agreeing} of {prompt.runs} identical{divergence([prompt])}.")
    for arm in data.arms:
        if arm.reason:
            facts.append(f"{arm.arm}, {arm.what}: NOT_MEASURED, {arm.reason}.")
            continue
        evidence = f" ({arm.evidence})" if arm.evidence else ""
        against = "the first answer" if arm.arm == "D5" else "the sequential answer"
        facts.append(f"{arm.arm}, {arm.what}: {arm.agreeing} of {arm.runs} equal {against}{divergence(arm.prompts)}{evidence}.")
    if server.data is not None:
        facts.append(batch_invariance(server.data))
        parted = len(same) < len(data.prompts) or any(arm.agreeing < arm.runs for arm in data.arms if arm.arm != "D5")
        if parted and machine.data is not None:
            facts.append(remedy_words(remedy_for(server.data.distribution, machine.data.gpus, server.data.attached), server.data))
    labels = {
        "identical": "D1: identical answers",
        "tarr": "D1: prompts whose answers all agree (TARr@N)",
        "tara": "D1: the same as canonical JSON (TARa@N)",
        "d2_identical": "D2: identical with a cold and a warm prefix cache",
        "d3_identical": "D3: identical under load",
        "d4_identical": "D4: identical after a restart",
        "d5_same_seed_identical": "D5: control, the same seed (must be 100 %)",
        "d5_other_seed_identical": "D5: control, another seed (must be under 100 %)",
    }
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels), tables=tables)


def remedy_words(found: Remedy | NoRemedy, server: Any) -> str:
    """Return what helps against answers that differ, or why nothing is known to."""
    if isinstance(found, NoRemedy):
        return f"No remedy is known here: {found.reason}."
    proof = "`./inv determinism-remedy` measures without and with it"
    if found.in_force(server.environment):
        return f"The remedy for this device, `{found}`, is in force already and so does not help; {proof}."
    return f"Remedy for this device: `{found}` in `serve.env` ({found.why}); {proof}."


def remedy_table(proof: Any) -> Table:
    """Return what was measured without and with the remedy, side by side."""
    sides = (proof.without, proof.remedied)
    arms = dict.fromkeys((arm.arm, arm.what) for side in sides for arm in side.arms if arm.arm != "D5")
    optional = {
        "failed requests for speed": [f"{len(side.errors)}: {side.errors[0]}" if side.errors else "" for side in sides],
        "a failed start was repeated with": ["; ".join(attempt.changed for attempt in side.attempts) for side in sides],
        "failed": [side.failure.message if side.failure else "" for side in sides],
        "SIMULATED, not a real vLLM": ["yes" if side.simulated else "" for side in sides],
    }
    return Table(
        f"Answers equal to the sequential ones, and speed, without and with `{proof.variable}={proof.value}` "
        f"({proof.distribution} {proof.vllm} on {proof.device}; `artifacts/determinism-remedy.json`)",
        ["", f"without `{proof.variable}`", f"with `{proof.variable}={proof.value}`"],
        [
            *([f"{arm}, {what}", *(arm_words(side.arms, arm, what) for side in sides)] for arm, what in arms),
            ["decode at concurrency 1, median", *(speed_words(side.decode_tok_s) for side in sides)],
            [f"system throughput at concurrency {proof.concurrency}", *(speed_words(side.system_tok_s) for side in sides)],
            ["launches", *(", ".join(side.launch_ids) or "none" for side in sides)],
            *([name, *(cell or "no" for cell in cells)] for name, cells in optional.items() if any(cells)),
        ],
    )


def arm_words(arms: Sequence[Any], name: str, what: str) -> str:
    """Return how many answers of that arm agreed, or why none was asked for."""
    arm = next((arm for arm in arms if (arm.arm, arm.what) == (name, what)), None)
    if arm is None:
        return "not measured"
    return f"not measured: {arm.reason}" if arm.reason else f"{arm.agreeing} of {arm.runs}{divergence(arm.prompts)}"


def speed_words(figure: Figure) -> str:
    """Return the figure, or why there is none."""
    return f"not measured: {figure.reason}" if figure.value is None else measured_words(figure, bold="")


def divergence(prompts: Sequence[Any]) -> str:
    """Return where the answers first part, and how close the model's two best tokens were there."""
    parted = [prompt for prompt in prompts if prompt.first_divergence is not None]
    if not parted:
        return ""
    first = min(parted, key=lambda prompt: prompt.first_divergence)
    gap = "" if first.gap is None else f" (logprob gap of the two best there {first.gap:.3g})"
    return f", first difference at token {first.first_divergence}{gap}"


def batch_invariance(server: Any) -> str:
    """Return whether answers are promised to be independent of the load."""
    if server.environment.get("VLLM_BATCH_INVARIANT") == "1":
        return "`VLLM_BATCH_INVARIANT=1`: vLLM promises answers that do not depend on what else it computes."
    return "Without `VLLM_BATCH_INVARIANT=1` vLLM does not promise the same answer under another load."


def bench_scenario(outcome: Outcome[Any]) -> Scenario:
    """Return latency and throughput."""
    title = "Latency and throughput"
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), [], [])
    labels = {
        "ttft_ms_p50": "TTFT, cold prefix cache, median",
        "ttft_ms_p95": "TTFT, cold prefix cache, p95",
        "ttft_warm_ms_p50": "TTFT, warm prefix cache, median",
        "ttft_warm_ms_p95": "TTFT, warm prefix cache, p95",
        "first_byte_ms_p50": "time to first byte, median",
        "tpot_ms_p50": "TPOT, median",
        "itl_ms_p50": "ITL, median",
        "itl_ms_p95": "ITL, p95",
        "decode_tok_s_p50": "decode throughput at concurrency 1, median",
        "e2e_ms_p50": f"E2E latency of {data.output_tokens} tokens, median",
    }
    for entry in data.levels:
        labels[f"system_tok_s_c{entry.concurrency}"] = f"system throughput, closed loop, concurrency {entry.concurrency}"
        labels[f"goodput_c{entry.concurrency}"] = f"goodput, closed loop, concurrency {entry.concurrency}"
    for entry in data.open_levels:
        name = f"open loop, {entry.arrival} arrivals at {number(entry.rate_per_s)} requests/s"
        labels[f"{entry.arrival}_ttft_ms_p95"] = f"TTFT from the scheduled send, p95, {name}"
        labels[f"{entry.arrival}_e2e_ms_p50"] = f"E2E latency from the scheduled send, median, {name}"
        labels[f"{entry.arrival}_e2e_ms_p95"] = f"E2E latency from the scheduled send, p95, {name}"
        labels[f"{entry.arrival}_goodput"] = f"goodput, {name}"
    labels["capacity_req_s"] = "capacity: highest rate that meets the limits"
    first = "failed" if data.first_request_ttft_ms is None else f"{number(data.first_request_ttft_ms)} ms"
    bounds = {"TTFT": data.limits.ttft_ms, "TPOT": data.limits.tpot_ms, "E2E": data.limits.e2e_ms}
    limits = ", ".join(f"{name} < {number(limit)} ms" for name, limit in bounds.items() if limit is not None) or "none"
    facts = [
        f"Prompt {data.prompt_tokens} tokens, {data.output_tokens} output tokens (ignore_eos), tokens per chunk "
        f"{number(data.tokens_per_chunk)}. Cold: a cache salt per request; warm: the same requests again.",
        f"Tokens from the prefix cache by the server's own counter: cold {told(data.cold_hit_tokens)}, warm {told(data.warm_hit_tokens)}.",
        f"First request of the run: {first} to the first token. Not counted: it, {data.warmups} warm-ups, and those of each concurrency.",
        f"Goodput: requests that meet {limits} (the gates' limits), of all that were sent.",
        *ledger_facts(data),
        f"The client against a stub: it takes {data.ceiling_chunks_s:.0f} chunks/s at most; delays and CPU time per chunk are below.",
    ]
    facts += [f"INVALID at concurrency {entry.concurrency}: {entry.invalid}." for entry in data.levels if entry.invalid]
    behind = [entry for entry in data.open_levels if entry.overloaded]
    facts += [f"OVER-SATURATED at {number(entry.rate_per_s)} requests/s ({entry.arrival}): latency kept rising." for entry in behind]
    failed = sum(entry.failed for entry in (*data.levels, *data.open_levels))
    if failed:
        facts.append(f"{failed} requests under load failed.")
    tables = [
        Table(
            "Closed loops, and the client there",
            [
                "Concurrency",
                "Requests (warm-ups)",
                "Failed",
                "tok/s",
                "while full",
                "Client: chunk delay p50, p95",
                "per chunk",
                "CPU share",
            ],
            [
                [
                    str(entry.concurrency),
                    f"{entry.requests} ({entry.warmups})",
                    str(entry.failed),
                    number(entry.throughput_tok_s),
                    "never full" if entry.steady_tok_s is None else number(entry.steady_tok_s),
                    f"{number(own.delay_ms_p50)}, {number(own.delay_ms_p95)} ms",
                    f"{number(own.cpu_us_per_chunk)} µs",
                    f"{100 * entry.client_cpu_share:.2g} % of a core" + (f", {own.processes} processes" if own.processes > 1 else ""),
                ]
                for entry, own in zip(data.levels, data.calibrations, strict=True)
            ],
        ),
        Table(
            "Open loops",
            ["Arrivals", "Offered requests/s", "Requests", "Failed", "Most in flight", "Schedule's own delay p50, max", "Kept up"],
            [
                [
                    entry.arrival,
                    number(entry.rate_per_s),
                    str(entry.requests),
                    str(entry.failed),
                    str(entry.in_flight_max),
                    f"{number(entry.delay_ms_p50)}, {number(entry.delay_ms_max)} ms",
                    yes(not entry.overloaded),
                ]
                for entry in data.open_levels
            ],
        ),
        Table(
            "Search for capacity",
            ["Requests/s", "Goodput", "Kept up", "Meets"],
            [
                [
                    number(trial.rate_per_s),
                    f"{number(trial.goodput_percent)} %",
                    "NO" if trial.overloaded else "yes",
                    "yes" if trial.meets else "NO",
                ]
                for trial in data.trials
            ],
        ),
    ]
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels), tables=[table for table in tables if table.rows])


def yes(holds: bool) -> str:
    """Return whether it holds, so that what does not stands out."""
    return "yes" if holds else "NO"


def told(count: int | None) -> str:
    """Return a server's counter in words."""
    return "not available" if count is None else str(count)


def ledger_facts(data: Any) -> list[str]:
    """Return the client's counts and means beside the server's own."""
    facts = []
    for count in data.ledger:
        agrees = "" if count.server is None else ", equal" if count.agrees else ", NOT EQUAL: other clients were served, or requests failed"
        facts.append(f"Ledger, {count.name}: {count.client} by the client, {told(count.server)} by the server's counter{agrees}.")
    for check in data.means:
        seen = "not available" if check.server_ms is None else f"{check.server_ms:.4g} ms"
        within = "" if check.server_ms is None else f" ({'within' if check.agrees else 'OUTSIDE'} {check.tolerance_ms:.3g} ms)"
        facts.append(f"Mean {check.name}: {check.client_ms:.4g} ms by the client, {seen} by the server's metrics{within}.")
    return facts


def memory_scenario(outcome: Outcome[Any], closing: Outcome[Any], server: Outcome[Any], pictures: Sequence[str] = ()) -> Scenario:
    """Return the guide's test 3, with what was left after the stop."""
    title = "Test 3: VRAM usage"
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), [], [])
    labels = {f"{series}_{part}": f"{name}, {words}" for series, name in SERIES.items() for part, words in MEMORY_PARTS.items()}
    labels |= {
        "plan_error": "error of the plan: planned peak above the measured one",
        "kv_cache_peak": "KV cache in use, highest reading under load",
        "gpu_utilization": "GPU utilisation, median under load",
        "gpu_temperature_c": "GPU temperature, median under load",
        "gpu_power_w": "GPU power, median under load",
        "gpu_clock_mhz": "GPU clock (SM), median under load",
        "gpu_throttled": "GPU throttled, by heat or power, share of samples under load",
    }
    load = data.load
    failed = f", of which {load.failed} failed ({load.error})" if load.failed else ""
    facts = [f"{data.samples} samples from before the start; {load.seconds:.4g} s of load, {load.requests} requests{failed}."]
    if data.method:
        facts.append(f"Told apart by: {data.method}.")
    for series, name in SERIES.items():
        against = data.figures.get(f"{series}_stable")
        if against is not None and against.value == 0:
            facts.append(f"NOT STABLE, {name}: {against.reason}.")
    facts += sampling_facts(data)
    facts += plan_facts(server.data.plan if server.data else None, data)
    end = closing.data
    if end is None or end.launch_id != data.launch_id:
        facts.append("After stop: NOT_MEASURED, the server was not stopped by this run.")
    else:
        how = "ended when asked" if not end.killed else f"{len(end.killed)} processes had to be killed"
        port = "port free" if end.port_free else "PORT STILL TAKEN"
        facts.append(f"After stop ({number(end.took_s)} s): {how}, {port}.")
        residual = end.residual_mib()
        if residual is not None:
            facts.append(f"VRAM residual: {number(residual)} MiB above the baseline.")
    measured = {name: figure for name, figure in data.figures.items() if figure.value is not None or not name.startswith("gpu_")}
    return Scenario(title, "", facts, rows(outcome.stage, measured, labels), pictures=list(pictures))


def sampling_facts(data: Any) -> list[str]:
    """Return what the samples lack."""
    facts = []
    if data.gaps.count:
        gaps = data.gaps
        many = "a gap" if gaps.count == 1 else f"{gaps.count} gaps"
        facts.append(f"Samples are missing: {many}, {number(gaps.longest_s)} s the longest, {number(gaps.total_s)} s in all.")
    facts += [f"NVML failed in {count} samples: {name}." for name, count in data.gpu_errors.items()]
    return facts


def plan_facts(plan: Any, data: Any) -> list[str]:
    """Return what was planned beside what the server's log says."""
    log = data.breakdown
    facts = []
    if data.preemptions is not None:
        facts.append(f"Preemptions since the start: {data.preemptions}; under this load: {told(data.load.preempted)}.")
    if plan is None:
        return facts
    peak = data.figures["vram_peak_mib"].value
    if peak is not None:
        off = 100 * (plan.peak_mib / peak - 1)
        facts.append(f"Peak: {number(plan.peak_mib)} MiB planned, {number(peak)} measured ({off:+.1f} %).")
    parts = [
        ("weights", plan.weights_mib, log.weights_mib),
        ("activations", plan.activations_mib, log.activations_mib),
        ("CUDA graphs", plan.graphs_mib, log.graphs_mib),
        ("KV cache", plan.kv_cache_mib, log.kv_cache_mib),
    ]
    words = [
        f"{name} {number(planned)} MiB ({'log: ' + number(seen) if seen is not None else 'not in the log'})"
        for name, planned, seen in parts
    ]
    facts.append(
        f"Plan for {number(plan.budget_mib)} MiB, beside vLLM's log: {', '.join(words)}; context {number(plan.context_mib)} MiB planned."
    )
    if log.kv_tokens is not None:
        off = 100 * (plan.kv_tokens / log.kv_tokens - 1)
        facts.append(f"KV cache: {log.kv_tokens} tokens by the log, {plan.kv_tokens} planned ({off:+.1f} %).")
    return facts


def alternative_row(entry: Alternative, profile: str, outcomes: Mapping[str, Outcome[Any]]) -> tuple[str, str, str, str, str]:
    """Return the guide's row with what this run measured of that model."""
    if entry.profile != profile:
        note = f"not measured in this run; `./inv all --profile {entry.profile}`" if entry.profile else "not measured in this run"
        return entry.model, entry.size, entry.vram, entry.use_case, note
    memory, bench = outcomes["measure-vram"].data, outcomes["bench"].data
    parts = [measured_words(memory.figures["vram_peak_mib"])] if memory else []
    parts += [measured_words(bench.figures["decode_tok_s_p50"])] if bench else []
    return entry.model, entry.size, entry.vram, entry.use_case, ", ".join(parts) or "NOT_MEASURED"


def stage_row(outcome: Outcome[Any]) -> StageRow:
    """Return how a stage ended."""
    envelope = outcome.envelope
    if envelope is None:
        return StageRow(outcome.stage, outcome.failure.message if outcome.failure else "never ran", "", "")
    state = "ok" if envelope.data else f"failed: {envelope.failure.message if envelope.failure else ''}"
    return StageRow(outcome.stage, state, f"{number(envelope.duration_s)} s", moment(envelope.started))


def moment(when: datetime) -> str:
    """Return a wall-clock label."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def environment(outcomes: Mapping[str, Outcome[Any]]) -> list[tuple[str, str]]:
    """Return what the figures depend on."""
    result: list[tuple[str, str]] = []
    machine, installation, model, server = (outcomes[name].data for name in ("check-gpu", "install", "download-model", "serve"))
    if machine:
        host = machine.host
        result.append(("Processor", f"{host.cpu}, {host.cores} cores, {' '.join(host.vector) or 'no wide vectors'}, {host.memory_mib} MiB"))
        result += [("GPU", f"{gpu.name}, {gpu.total_mib:.0f} MiB, compute capability {gpu.compute_capability}") for gpu in machine.gpus]
        driver = f"{machine.driver.version} (CUDA {machine.driver.cuda})" if machine.driver else f"none: {machine.reason}"
        result.append(("NVIDIA driver", driver))
    if installation:
        result.append(
            ("vLLM", f"{installation.distribution} {installation.vllm}, torch {installation.torch}, Python {installation.python}")
        )
        pinned = f", sha256 {installation.requirements_sha256[:12]}" if installation.requirements_sha256 else ""
        result.append(("Requirements", f"set {installation.set} ({installation.reason}){pinned}"))
    if model:
        facts = model.facts
        size = sum(entry.bytes for entry in model.files) / 2**20
        result.append(("Model", f"{model.name} from {model.origin}, {model.revision}"))
        shown = [facts.architecture, facts.dtype, facts.quantization or "unquantised", f"{facts.context_length} tokens", f"{size:.0f} MiB"]
        result.append(("Model facts", f"{', '.join(str(part) for part in shown)}; licence {facts.license or 'not stated'}"))
    if server and not server.attached:
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in server.handle.phases_s.items())
        result.append(("Server ready after", f"{server.handle.ready_s:.1f} s ({phases})"))
    envelope = outcomes["check-gpu"].envelope
    if envelope:
        result.append(("Pipeline", envelope.host))
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


def missing(judged: Sequence[JudgedGate], scenarios: Sequence[Scenario]) -> list[tuple[str, str]]:
    """Return what was not measured, and why."""
    result = [(row.gate.label, row.judgement.reason) for row in judged if row.judgement.verdict in ("NOT_MEASURED", "SIMULATED")]
    result += [(scenario.title, scenario.reason) for scenario in scenarios if scenario.reason]
    return list(dict.fromkeys(result))
