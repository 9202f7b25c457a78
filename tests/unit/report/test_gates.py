"""Gates against the records: no bad outcome passes, and what a waiver changes."""

import math
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.gates import Gate, Gates, Waiver
from pipeline.contexts import ActiveWaivers
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import BLOCKED, Artifact, Envelope, Failure, Measurement, Outcome
from pipeline.errors import MeaninglessError, NothingAnsweredError
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.verdicts import START_NOISE, Judgement
from pipeline.report.formats.document import reported_gate
from pipeline.report.formats.plain import Plain
from pipeline.report.formats.reported import measured_words, target_words
from pipeline.report.gates import WAIVABLE, Judged, JudgedGate, judge_records, start_noise
from pipeline.report.headline import headline
from pipeline.report.listing import lines
from pipeline.report.noise import NOISE_NOTE, FigureNoise, RunNoise
from pipeline.report.view import gate_row
from pipeline.vllm.plan import NOTHING_PLANNED, Plan
from tests.builders.house import outcomes_of
from tests.builders.records import server

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
METRIC = "bench.ttft_ms_p95"
GATE = Gate(label="TTFT", metric=METRIC, comparator="<", target=500, unit="ms", min_n=59)
GATES = Gates({"ttft": GATE, "other": GATE.model_copy(update={"label": "Other", "metric": "test-router.latency"})})
WAIVER = Waiver(reason="no card", expires=date(2027, 1, 1))
IN_FORCE = ActiveWaivers(in_force={"ttft": WAIVER})
EXPIRED = ActiveWaivers(expired={"ttft": WAIVER})


class Serving(Artifact):
    """A stand-in for the server's record."""

    attached: str | None = None
    model: str = "m"
    random_weights: bool = False
    plan: Plan | None = None
    real: bool = True


class Memory(Measurement):
    """A stand-in for the record of measure-vram."""

    device_peaks_mib: dict[int, float] = {}


def outcome(stage: str, result: Artifact | Failure | None, server: Serving | None = None) -> Outcome[Any]:
    """Return the outcome of a stage that made `result` on that server, failed with it, or never ran."""
    if result is None:
        return Outcome(stage, None, None)
    failure = result if isinstance(result, Failure) else None
    envelope = Envelope(
        schema_version=1,
        stage=stage,
        status="failed" if failure else "ok",
        because={"serve": (server or Serving()).identity()},
        started=WHEN,
        duration_s=1,
        host="Linux",
        data=None if failure else {"x": 1},
        failure=failure,
    )
    return Outcome(stage, None if isinstance(result, Failure) else result, envelope)


def records(*outcomes: Outcome[Any]) -> Outcomes:
    """Return these outcomes, whatever their records are."""
    return outcomes_of({one.stage: one for one in outcomes})


def measured(figure: Figure | None, metric: str = "ttft_ms_p95", *, simulated: bool = False) -> Measurement:
    return Measurement(launch_id="L1", simulated=simulated, figures={metric: figure} if figure else {})


def figure(value: float | None = 400, n: int = 100, high: float | None = 450) -> Figure:
    return Figure(value=value, unit="ms", n=n, high=high)


def judged(bench: Outcome[Any], waived: ActiveWaivers | None = None, gates: Gates = GATES) -> Judged:
    """Return the verdicts with that outcome of bench, beside a router test that passes."""
    router = outcome("test-router", measured(figure(), "latency"))
    return judge_records(gates, waived or ActiveWaivers(), records(outcome("serve", Serving()), router, bench))


