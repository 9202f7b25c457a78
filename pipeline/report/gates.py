"""Gates against the records: find each gate's figure, judge it, and see whether a waiver covers it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.schema import PLAN, Gate, Gates
from pipeline.contexts import ActiveWaivers
from pipeline.engine.record import BLOCKED, SOAK_NOTE, SWEEP_NOTE, Failure, Measurement, Outcome
from pipeline.errors import MeaninglessError, NothingAnsweredError
from pipeline.gpu.plan import NOTHING_PLANNED, PEAK_ERROR_MIB
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.verdicts import Judgement, exit_code, judge

WAIVABLE = ("FAIL", "INCONCLUSIVE", "NOT_MEASURED")
BETWEEN = "; "  # the parts of a statistic
OF_OUR_SERVER = ("install", "download-model", "stop", "determinism-remedy")


@dataclass(frozen=True)
class JudgedGate:
    """A gate with the figure that it took, the verdict, and the words for its waiver, if it has one."""

    id: str
    gate: Gate
    figure: Figure | None
    judgement: Judgement
    waiver: str = ""
    waived: bool = False

    @property
    def counts(self) -> bool:
        """Tell whether the exit code depends on this gate."""
        return self.gate.required and not self.waived


@dataclass(frozen=True)
class Judged:
    """The judged gates, the exit code, and the outcomes without what belongs to another server."""

    gates: list[JudgedGate]
    code: int
    outcomes: dict[str, Outcome[Any]]


def judge_records(gates: Gates, waivers: ActiveWaivers, records: Iterable[Outcome[Any]]) -> Judged:
    """Return the gates judged on all that the report reads; a stage that failed makes the exit code 2, whatever is waived."""
    found = {outcome.stage: outcome for outcome in records if outcome.stage not in (SOAK_NOTE, SWEEP_NOTE)}  # no gate asks for these
    server = found["serve"]
    if server.data is not None and server.data.attached:  # what was installed or stopped here is another server's
        found |= {name: Outcome(name, None, None) for name in OF_OUR_SERVER}
    outcomes = {name: of_this_server(outcome, server) for name, outcome in found.items()}
    judged = [with_waiver(row, waivers) for row in judge_all(gates.root, outcomes)]
    failed = any(outcome.failure and outcome.failure.kind != MeaninglessError.kind for outcome in outcomes.values())
    return Judged(judged, 2 if failed else exit_code((row.judgement, row.counts) for row in judged), outcomes)


def of_this_server(outcome: Outcome[Any], server: Outcome[Any]) -> Outcome[Any]:
    """Return the outcome, or that there is none when its figures come from another server than the one on record."""
    if not isinstance(outcome.data, Measurement) or outcome.envelope is None:
        return outcome
    if server.data is not None and same_identity(outcome.envelope.because.get("serve"), server.data.identity()):
        return outcome
    return Outcome(outcome.stage, None, None, Failure(kind=BLOCKED, message="was measured on another server than the one on record"))


def same_identity(recorded: Any, identity: Mapping[str, Any]) -> bool:
    """Tell whether both are of one server; a fact that an older record does not know must say nothing today."""
    if not isinstance(recorded, Mapping):
        return False
    return {key: value for key, value in identity.items() if key in recorded or value} == recorded


def judge_all(gates: Mapping[str, Gate], outcomes: Mapping[str, Outcome[Any]]) -> list[JudgedGate]:
    """Return each gate judged on the outcome of the stage that its metric names."""
    result = []
    for name, gate in gates.items():
        stage, _, metric = gate.metric.partition(".")
        found, simulated = find(outcomes.get(stage), metric, gate.unit)
        if isinstance(found, Judgement):
            result.append(JudgedGate(name, gate, not_measured(gate.unit, found.reason), found))
            continue
        asked, figure = by_plan(gate, found, outcomes) if gate.target == PLAN else (gate, found)
        if isinstance(asked.target, str):
            judgement = Judgement("NOT_MEASURED", figure.reason)
        else:
            judgement = judge(figure, asked.comparator, asked.target, asked.min_n, asked.judge_by == "bound", simulated)
        result.append(JudgedGate(name, asked, figure, judgement))
    return result


def by_plan(gate: Gate, peak: Figure, outcomes: Mapping[str, Outcome[Any]]) -> tuple[Gate, Figure]:
    """Return the gate with the number that the plan of the start makes its target, and the peak to judge by it.

    The plan is for one device, and so is the peak: the highest where several share the model. Without a plan the gate stays
    as it is and the figure says why.
    """
    server, use = (outcomes[name].data if name in outcomes else None for name in ("serve", "measure-vram"))
    if server is None or server.plan is None:
        return gate, peak if peak.value is None else not_measured(gate.unit, NOTHING_PLANNED)
    planned_mib, statistic = server.plan.peak_mib, [gate.statistic] if gate.statistic else []
    if use is not None and len(use.device_peaks_mib) > 1 and peak.value is not None:
        peak = Figure(value=max(use.device_peaks_mib.values()), unit=peak.unit, n=peak.n)
        statistic.append(f"the highest of {len(use.device_peaks_mib)} devices")
    statistic.append(f"the plan's {planned_mib:.0f} + {PEAK_ERROR_MIB:.0f}")
    return gate.model_copy(update={"target": float(round(planned_mib + PEAK_ERROR_MIB)), "statistic": BETWEEN.join(statistic)}), peak


def find(outcome: Outcome[Any] | None, metric: str, unit: str) -> tuple[Figure | Judgement, bool]:
    """Return (figure, simulated); a stage that left none gives a figure without value, or FAIL when nothing answered it."""
    if outcome is None:
        return not_measured(unit, "no such stage"), False
    if outcome.failure is not None and outcome.failure.kind == NothingAnsweredError.kind:
        return Judgement("FAIL", outcome.failure.message), False
    if outcome.data is None:
        reason = outcome.failure.message if outcome.failure else f"{outcome.stage} never ran"
        return not_measured(unit, reason), False
    if not isinstance(outcome.data, Measurement):
        return not_measured(unit, f"{outcome.stage} makes no figures"), False
    figure = outcome.data.figures.get(metric)
    return figure or not_measured(unit, f"{outcome.stage} has no figure {metric}"), outcome.data.simulated


def with_waiver(row: JudgedGate, waivers: ActiveWaivers) -> JudgedGate:
    """Return the gate with its waiver: in force, it covers a required gate that does not pass; a simulated one never."""
    if expired := waivers.expired.get(row.id):
        return replace(row, waiver=f"waiver expired on {expired.expires}: {expired.reason}")
    if waiver := waivers.in_force.get(row.id):
        covers = row.gate.required and row.judgement.verdict in WAIVABLE
        return replace(row, waived=covers, waiver=f"{'waived' if covers else 'unused waiver'} until {waiver.expires}: {waiver.reason}")
    return row
