"""From records to what the templates show: words and formatted figures, no layout."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from pipeline.config import Alternative, ReportConfig, is_loopback
from pipeline.errors import MeaninglessError
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import SIGNS
from pipeline.record import BLOCKED, Failure, Outcome
from pipeline.report.gates import JudgedGate

MARKS = {
    "PASS": "✅ PASS",
    "FAIL": "❌ FAIL",
    "INCONCLUSIVE": "⚠️ INCONCLUSIVE",
    "NOT_MEASURED": "▫️ NOT_MEASURED",
    "SIMULATED": "🚫 SIMULATED",
}


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
class Scenario:
    """One of the guide's tests: its facts, figures, and why there are none if so."""

    title: str
    reason: str
    facts: list[str]
    figures: list[FigureRow]
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)


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
    judged: Sequence[JudgedGate],
    code: int,
    outcomes: Mapping[str, Outcome[Any]],
) -> View:
    """Return what the report shows of these outcomes."""
    server = outcomes["serve"].data
    model = outcomes["download-model"].data
    measured = [outcomes[name].envelope for name in ("test-router", "test-determinism", "bench", "measure-vram")]
    times = [envelope.started for envelope in measured if envelope and envelope.data]
    scenarios = [
        router_scenario(outcomes["test-router"]),
        determinism_scenario(outcomes["test-determinism"], outcomes["serve"]),
        bench_scenario(outcomes["bench"]),
        memory_scenario(outcomes["measure-vram"], outcomes["stop"], outcomes["serve"]),
    ]
    failures = [
        FailureNote(name, outcome.failure)
        for name, outcome in outcomes.items()
        if outcome.failure and outcome.failure.kind not in (BLOCKED, MeaninglessError.kind)
    ]
    return View(
        title=settings.title,
        headline=headline(judged, code, failures),
        alert={0: "TIP", 1: "CAUTION"}.get(code, "WARNING"),
        profile=profile,
        again=shlex.join(["./inv", "all", "--profile", profile, *(word for setting in given for word in ("--set", setting))]),
        model=server.model if server else model.name if model else "no model",
        device=server.device if server else "no server",
        measured_on=f"measured {min(times):%Y-%m-%d %H:%M} UTC" if times else "nothing was measured",
        cautions=[*instead, *(cautions(server) if server else [])],
        targets=[gate_row(row) for row in judged if row.gate.table == "targets"],
        criteria=[gate_row(row) for row in judged if row.gate.table == "criteria"],
        scenarios=scenarios,
        alternatives=[alternative_row(entry, profile, outcomes) for entry in alternatives],
        stages=[stage_row(outcome) for name, outcome in outcomes.items() if name != "stop"],
        failures=failures,
        environment=environment(outcomes),
        command=shell_command(server.environment, server.command) if server else "",
        proofs=[(proof.claim, "yes" if proof.holds else "no", proof.seen) for proof in server.proofs] if server else [],
        not_measured=missing(judged, scenarios),
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


def headline(judged: Sequence[JudgedGate], code: int, failures: Sequence[FailureNote]) -> str:
    """Return the verdict in one line."""
    required = [row for row in judged if row.gate.required]
    if code == 2 and not required and not failures:
        return "NOT MEASURED: no gate is required."
    if code == 0:
        return f"PASS: all {len(required)} required gates pass."
    bad = [f"{row.gate.label} ({row.judgement.verdict})" for row in required if row.judgement.verdict != "PASS"]
    passed = len(required) - len(bad)
    word = {1: "NOT PASSED", 2: "NOT MEASURED"}[code]
    if failures:
        return f"{word}: {passed} of {len(required)} required gates pass. {failures[0].stage} failed: {failures[0].failure.message}."
    return f"{word}: {passed} of {len(required)} required gates pass. Open: {', '.join(bad)}."


def gate_row(row: JudgedGate) -> GateRow:
    """Return the row of a judged gate."""
    gate = row.gate
    statistic = f" ({gate.statistic})" if gate.statistic else ""
    verdict = MARKS[row.judgement.verdict] + (f": {row.judgement.reason}" if row.judgement.reason else "")
    if not gate.required:
        verdict += " (not required by this profile)"
    stage, _, metric = gate.metric.partition(".")
    return GateRow(
        gate.label,
        f"{SIGNS[gate.comparator]} {gate.target:g} {gate.unit}{statistic}",
        measured_words(row.figure),
        verdict,
        source(stage, metric),
    )


def measured_words(figure: Figure | None) -> str:
    """Return value, bounds and n as words."""
    if figure is None or figure.value is None:
        return "NOT_MEASURED"
    bounds = []
    if figure.low is not None:
        bounds.append(f"≥ {number(figure.low)}")
    if figure.high is not None:
        bounds.append(f"≤ {number(figure.high)}")
    return f"**{number(figure.value)} {figure.unit}** (n = {figure.n}{'; 95 %: ' + ', '.join(bounds) if bounds else ''})"


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
        "schema_valid": "valid against the schema",
        "truncated": "cut off at max_tokens",
        "route_accuracy": "route right",
        "joint_accuracy": "route, intent and slots right",
        "ttft_ms_p50": "TTFT, median",
        "latency_ms_p50": "E2E latency, median",
        "latency_ms_p95": "E2E latency, p95",
    }
    labels = {
        f"{arm}_{name}": f"{words}: {label}"
        for arm, words in (("prompt_only", "prompt-only"), ("constrained", "constrained"))
        for name, label in names.items()
    }
    facts = [f"Suite `{data.suite}` ({data.language}), {data.cases} cases, streamed, one at a time, temperature 0."]
    for arm, classes in data.failures.items():
        listed = ", ".join(f"{name} {count}" for name, count in classes.items()) or "none"
        facts.append(f"Failure classes, {arm.replace('_', '-')}: {listed}.")
    examples = [(example.case, example.arm.replace("_", "-"), example.failure, example.text) for example in data.examples]
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels), examples)