GOOD = outcome("bench", measured(figure()))
FAILED = {
    "crash": (Failure(kind="server", message="it died"), "NOT_MEASURED"),
    "blocked": (Failure(kind=BLOCKED, message="needs serve, which failed"), "NOT_MEASURED"),
    "nothing answered": (Failure(kind=NothingAnsweredError.kind, message="bench: no request succeeded: HTTP 500"), "FAIL"),
}
MADE = {
    "no such metric": (measured(None), "NOT_MEASURED"),
    "no value": (measured(not_measured("ms", "no driver")), "NOT_MEASURED"),
    "not a number": (measured(figure(math.nan)), "NOT_MEASURED"),
    "infinite": (measured(figure(math.inf)), "NOT_MEASURED"),
    "negative infinite": (measured(figure(-math.inf)), "NOT_MEASURED"),
    "target missed": (measured(figure(500)), "FAIL"),
    "0 ms of no request": (measured(figure(0, 0, 0)), "INCONCLUSIVE"),
    "n too small": (measured(figure(n=58)), "INCONCLUSIVE"),
    "no bound": (measured(figure(high=None)), "INCONCLUSIVE"),
    "bound not a number": (measured(figure(high=-math.inf)), "INCONCLUSIVE"),
    "bound missed": (measured(figure(high=500)), "INCONCLUSIVE"),
    "simulated": (measured(figure(), simulated=True), "SIMULATED"),
    "simulated and missed": (measured(figure(500), simulated=True), "SIMULATED"),
}
# Name, outcome, verdict, exit code, exit code while waived.
BAD: list[tuple[str, Outcome[Any], str, int, int]] = [
    *((name, outcome("bench", failure), verdict, 2, 2) for name, (failure, verdict) in FAILED.items()),
    *(
        (name, outcome("bench", made), verdict, 1 if verdict in ("FAIL", "INCONCLUSIVE") else 2, 2 if verdict == "SIMULATED" else 0)
        for name, (made, verdict) in MADE.items()
    ),
    ("never ran", outcome("bench", None), "NOT_MEASURED", 2, 0),
    ("left out", outcome("bench", Failure(kind=MeaninglessError.kind, message="noise")), "NOT_MEASURED", 2, 0),
    ("unreadable", Outcome("bench", None, None, Failure(kind="record", message="not JSON")), "NOT_MEASURED", 2, 2),
    ("other server", outcome("bench", measured(figure()), Serving(model="other")), "NOT_MEASURED", 2, 2),
    ("no measurement", outcome("bench", Serving()), "NOT_MEASURED", 2, 0),
    ("no such stage", outcome("another", measured(figure())), "NOT_MEASURED", 2, 0),
]
EACH = pytest.mark.parametrize(("bad", "verdict", "code", "code_waived"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])


def test_good_outcome_passes() -> None:
    made = judged(GOOD)
    assert ([row.judgement.verdict for row in made.gates], made.code) == (["PASS", "PASS"], 0)


@EACH
def test_bad_outcome_never_passes_and_says_why(bad: Outcome[Any], verdict: str, code: int, code_waived: int) -> None:
    made = judged(bad)
    assert (made.gates[0].judgement.verdict, made.code) == (verdict, code)
    assert made.gates[0].judgement.reason
    assert headline(made).startswith({1: "NOT PASSED: 1 of 2", 2: "NOT MEASURED: 1 of 2"}[code])


@EACH
def test_waiver_keeps_the_verdict_and_excuses_no_crash_and_no_simulation(
    bad: Outcome[Any], verdict: str, code: int, code_waived: int
) -> None:
    made = judged(bad, IN_FORCE)
    row = made.gates[0]
    assert (row.judgement.verdict, made.code) == (verdict, code_waived)
    assert row.waived == (verdict in WAIVABLE)
    assert row.waiver == ("waived" if row.waived else "unused waiver") + " until 2027-01-01: no card"
    assert headline(made).startswith("PASS: 1 of 2 required gates pass, 1 is waived.") == (code_waived == 0)


@EACH
def test_expired_waiver_changes_nothing_but_is_told(bad: Outcome[Any], verdict: str, code: int, code_waived: int) -> None:
    made = judged(bad, EXPIRED)
    assert (made.gates[0].judgement.verdict, made.code) == (verdict, code)
    assert made.gates[0].waiver == "waiver expired on 2027-01-01: no card"
    assert "waived" not in headline(made)


def test_nothing_answered_fails_with_the_message_of_the_failure() -> None:
    failure, _ = FAILED["nothing answered"]
    row = judged(outcome("bench", failure)).gates[0]
    assert row.judgement.reason == failure.message
    assert row.figure == not_measured("ms", failure.message)


def test_waiver_of_a_gate_that_passes_is_unused() -> None:
    made = judged(GOOD, IN_FORCE)
    assert (made.gates[0].waiver, made.gates[0].waived) == ("unused waiver until 2027-01-01: no card", False)
    assert (made.code, headline(made)) == (0, "PASS: all 2 required gates pass.")


