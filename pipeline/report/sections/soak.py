"""The soak in the guide's test 3: its figures if it ran on the same launch, else a note on its launch."""

from pipeline.engine.outcomes import Outcomes
from pipeline.engine.record import SOAK_NOTE
from pipeline.measure.memory import S_PER_H
from pipeline.message import Code, Digits, Message, _, joined
from pipeline.report.cells import Cell, Text, measured, number
from pipeline.report.parts import Table
from pipeline.stages.measure_vram import MemoryUse, Soak, SoakState
from pipeline.stages.serve import Server

SERIES: dict[str, Text] = {"vram": "VRAM", "host_pss": _("host memory (PSS)"), "host_rss": _("host memory (RSS)")}
FIGURES: dict[str, Text] = {
    "peak_mib": _("peak"),
    "steady_mib": _("steady (median under load)"),
    "range_mib": _("range under load"),
    "drift_mib_h": _("drift under load (Theil–Sen)"),
    "change_mib": _("last tenth of the load − first"),
    "stable": _("stable (n: seconds of load)"),
}
LABELS: dict[str, Text] = {
    **{f"{series}_{figure}": joined(", ", [name, label]) for series, name in SERIES.items() for figure, label in FIGURES.items()},
    "preemptions": _("preemptions under load (n: seconds of load)"),
}
STATES: dict[SoakState, Message] = {
    "complete": _("complete"),
    "running": _("running or killed"),
    "interrupted": _("interrupted"),
    "failed": _("failed"),
}
RECORD = Code(f"artifacts/{SOAK_NOTE}.json")


def same_launch(soak: Soak, outcomes: Outcomes) -> bool:
    """Tell whether the soak ran on the launch that the report is about."""
    memory, server = outcomes[MemoryUse].data, outcomes[Server].data
    return soak.launch_id == (memory.launch_id if memory else server.handle.launch_id if server else None)


def soak_facts(outcomes: Outcomes) -> list[Text]:
    """Return a note on a soak of another launch; empty if there is none."""
    soak = outcomes[Soak].data
    if soak is None or same_launch(soak, outcomes):
        return []
    return [
        _(
            "A soak of {hours} of {target} h is on record ({record}), of another launch: {launch}.",
            hours=number(soak.load.seconds / S_PER_H),
            target=Digits(f"{soak.asked_h:g}"),
            record=RECORD,
            launch=soak.launch_id,
        )
    ]


def soak_tables(outcomes: Outcomes) -> list[Table]:
    """Return the figures of a soak of this launch; empty if there is none."""
    soak = outcomes[Soak].data
    if soak is None or not same_launch(soak, outcomes):
        return []
    rows: list[list[Cell]] = [
        [label, measured(soak.figures[name])]
        for name, label in LABELS.items()
        if name in soak.figures and soak.figures[name].value is not None
    ]
    title = _(
        "Soak, {state}: {hours} of {target} h of load, {requests} requests, {failed} failed ({record})",
        state=STATES[soak.state],
        hours=number(soak.load.seconds / S_PER_H),
        target=Digits(f"{soak.asked_h:g}"),
        requests=soak.load.requests,
        failed=soak.load.failed,
        record=RECORD,
    )
    return [Table(title, [_("Figure"), _("Measured")], rows, notes=("load", "stable"))]
