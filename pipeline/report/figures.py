"""Figures as labelled rows, with each definition noted at the first row that needs it. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from pipeline.measure.figures import Figure
from pipeline.report.cells import Text, measured, source
from pipeline.report.definitions import notes_of
from pipeline.report.parts import FigureRow, GateRow

Marks: TypeAlias = Mapping[str, Collection[float]]  # by <stage>.<figure>: the targets of its gates, across which no value may be rounded
Row = TypeVar("Row", GateRow, FigureRow)


def rows(stage: str, figures: Mapping[str, Figure], labels: Mapping[str, Text], marks: Marks) -> list[FigureRow]:
    """Return the stage's figures that have a label; a reason shared by several missing values is given once."""
    result, reasons = [], {""}
    for name, label in labels.items():
        if name in figures:
            figure = figures[name]
            trouble = figure.reason if figure.value is None else figure.invalid
            cell = measured(figure, marks.get(f"{stage}.{name}", ()), "" if trouble in reasons else trouble)
            reasons.add(trouble)
            result.append(FigureRow(label, cell, source(stage, name)))
    return footnoted(result)


def footnoted(entries: Sequence[Row]) -> list[Row]:
    """Return the rows, with each definition noted at the first row that needs it."""
    seen: set[str] = set()
    result = []
    for row in entries:
        notes = tuple(note for note in notes_of(row.source.metric) if note not in seen)
        seen.update(notes)
        result.append(replace(row, notes=notes))
    return result