def test_waiver_of_a_gate_that_is_not_required_is_unused() -> None:
    gates = Gates({"ttft": GATE.model_copy(update={"required": False}), "other": GATES.root["other"]})
    made = judged(outcome("bench", None), IN_FORCE, gates)
    assert made.gates[0].waiver.startswith("unused waiver")
    assert headline(made) == "PASS: all 1 required gates pass; not required: 1 has no valid measurement."


def test_all_waived_is_no_pass() -> None:
    made = judged(outcome("bench", None), IN_FORCE, Gates({"ttft": GATE}))
    assert made.code == 2
    assert headline(made) == "NOT MEASURED: 0 of 1 required gates pass, 1 is waived. Open: TTFT (NOT_MEASURED)."


def test_crash_of_a_stage_whose_gates_are_all_waived_is_in_the_headline() -> None:
    failure, _ = FAILED["crash"]
    assert headline(judged(outcome("bench", failure), IN_FORCE)) == (
        "NOT MEASURED: 1 of 2 required gates pass, 1 is waived. bench failed: it died."
    )


@given(st.sampled_from([row[1] for row in BAD] + [GOOD]), st.sampled_from([IN_FORCE, EXPIRED, ActiveWaivers()]))
def test_a_waiver_never_changes_a_verdict_nor_makes_the_exit_code_worse(bench: Outcome[Any], waived: ActiveWaivers) -> None:
    plain, made = judged(bench), judged(bench, waived)
    assert [row.judgement for row in made.gates] == [row.judgement for row in plain.gates]
    assert made.code <= plain.code


# The listing.


def listing(row: JudgedGate, records: list[Outcome[Any]]) -> dict[str, str]:
    """Return the lines of a gate by name."""
    _, *told = lines(row, records, {"": "config.yaml:2", "target": "--set gates.ttft.target"}, {})
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in told}


def test_listing_says_where_every_value_stands() -> None:
    row = judged(GOOD).gates[0]
    assert lines(row, [GOOD], {"": "config.yaml:2", "target": "--set gates.ttft.target"}, {"": "config.yaml:9"}) == [
        "ttft: TTFT",
        "  verdict   PASS",
        "  target    < 500 ms; by the value and its 95 % bound, n ≥ 59; required",
        "  measured  400 ms (n = 100; 95 %: ≤ 450)",
        "  figure    artifacts/bench.json → data.figures.ttft_ms_p95, measured 2026-01-02 03:04:05 UTC, launch L1",
        "  gate      config.yaml:2; target: --set gates.ttft.target",
        "  waiver    config.yaml:9",
    ]


def test_listing_of_a_waived_gate_without_a_record() -> None:
    never = outcome("bench", None)
    told = listing(judged(never, IN_FORCE).gates[0], [never])
    assert told["verdict"] == "NOT_MEASURED (waived until 2027-01-01: no card): bench never ran"
    assert told["figure"] == "artifacts/bench.json → data.figures.ttft_ms_p95, nothing on record"
    assert "waiver" not in told


def test_listing_of_a_failed_stage_says_when_it_was() -> None:
    failed = outcome("bench", FAILED["crash"][0])
    assert listing(judged(failed).gates[0], [failed])["figure"].endswith("ttft_ms_p95, no figures, 2026-01-02 03:04:05 UTC")


def test_listing_shows_when_and_where_the_other_servers_figures_were_measured() -> None:
    other = outcome("bench", measured(figure()), Serving(model="other"))
    told = listing(judged(other).gates[0], [other])
    assert told["verdict"] == "NOT_MEASURED: was measured on another server than the one on record"
    assert told["figure"].endswith("measured 2026-01-02 03:04:05 UTC, launch L1")


# The plan as the target.

PEAK = Gate(
    label="VRAM", metric="measure-vram.vram_peak_mib", statistic="peak", comparator="<", target="plan", unit="MiB", judge_by="point"
)
PLANNED = Plan(
    total_mib=8188,
    budget_mib=6550.4,
    weights_mib=2944.1,
    weights_from="a test",
    activations_mib=175.4,
    graphs_mib=50.4,
    context_mib=500,
    kv_cache_mib=3216.9,
    kv_bytes_per_token=28672,
    kv_tokens=117646,
    max_model_len=8192,
    error_mib=700,
)


