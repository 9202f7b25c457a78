"""The content of the report as values: the frame around the sections. Pure, except that sections read raw data."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline.measure.verdicts import UNKNOWN
from pipeline.message import Code, Message, _
from pipeline.report.cells import Ruling, Target, Text, measured, of_settings, source
from pipeline.report.definitions import Definition, definitions
from pipeline.report.drawing.badge import badge
from pipeline.report.figures import footnoted
from pipeline.report.gates import Judged, JudgedGate
from pipeline.report.headline import badge_words, summary, word
from pipeline.report.inputs import Inputs
from pipeline.report.parts import AlternativeRow, FailureNote, FigureRow, GateRow, Picture, Scenario, StageRow, SweepPart
from pipeline.report.sections.alternatives import alternatives
from pipeline.report.sections.cautions import cautions
from pipeline.report.sections.common import minute
from pipeline.report.sections.environment import environment, forbidding_licence
from pipeline.report.sections.list import SECTIONS
from pipeline.report.sections.stages import failure_notes, stage_row
from pipeline.report.sections.sweep import sweep_part
from pipeline.report.sweep import Sweep
from pipeline.stages.download_model import Model
from pipeline.stages.serve import Server

BADGE = "verdict.svg"
ALERTS = {"PASS": "TIP", "TRIAL": "NOTE", "NOT PASSED": "CAUTION"}  # WARNING for any other verdict


@dataclass(frozen=True)
class View:
    """The content of the report."""

    title: str
    verdict: str
    summary: Text
    alert: str
    profile: str
    again: str
    model: Text
    device: Text
    measured_on: Text
    cautions: list[Text]
    targets: list[GateRow]
    criteria: list[GateRow]
    scenarios: list[Scenario]
    alternatives: list[AlternativeRow]
    stages: list[StageRow]
    failures: list[FailureNote]
    environment: list[tuple[Text, Text]]
    command: str
    proofs: list[tuple[Text, Text, Text]]
    not_measured: list[tuple[Text, Text]]
    definitions: list[Definition] = field(default_factory=list)
    edges: list[tuple[str, str]] = field(default_factory=list)  # (needed, needing) of the stages
    badge: Picture | None = None
    badge_text: str = ""
    licence: Text = ""  # set if it forbids commercial use
    left_out: Text = ""  # what was cut so that the report fits
    sweep: SweepPart | None = None

    @property
    def pictures(self) -> list[Picture]:
        """Return the pictures with files of their own, including those without a drawing."""
        own = [picture for picture in (self.badge, self.sweep.picture if self.sweep else None) if picture is not None]
        return [*own[:1], *(picture for scenario in self.scenarios for picture in scenario.pictures), *own[1:]]

    @property
    def subject(self) -> Message:
        """Return the model, the profile, the device and the time of the measurement."""
        return _(
            "Model {model}, profile {profile}, on {device}; {measured_on}.",
            model=Code(self.model),
            profile=Code(self.profile),
            device=self.device,
            measured_on=self.measured_on,
        )


def build_view(inputs: Inputs) -> View:
    """Return the view of these inputs."""
    judged, outcomes, profile = inputs.judged, inputs.outcomes, inputs.invocation.profile
    server, model = outcomes[Server].data, outcomes[Model].data
    environment_part = environment(outcomes)
    scenarios = [section(inputs) for section in SECTIONS]
    stages = [stage_row(outcome) for outcome in outcomes.stages]
    view = View(
        title=inputs.settings.title,
        verdict=word(judged),
        summary=summary(judged),
        alert=ALERTS.get(word(judged), "WARNING"),
        profile=profile,
        again=rerun_command(profile, inputs.invocation.assignments),
        model=server.model if server else model.name if model else _("no model"),
        device=server.device if server else _("no server"),
        measured_on=measured_on(judged),
        cautions=cautions(inputs),
        targets=footnoted([gate_row(row) for row in judged.gates if row.gate.table == "targets"]),
        criteria=footnoted([gate_row(row) for row in judged.gates if row.gate.table == "criteria"]),
        scenarios=scenarios,
        alternatives=alternatives(inputs),
        stages=stages,
        failures=failure_notes(judged),
        environment=environment_part.facts,
        command=environment_part.command,
        proofs=environment_part.proofs,
        not_measured=missing(judged.gates, scenarios),
        edges=[edge for edge in outcomes.edges if {row.name for row in stages}.issuperset(edge)],
        badge=Picture(BADGE, lambda _words: badge(badge_words(judged), word(judged))),
        badge_text=badge_words(judged),
        licence=forbidding_licence(model),
        sweep=sweep_part(outcomes[Sweep], inputs.alternatives, inputs.marks),
    )
    return replace(view, definitions=definitions(referenced_notes(view)))


def rerun_command(profile: str, assignments: Sequence[str]) -> str:
    """Return the command that repeats the run with the same settings."""
    return shlex.join(["./inv", "all", "--profile", profile, *(word for setting in assignments for word in ("--set", setting))])


def measured_on(judged: Judged) -> Message:
    """Return the start of the first measurement."""
    times = [outcome.envelope.started for outcome in judged.outcomes.measuring if outcome.envelope and outcome.envelope.data]
    return _("measured {when} UTC", when=minute(min(times))) if times else _("nothing was measured")


def referenced_notes(view: View) -> set[str]:
    """Return the ids of the definitions that the view refers to."""
    rows: list[GateRow | FigureRow] = [*view.targets, *view.criteria, *(row for scenario in view.scenarios for row in scenario.figures)]
    tables = [table for scenario in view.scenarios for table in scenario.tables]
    sweep_notes = set(view.sweep.notes) if view.sweep else set()
    return {note for row in rows for note in row.notes} | {note for table in tables for note in table.notes} | sweep_notes


def gate_row(row: JudgedGate) -> GateRow:
    """Return the row of a judged gate."""
    stage, _dot, metric = row.gate.metric.partition(".")
    return GateRow(of_settings(row.gate.label), target(row), measured(row.figure, row.gate.numbers), ruling(row), source(stage, metric))


def target(row: JudgedGate) -> Target:
    """Return the gate's target."""
    gate = row.gate
    statistics = row.statistics or ((of_settings(gate.statistic),) if gate.statistic else ())
    return Target(gate.comparator, gate.target, Message(gate.unit), statistics)


def ruling(row: JudgedGate) -> Ruling:
    """Return the gate's verdict."""
    return Ruling(row.judgement.verdict, row.waiver, row.judgement.reason, row.gate.required)


def missing(judged: Sequence[JudgedGate], scenarios: Sequence[Scenario]) -> list[tuple[Text, Text]]:
    """Return the gates and scenarios that were not measured, each with the reason."""
    gates = [row for row in judged if row.judgement.verdict in UNKNOWN]
    result: list[tuple[Text, Text]] = [(of_settings(row.gate.label), row.judgement.reason) for row in gates]
    result += [(scenario.title, scenario.reason) for scenario in scenarios if scenario.reason]
    return list(dict.fromkeys(result))
