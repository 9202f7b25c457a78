"""Gates against the records: find each gate's figure, judge it, and see whether a waiver covers it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.config.gates import PLAN, Gate, Gates
from pipeline.contexts import ActiveWaivers
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import BLOCKED, Artifact, Failure, Measurement, Outcome
from pipeline.errors import MeaninglessError, NothingAnsweredError
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.verdicts import Judgement, exit_code, judge
from pipeline.message import Digits, _
from pipeline.report.cells import Text, of_settings
from pipeline.report.sweep import Sweep
from pipeline.server.stop import Closing
from pipeline.stages.download_model import Model
from pipeline.stages.install import Installation
from pipeline.stages.measure_vram import MemoryUse, Soak
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Remedied
from pipeline.stages.test_router import RouterResult
from pipeline.vllm.plan import NOTHING_PLANNED, PEAK_ERROR_MIB

WAIVABLE = ("FAIL", "INCONCLUSIVE", "NOT_MEASURED")
EMBEDDED = "wheel"  # the source of a model that comes with the packages
OF_OUR_SERVER = (Installation, Model, Closing, Remedied)


@dataclass(frozen=True)
class JudgedGate:
    """A gate with the figure that it took, the verdict, and the words for its waiver, if it has one."""

    id: str
    gate: Gate
    figure: Figure | None
    judgement: Judgement
    waiver: Text = ""
    waived: bool = False
    statistics: tuple[Text, ...] = ()  # where the plan says more than the gate

    @property
    def counts(self) -> bool:
        """Tell whether the exit code depends on this gate."""
        return self.gate.required and not self.waived


@dataclass(frozen=True)
class Judged:
    """The judged gates, the exit code, and the outcomes without what belongs to another server.

    `trial` says why no verdict on a model follows from this run, whatever its gates say; empty where one does.
    """

    gates: list[JudgedGate]
    code: int
    outcomes: Outcomes
    trial: Text = ""

    @property
    def failures(self) -> list[tuple[str, Failure]]:
        """Return what failed by itself, with the names of the stages."""
        found = [(outcome.stage, outcome.failure) for outcome in counting(self.outcomes)]
        return [(name, failure) for name, failure in found if failure and failure.kind not in (BLOCKED, MeaninglessError.kind)]


def judge_records(gates: Gates, waivers: ActiveWaivers, outcomes: Outcomes) -> Judged:
    """Return the gates judged on all that is on record; a stage that failed makes the exit code 2, whatever is waived."""
    ours = of_this_server(outcomes)
    judged = [with_waiver(row, waivers) for row in judge_all(gates.root, ours)]
    failed = any(outcome.failure and outcome.failure.kind != MeaninglessError.kind for outcome in counting(ours))
    code = 2 if failed else exit_code((row.judgement, row.counts) for row in judged)
    return Judged(judged, code, ours, trial(ours))


def trial(outcomes: Outcomes) -> Text:
    """Return what the model of a run cannot do that only tries the pipeline: the embedded one, or random weights; else empty."""
    server, model, router = outcomes[Server].data, outcomes[Model].data, outcomes[RouterResult].data
    if server is not None and server.random_weights:
        return _("The weights are random, so the answers mean nothing; speed and memory are real.")
    if model is None or model.source != EMBEDDED:
        return ""
    if router is None:
        return _("The embedded model is no router.")
    right, constant = (router.figures.get(name) for name in ("constrained_route_accuracy", "majority_baseline"))
    if right is None or right.valid is None or constant is None or constant.valid is None:
        return _("The embedded model is no router.")
    shares = {"right": Digits(f"{right.valid:.0f}"), "constant": Digits(f"{constant.valid:.0f}")}
    return _("The embedded model is no router: {right} % right, a constant answer gets {constant} %.", **shares)


def counting(outcomes: Outcomes) -> list[Outcome[Artifact]]:
    """Return the outcomes that the exit code depends on; a soak and a sweep have one of their own."""
    return [outcome for outcome in outcomes if outcome not in (outcomes[Soak], outcomes[Sweep])]


def of_this_server(outcomes: Outcomes) -> Outcomes:
    """Return the outcomes without data that belongs to another server than the one on record."""
    server = outcomes[Server]
    gone: dict[str, Outcome[Artifact]] = {}
    if server.data is not None and server.data.attached:  # what was installed or stopped here is another server's
        gone |= {outcomes[kind].stage: Outcome(outcomes[kind].stage, None, None) for kind in OF_OUR_SERVER}
    for outcome in outcomes.stages:
        envelope = outcome.envelope
        if not isinstance(outcome.data, Measurement) or envelope is None:
            continue
        if server.data is None or not same_identity(envelope.because.get("serve"), server.data.identity()):
            failure = Failure(kind=BLOCKED, message=_("was measured on another server than the one on record"))
            gone[outcome.stage] = Outcome(outcome.stage, None, None, failure)
    return outcomes.having(gone)


def same_identity(recorded: object, identity: Mapping[str, object]) -> bool:
    """Tell whether both are of one server; a fact that an older record does not know must say nothing today."""
    if not isinstance(recorded, Mapping):
        return False
    return {key: value for key, value in identity.items() if key in recorded or value} == recorded


def judge_all(gates: Mapping[str, Gate], outcomes: Outcomes) -> list[JudgedGate]:
    """Return each gate judged on the outcome of the stage that its metric names."""
    result = []
    for name, gate in gates.items():
        stage, _dot, metric = gate.metric.partition(".")
        found, simulated = find(outcomes.named(stage), metric, gate.unit)
        if isinstance(found, Judgement):
            result.append(JudgedGate(name, gate, not_measured(gate.unit, found.reason), found))
            continue
        row = JudgedGate(name, gate, found, Judgement("NOT_MEASURED", found.reason))
        row = by_plan(row, found, outcomes) if gate.target == PLAN else row
        if not isinstance(row.gate.target, str):
            by_bound = row.gate.judge_by == "bound"
            judgement = judge(row.figure, row.gate.comparator, row.gate.target, row.gate.min_n, by_bound, simulated)
            row = replace(row, judgement=judgement)
        result.append(row)
    return result


def by_plan(row: JudgedGate, peak: Figure, outcomes: Outcomes) -> JudgedGate:
    """Return the gate with the number that the plan of the start makes its target, and the peak to judge by it.

    The plan is for one device, and so is the peak: the highest where several share the model. Without a plan the gate stays
    as it is and the figure says why.
    """
    gate, server, use = row.gate, outcomes[Server].data, outcomes[MemoryUse].data
    if server is None or server.plan is None:
        figure = peak if peak.value is None else not_measured(gate.unit, NOTHING_PLANNED)
        return replace(row, figure=figure, judgement=Judgement("NOT_MEASURED", figure.reason))
    planned_mib, statistics = server.plan.peak_mib, [of_settings(gate.statistic)] if gate.statistic else []
    if use is not None and len(use.device_peaks_mib) > 1 and peak.value is not None:
        peak = Figure(value=max(use.device_peaks_mib.values()), unit=peak.unit, n=peak.n)
        statistics.append(_("the highest of {n} devices", n=len(use.device_peaks_mib)))
    statistics.append(_("the plan's {value} + {target}", value=Digits(f"{planned_mib:.0f}"), target=Digits(f"{PEAK_ERROR_MIB:.0f}")))
    changes = {"target": float(round(planned_mib + PEAK_ERROR_MIB)), "statistic": "; ".join(statistics)}
    return replace(row, gate=gate.model_copy(update=changes), figure=peak, statistics=tuple(statistics))


def find(outcome: Outcome[Artifact] | None, metric: str, unit: str) -> tuple[Figure | Judgement, bool]:
    """Return (figure, simulated); a stage that left none gives a figure without value, or FAIL when nothing answered it."""
    if outcome is None:
        return not_measured(unit, _("no such stage")), False
    if outcome.failure is not None and outcome.failure.kind == NothingAnsweredError.kind:
        return Judgement("FAIL", outcome.failure.message), False
    if outcome.data is None:
        reason = outcome.failure.message if outcome.failure else _("{stage} never ran", stage=outcome.stage)
        return not_measured(unit, reason), False
    if not isinstance(outcome.data, Measurement):
        return not_measured(unit, _("{stage} makes no figures", stage=outcome.stage)), False
    figure = outcome.data.figures.get(metric)
    missing = not_measured(unit, _("{stage} has no figure {name}", stage=outcome.stage, name=metric))
    return figure or missing, outcome.data.simulated


def with_waiver(row: JudgedGate, waivers: ActiveWaivers) -> JudgedGate:
    """Return the gate with its waiver: in force, it covers a required gate that does not pass; a simulated one never."""
    if expired := waivers.expired.get(row.id):
        return replace(row, waiver=_("waiver expired on {date}: {reason}", date=f"{expired.expires}", reason=expired.reason))
    if waiver := waivers.in_force.get(row.id):
        until, covers = f"{waiver.expires}", row.gate.required and row.judgement.verdict in WAIVABLE
        if covers:
            return replace(row, waived=True, waiver=_("waived until {date}: {reason}", date=until, reason=waiver.reason))
        return replace(row, waiver=_("unused waiver until {date}: {reason}", date=until, reason=waiver.reason))
    return row