def against_the_plan(
    peak: Figure, made: Plan | None = PLANNED, devices: dict[int, float] | None = None, *, simulated: bool = False
) -> JudgedGate:
    """Return the gate of the peak, whose target is the plan's, judged on that peak."""
    server = Serving(plan=made)
    use = Memory(launch_id="L1", simulated=simulated, figures={"vram_peak_mib": peak}, device_peaks_mib=devices or {0: peak.value or 0})
    (row,) = judge_records(
        Gates({"vram": PEAK}), ActiveWaivers(), records(outcome("serve", server), outcome("measure-vram", use, server))
    ).gates
    return row


def mib(value: float | None, reason: str = "") -> Figure:
    return Figure(value=value, unit="MiB", n=90, reason=reason)


@pytest.mark.parametrize(
    ("peak", "verdict", "reason"),
    [(7100, "PASS", ""), (7250, "PASS", ""), (7251, "FAIL", "7251 is not < 7251"), (7900, "FAIL", "7900 is not < 7251")],
)
def test_the_plans_peak_and_its_error_are_the_target(peak: float, verdict: str, reason: str) -> None:
    row = against_the_plan(mib(peak))
    assert (row.gate.target, row.judgement) == (7251, Judgement(verdict, reason))  # type: ignore[arg-type]
    assert Plain().text(gate_row(row).target) == "< 7251 MiB (peak; the plan's 7101 + 150)"
    shown = reported_gate(row)
    assert (shown.target, target_words(shown)) == (7251, Plain().text(gate_row(row).target))


def test_of_several_devices_the_highest_peak_is_judged_by_the_plan_for_one() -> None:
    row = against_the_plan(mib(14000), devices={0: 7000.0, 1: 7200.0})
    assert (row.judgement.verdict, row.figure) == ("PASS", mib(7200))
    assert Plain().text(gate_row(row).target) == "< 7251 MiB (peak; the highest of 2 devices; the plan's 7101 + 150)"
    assert against_the_plan(mib(14000), devices={0: 6500.0, 1: 7500.0}).judgement.verdict == "FAIL"


@pytest.mark.parametrize(
    ("peak", "made", "reason"),
    [
        (mib(7000), None, NOTHING_PLANNED),
        (not_measured("MiB", "no driver"), None, "no driver"),
        (not_measured("MiB", "no driver"), PLANNED, "no driver"),
    ],
)
def test_without_a_plan_or_a_peak_nothing_is_measured(peak: Figure, made: Plan | None, reason: str) -> None:
    row = against_the_plan(peak, made)
    assert row.judgement == Judgement("NOT_MEASURED", reason)
    if made is None:
        assert Plain().text(gate_row(row).target) == "< plan (peak)"
        shown = reported_gate(row)
        assert (shown.target, target_words(shown), measured_words(shown)) == ("plan", "< plan (peak)", "not measured")


def test_a_simulated_peak_passes_no_plan() -> None:
    assert against_the_plan(mib(7000), simulated=True).judgement.verdict == "SIMULATED"


def test_where_no_server_was_started_the_plan_is_no_target() -> None:
    (row,) = judge_records(Gates({"vram": PEAK}), ActiveWaivers(), records()).gates
    assert (row.gate.target, row.judgement) == ("plan", Judgement("NOT_MEASURED", "measure-vram never ran"))


def noisy(values: list[float], **facts: str) -> Outcome[RunNoise]:
    """Return the noise on record, of one figure at these starts of the server."""
    where = {"device": "GPU 0", "model": "m", "vllm": "0.33.0", **facts}
    entry = FigureNoise(unit="ms", n=len(values), values=values, relative_range=0.1, variation=0.1)
    noise = RunNoise.model_validate({**where, "starts": len(values), "simulated": False, "figures": {"bench.ttft_ms_p95": entry}})
    return Outcome(NOISE_NOTE, noise, None)


def test_the_noise_of_starts_is_as_calibrated_on_this_server_or_as_assumed() -> None:
    of_server = Outcome("serve", server().model_copy(update={"device": "GPU 0", "model": "m", "vllm": "0.33.0"}), None)
    for noise, expected in (
        (noisy([100.0, 101.0, 99.0]), pytest.approx(0.034, abs=0.003)),
        (noisy([100.0, 101.0, 99.0], device="another"), START_NOISE),
        (noisy([0.0, 1.0]), START_NOISE),
    ):
        outcomes = outcomes_of({"serve": of_server, NOISE_NOTE: noise})
        assert start_noise("bench.ttft_ms_p95", outcomes) == expected
        assert start_noise("bench.tpot_ms_p50", outcomes) == START_NOISE