def determinism_scenario(outcome: Outcome[Any], server: Outcome[Any]) -> Scenario:
    """Return the guide's test 2, and the arms beside it."""
    title = "Test 2: Determinism"
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), [], [])
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
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels))


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
        "ttft_ms_p50": "TTFT, median",
        "ttft_ms_p95": "TTFT, p95",
        "tpot_ms_p50": "TPOT, median",
        "decode_tok_s_p50": "decode throughput at concurrency 1, median",
        "e2e_ms_p50": f"E2E latency of {data.output_tokens} tokens, median",
    }
    labels |= {
        f"system_tok_s_c{entry.concurrency}": f"system throughput, closed loop, concurrency {entry.concurrency}" for entry in data.levels
    }
    first = "failed" if data.first_request_ttft_ms is None else f"{number(data.first_request_ttft_ms)} ms"
    ledger = data.ledger
    agrees = "equal" if ledger.agrees else "NOT EQUAL: other clients were served meanwhile, or requests failed"
    facts = [
        f"Prompt {data.prompt_tokens} tokens, cold prefix cache (a salt per request), {data.output_tokens} output tokens (ignore_eos).",
        f"First request of the run: {first} to the first token.",
        f"Output tokens by the client {ledger.client_tokens}, by the server's counter {ledger.server_tokens}: {agrees}.",
    ]
    for check in data.means:
        told = "not available" if check.server_ms is None else f"{check.server_ms:.4g} ms"
        within = "" if check.server_ms is None else f" ({'within' if check.agrees else 'OUTSIDE'} {check.tolerance_ms:.3g} ms)"
        facts.append(f"Mean {check.name} by the client {check.client_ms:.4g} ms, by the server's metrics {told}{within}.")
    busiest = max(data.levels, key=lambda entry: entry.throughput_tok_s)
    facts.append(f"The client took {100 * busiest.client_cpu_share:.2g} % of one core at {number(busiest.throughput_tok_s)} tok/s.")
    failed = sum(entry.failed for entry in data.levels)
    if failed:
        facts.append(f"{failed} requests failed.")
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels))


def memory_scenario(outcome: Outcome[Any], closing: Outcome[Any], server: Outcome[Any]) -> Scenario:
    """Return the guide's test 3, with what was left after the stop."""
    title = "Test 3: VRAM usage"
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), [], [])
    labels = {
        "vram_peak_mib": "VRAM, peak",
        "vram_steady_mib": "VRAM, steady (median under load)",
        "vram_range_mib": "VRAM, range under load",
        "host_pss_peak_mib": "host memory of the server's processes (PSS), peak",
        "host_pss_steady_mib": "host memory (PSS), steady",
        "host_rss_peak_mib": "host memory (RSS, shared pages counted per process), peak",
    }
    facts = [
        f"{data.samples} samples from before the start; {data.load_s:g} s of load, {data.load_requests} requests.",
    ]
    if data.method:
        facts.append(f"Told apart by: {data.method}.")
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
    return Scenario(title, "", facts, rows(outcome.stage, data.figures, labels))


def plan_facts(plan: Any, data: Any) -> list[str]:
    """Return what was planned beside what the server's log says."""
    told = data.breakdown
    facts = []
    if data.preemptions is not None:
        facts.append(f"Preemptions since the start: {data.preemptions}.")
    if plan is None:
        return facts
    peak = data.figures["vram_peak_mib"].value
    if peak is not None:
        off = 100 * (plan.peak_mib / peak - 1)
        facts.append(f"Peak: {number(plan.peak_mib)} MiB planned, {number(peak)} measured ({off:+.1f} %).")
    parts = [
        ("weights", plan.weights_mib, told.weights_mib),
        ("activations", plan.activations_mib, told.activations_mib),
        ("CUDA graphs", plan.graphs_mib, told.graphs_mib),
        ("KV cache", plan.kv_cache_mib, told.kv_cache_mib),
    ]
    words = [
        f"{name} {number(planned)} MiB ({'log: ' + number(seen) if seen is not None else 'not in the log'})"
        for name, planned, seen in parts
    ]
    facts.append(
        f"Plan for {number(plan.budget_mib)} MiB, beside vLLM's log: {', '.join(words)}; context {number(plan.context_mib)} MiB planned."
    )
    if told.kv_tokens is not None:
        off = 100 * (plan.kv_tokens / told.kv_tokens - 1)
        facts.append(f"KV cache: {told.kv_tokens} tokens by the log, {plan.kv_tokens} planned ({off:+.1f} %).")
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
