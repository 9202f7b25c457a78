"""The gates for the terminal: each with its verdict and the place where each value is defined."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pipeline.engine.record import Artifact, Measurement, Outcome
from pipeline.message import _
from pipeline.report.cells import measured, of_settings
from pipeline.report.formats.plain import Plain
from pipeline.report.gates import JudgedGate
from pipeline.report.sections.common import moment
from pipeline.report.view import ruling, target
from pipeline.report.words import ENGLISH, Words


def lines(row: JudgedGate, records: Iterable[Outcome[Artifact]], gate_at: Mapping[str, str], waiver_at: Mapping[str, str]) -> list[str]:
    """Return a gate's lines; `gate_at` and `waiver_at` are the places where they are set, from Layers.places."""
    gate, plain = row.gate, Plain(ENGLISH)
    stage, _dot, metric = gate.metric.partition(".")
    by = "by the value and its 95 % bound" if gate.judge_by == "bound" else "by the value alone"
    rows = [
        ("verdict", plain.text(replace(ruling(row), required=True))),
        ("target", f"{plain.text(target(row))}; {by}, n ≥ {gate.min_n}; {'required' if gate.required else 'not required'}"),
        ("measured", plain.text(measured(row.figure))),
        ("figure", f"artifacts/{stage}.json → data.figures.{metric}{provenance(stage, records)}"),
        ("gate", places_text(gate_at)),
        ("waiver", places_text(waiver_at)),
    ]
    return [f"{row.id}: {gate.label}", *(f"  {name:<10}{text}" for name, text in rows if text)]


def gate_header(words: Words) -> list[str]:
    """Return the header of the report's gate table, for `gate_cells`."""
    return [words.text(name) for name in (_("Metric"), _("Target"), _("Measured"), _("Verdict"))]


def gate_cells(row: JudgedGate, words: Words) -> list[str]:
    """Return a gate's row of the report as plain text."""
    cells = (of_settings(row.gate.label), target(row), measured(row.figure, row.gate.numbers), ruling(row))
    return [Plain(words).text(cell) for cell in cells]


def data(row: JudgedGate, gate_at: Mapping[str, str], waiver_at: Mapping[str, str]) -> dict[str, object]:
    """Return a gate for programs, with the same content as `lines`."""
    return {
        "gate": row.id,
        **row.gate.model_dump(mode="json"),
        "figure": row.figure.model_dump(mode="json") if row.figure else None,
        "verdict": row.judgement.verdict,
        "reason": row.judgement.reason,
        "waived": row.waived,
        "waiver": row.waiver,
        "set_at": dict(gate_at),
        "waiver_set_at": dict(waiver_at),
    }


def provenance(stage: str, records: Iterable[Outcome[Artifact]]) -> str:
    """Return when and on which launch the stage measured."""
    record = next((record for record in records if record.stage == stage), None)
    if record is None or record.envelope is None:
        return ", nothing on record"
    when = moment(record.envelope.started)
    return f", measured {when}, launch {record.data.launch_id}" if isinstance(record.data, Measurement) else f", no figures, {when}"


def places_text(places: Mapping[str, str]) -> str:
    """Return the place of a setting, and of each key of it that is overridden."""
    return "; ".join(f"{key}: {place}" if key else place for key, place in places.items())
