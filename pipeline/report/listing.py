"""The gates for the terminal: each with its verdict and where every value in it stands."""

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
    """Return a gate's lines; `gate_at` and `waiver_at` tell where these were set, as Layers.places does."""
    gate, plain = row.gate, Plain(ENGLISH)
    stage, _dot, metric = gate.metric.partition(".")
    by = "by the value and its 95 % bound" if gate.judge_by == "bound" else "by the value alone"
    found = [
        ("verdict", plain.text(replace(ruling(row), required=True))),
        ("target", f"{plain.text(target(row))}; {by}, n ≥ {gate.min_n}; {'required' if gate.required else 'not required'}"),
        ("measured", plain.text(measured(row.figure))),
        ("figure", f"artifacts/{stage}.json → data.figures.{metric}{taken(stage, records)}"),
        ("gate", where(gate_at)),
        ("waiver", where(waiver_at)),
    ]
    return [f"{row.id}: {gate.label}", *(f"  {name:<10}{text}" for name, text in found if text)]


def gate_header(words: Words) -> list[str]:
    """Return what stands above `gate_cells`, as in the report."""
    return [words.text(name) for name in (_("Metric"), _("Target"), _("Measured"), _("Verdict"))]


def gate_cells(row: JudgedGate, words: Words) -> list[str]:
    """Return a gate's row of the report, without its marks and links."""
    cells = (of_settings(row.gate.label), target(row), measured(row.figure, row.gate.numbers), ruling(row))
    return [Plain(words).text(cell) for cell in cells]


def data(row: JudgedGate, gate_at: Mapping[str, str], waiver_at: Mapping[str, str]) -> dict[str, object]:
    """Return the same as `lines` for a program."""
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


def taken(stage: str, records: Iterable[Outcome[Artifact]]) -> str:
    """Return when that stage measured, and on which launch of the server."""
    record = next((record for record in records if record.stage == stage), None)
    if record is None or record.envelope is None:
        return ", nothing on record"
    when = moment(record.envelope.started)
    return f", measured {when}, launch {record.data.launch_id}" if isinstance(record.data, Measurement) else f", no figures, {when}"


def where(places: Mapping[str, str]) -> str:
    """Return where a setting stands, and each part of it that was given anew."""
    return "; ".join(f"{key}: {place}" if key else place for key, place in places.items())
