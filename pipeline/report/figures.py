"""Figures as rows: each with its label, and each definition at the first row that needs it. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from pipeline.measure.figures import Figure
from pipeline.report.cells import Text, measured, source
from pipeline.report.definitions import notes_of
from pipeline.report.parts import FigureRow, GateRow

Marks: TypeAlias = Mapping[str, Collection[float]]  # by <stage>.<figure>: what its gates ask, which no rounding may hide
Row = TypeVar("Row", GateRow, FigureRow)


def rows(stage: str, figures: Mapping[str, Figure], labels: Mapping[str, Text], marks: Marks) -> list[FigureRow]:
    """Return the labelled ones of the stage's figures; the first that has no value for a reason gives that reason."""
    found, reasons = [], {""}
    for name, label in labels.items():
        if name in figures:
            figure = figures[name]
            trouble = figure.reason if figure.value is None else figure.invalid
            cell = measured(figure, marks.get(f"{stage}.{name}", ()), "" if trouble in reasons else trouble)
            reasons.add(trouble)
            found.append(FigureRow(label, cell, source(stage, name)))
    return footnoted(found)


def footnoted(listed: Sequence[Row]) -> list[Row]:
    """Return the rows with each definition noted at the first row that needs it."""
    seen: set[str] = set()
    result = []
    for row in listed:
        fresh = tuple(note for note in notes_of(row.source.metric) if note not in seen)
        seen.update(fresh)
        result.append(replace(row, notes=fresh))
    return result
