"""Judging of gates on the records: find each gate's figure, judge it, and apply its waiver."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from pipeline.config.gates import PLAN, Gate, Gates
from pipeline.contexts import ActiveWaivers
from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import BLOCKED, Artifact, Failure, Measurement, Outcome
from pipeline.errors import MeaninglessError, NothingAnsweredError
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.starts import next_start
from pipeline.measure.verdicts import START_NOISE, Judgement, exit_code, judge
from pipeline.message import Digits, _
from pipeline.report.cells import Text, of_settings
from pipeline.report.noise import RunNoise
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
OWN_SERVER_RECORDS = (Installation, Model, Closing, Remedied)


@dataclass(frozen=True)
class JudgedGate:
    """A gate with the figure it judged, the verdict, and the text on its waiver, if any."""

    id: str
    gate: Gate
    figure: Figure | None
    judgement: Judgement
    waiver: Text = ""
    waived: bool = False
    statistics: tuple[Text, ...] = ()  # replaces the gate's own where the plan set the target

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
        """Return the failures by stage, without stages that were only blocked or had nothing to measure."""
        pairs = [(outcome.stage, outcome.failure) for outcome in decisive_outcomes(self.outcomes)]
        return [(name, failure) for name, failure in pairs if failure and failure.kind not in (BLOCKED, MeaninglessError.kind)]


def judge_records(gates: Gates, waivers: ActiveWaivers, outcomes: Outcomes) -> Judged:
    """Return the gates judged on the records; a failed stage makes the exit code 2, whatever is waived."""
    ours = drop_other_servers(outcomes)
    judged = [apply_waiver(row, waivers) for row in judge_all(gates.root, ours)]
    failed = any(outcome.failure and outcome.failure.kind != MeaninglessError.kind for outcome in decisive_outcomes(ours))
    code = 2 if failed else exit_code((row.judgement, row.counts) for row in judged)
    return Judged(judged, code, ours, trial(ours))


def trial(outcomes: Outcomes) -> Text:
    """Return what the model of a run cannot do that only tries the pipeline: the embedded one, or random weights; else empty."""
    server, model, router = outcomes[Server].data, outcomes[Model].data, outcomes[RouterResult].data
    if server is not None and server.random_weights:
        return _("The weights are random, so the answers mean nothing; speed and memory are real.")
    if model is None or model.source != EMBEDDED:
        return ""
    figures = {} if router is None else router.figures
    right, constant = (figures.get(name) for name in ("constrained_route_accuracy", "majority_baseline"))
    if right is None or right.valid is None or constant is None or constant.valid is None:
        return _("The embedded model is no router.")
    shares = {"right": Digits(f"{right.valid:.0f}"), "constant": Digits(f"{constant.valid:.0f}")}
    return _("The embedded model is no router: {right} % right, a constant answer gets {constant} %.", **shares)


def decisive_outcomes(outcomes: Outcomes) -> list[Outcome[Artifact]]:
    """Return the outcomes that the exit code depends on: not a soak, a sweep or noise, which are measurements of their own."""
    return [outcome for outcome in outcomes if outcome not in (outcomes[Soak], outcomes[Sweep], outcomes[RunNoise])]


def drop_other_servers(outcomes: Outcomes) -> Outcomes:
    """Return the outcomes without the data of any other server than the one on record."""
    server = outcomes[Server]
    replacements: dict[str, Outcome[Artifact]] = {}
    if server.data is not None and server.data.attached:  # what was installed or stopped here is not the attached server
        replacements |= {outcomes[kind].stage: Outcome(outcomes[kind].stage, None, None) for kind in OWN_SERVER_RECORDS}
    for outcome in outcomes.stages:
        envelope = outcome.envelope
        if not isinstance(outcome.data, Measurement) or envelope is None:
            continue
        if server.data is None or not same_identity(envelope.because.get("serve"), server.data.identity()):
            failure = Failure(kind=BLOCKED, message=_("was measured on another server than the one on record"))
            replacements[outcome.stage] = Outcome(outcome.stage, None, None, failure)
    return outcomes.having(replacements)


def same_identity(recorded: object, identity: Mapping[str, object]) -> bool:
    """Tell whether both identities are of the same server; a fact missing in an older record must be empty now."""
    if not isinstance(recorded, Mapping):
        return False
    return {key: value for key, value in identity.items() if key in recorded or value} == recorded


def judge_all(gates: Mapping[str, Gate], outcomes: Outcomes) -> list[JudgedGate]:
    """Return each gate, judged on the outcome of the stage in its metric."""
    result = []
    for name, gate in gates.items():
        stage, _dot, metric = gate.metric.partition(".")
        finding, simulated = find_figure(outcomes.named(stage), metric, gate.unit)
        if isinstance(finding, Judgement):
            result.append(JudgedGate(name, gate, not_measured(gate.unit, finding.reason), finding))
            continue
        row = JudgedGate(name, gate, finding, Judgement("NOT_MEASURED", finding.reason))
        row = apply_plan(row, finding, outcomes) if gate.target == PLAN else row
        if not isinstance(row.gate.target, str):
            by_bound = row.gate.judge_by == "bound"
            noise = start_noise(gate.metric, outcomes)
            judgement = judge(row.figure, row.gate.comparator, row.gate.target, row.gate.min_n, by_bound, simulated, noise)
            row = replace(row, judgement=judgement)
        result.append(row)
    return result


def start_noise(metric: str, outcomes: Outcomes) -> float:
    """Return by how much a figure may move, relative, from one start of this server to the next: as calibrated, or as assumed."""
    noise, server = outcomes[RunNoise].data, outcomes[Server].data
    entry = noise.figures.get(metric) if noise is not None and server is not None and noise.fits(server) else None
    if entry is None or min(entry.values) <= 0:
        return START_NOISE
    low, high = next_start(entry.values)
    middle = median(entry.values)
    return max(high / middle - 1, 1 - low / middle)


def apply_plan(row: JudgedGate, peak: Figure, outcomes: Outcomes) -> JudgedGate:
    """Return the gate with the target that the plan of the start gives, and the peak to judge by it.

    Both plan and peak are per device: where several devices share the model, the highest peak counts. Without a plan the
    target stays a name, and the figure gives the reason.
    """
    gate, server, memory = row.gate, outcomes[Server].data, outcomes[MemoryUse].data
    if server is None or server.plan is None:
        figure = peak if peak.value is None else not_measured(gate.unit, NOTHING_PLANNED)
        return replace(row, figure=figure, judgement=Judgement("NOT_MEASURED", figure.reason))
    planned_mib, statistics = server.plan.peak_mib, [of_settings(gate.statistic)] if gate.statistic else []
    if memory is not None and len(memory.device_peaks_mib) > 1 and peak.value is not None:
        peak = Figure(value=max(memory.device_peaks_mib.values()), unit=peak.unit, n=peak.n)
        statistics.append(_("the highest of {n} devices", n=len(memory.device_peaks_mib)))
    statistics.append(_("the plan's {value} + {target}", value=Digits(f"{planned_mib:.0f}"), target=Digits(f"{PEAK_ERROR_MIB:.0f}")))
    changes = {"target": float(round(planned_mib + PEAK_ERROR_MIB)), "statistic": "; ".join(statistics)}
    return replace(row, gate=gate.model_copy(update=changes), figure=peak, statistics=tuple(statistics))


def find_figure(outcome: Outcome[Artifact] | None, metric: str, unit: str) -> tuple[Figure | Judgement, bool]:
    """Return (figure, simulated): a figure without value if the stage has none, or FAIL if the server answered no request."""
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


def apply_waiver(row: JudgedGate, waivers: ActiveWaivers) -> JudgedGate:
    """Return the gate with its waiver; one in force covers a required gate that does not pass, but never a simulated one."""
    if expired := waivers.expired.get(row.id):
        return replace(row, waiver=_("waiver expired on {date}: {reason}", date=f"{expired.expires}", reason=expired.reason))
    if waiver := waivers.in_force.get(row.id):
        until, covers = f"{waiver.expires}", row.gate.required and row.judgement.verdict in WAIVABLE
        if covers:
            return replace(row, waived=True, waiver=_("waived until {date}: {reason}", date=until, reason=waiver.reason))
        return replace(row, waiver=_("unused waiver until {date}: {reason}", date=until, reason=waiver.reason))
    return row
