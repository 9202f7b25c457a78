"""The gates for the terminal: each with its verdict and where every value in it stands."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.engine.record import Measurement, Outcome
from pipeline.report.gates import JudgedGate
from pipeline.report.language import Words
from pipeline.report.view import measured_words, moment, target_words, with_notes


def lines(row: JudgedGate, records: Iterable[Outcome[Any]], gate_at: Mapping[str, str], waiver_at: Mapping[str, str]) -> list[str]:
    """Return a gate's lines; `gate_at` and `waiver_at` tell where these were set, as Layers.places does."""
    gate = row.gate
    stage, _, metric = gate.metric.partition(".")
    by = "by the value and its 95 % bound" if gate.judge_by == "bound" else "by the value alone"
    found = [
        ("verdict", with_notes(row.judgement.verdict, row.waiver, row.judgement.reason)),
        ("target", f"{target_words(gate)}; {by}, n ≥ {gate.min_n}; {'required' if gate.required else 'not required'}"),
        ("measured", measured_words(row.figure, bold="")),
        ("figure", f"artifacts/{stage}.json → data.figures.{metric}{taken(stage, records)}"),
        ("gate", words(gate_at)),
        ("waiver", words(waiver_at)),
    ]
    return [f"{row.id}: {gate.label}", *(f"  {name:<10}{text}" for name, text in found if text)]


def gate_header(t: Words) -> list[str]:
    """Return what stands above `gate_cells`, as in the report."""
    return [t("Metric"), t("Target"), t("Measured"), t("Verdict")]


def gate_cells(row: JudgedGate, t: Words) -> list[str]:
    """Return a gate's row of the report, without its marks and links."""
    verdict = with_notes(row.judgement.verdict, t.said(row.waiver), t.said(row.judgement.reason))
    required = "" if row.gate.required else t(" (not required by this profile)")
    measured = measured_words(row.figure, bold="", t=t, marks=row.gate.numbers)
    return [t.given(row.gate.label), target_words(row.gate, t), measured, verdict + required]


def data(row: JudgedGate, gate_at: Mapping[str, str], waiver_at: Mapping[str, str]) -> dict[str, Any]:
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


def taken(stage: str, records: Iterable[Outcome[Any]]) -> str:
    """Return when that stage measured, and on which launch of the server."""
    record = next((record for record in records if record.stage == stage), None)
    if record is None or record.envelope is None:
        return ", nothing on record"
    when = moment(record.envelope.started)
    return f", measured {when}, launch {record.data.launch_id}" if isinstance(record.data, Measurement) else f", no figures, {when}"


def words(places: Mapping[str, str]) -> str:
    """Return where a setting stands, and each part of it that was given anew."""
    return "; ".join(f"{key}: {where}" if key else where for key, where in places.items())
