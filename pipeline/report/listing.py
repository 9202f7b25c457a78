"""The gates for the terminal: each with its verdict and where every value in it stands."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.record import Measurement, Outcome
from pipeline.report.gates import JudgedGate
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
