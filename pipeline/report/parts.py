"""The parts of the report: rows, tables, charts, pictures and scenarios, independent of layout and language."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from pipeline.config.schema import IMAGES
from pipeline.engine.record import Failure
from pipeline.report.cells import Amount, Cell, Measured, Ruling, Source, Target, Text
from pipeline.report.words import Words

Drawing: TypeAlias = Callable[[Words], str]  # returns an SVG with its texts in that language


@dataclass(frozen=True)
class GateRow:
    """A row of a gate table; `notes` are the ids of its definitions."""

    label: Text
    target: Target
    measured: Measured
    ruling: Ruling
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FigureRow:
    """A row of a figure: label, value with bounds and n, and location in the records."""

    label: Text
    measured: Measured
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table below the figures; `shaded` colours its counts, darker for larger ones."""

    title: Text
    header: list[Text]
    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()
    shaded: bool = False


@dataclass(frozen=True)
class Chart:
    """Drawings of the page with a title, a note, the legend and tables of their numbers; without drawings, the note gives the reason."""

    id: str
    title: Text
    note: Text = ""
    keys: list[Text] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture in a file of its own next to the report; no drawing means no file."""

    file: str
    drawing: Drawing | None

    @property
    def path(self) -> str:
        """Return the path relative to the report."""
        return f"{IMAGES}/{self.file}"


@dataclass(frozen=True)
class Scenario:
    """One of the guide's tests: its facts, figures, tables, charts and pictures; `reason` is why it was not measured, if so.

    `examples` are wrong answers, each (case, arm, failure, answer).
    """

    title: Text
    reason: Text = ""
    facts: list[Text] = field(default_factory=list)
    figures: list[FigureRow] = field(default_factory=list)
    examples: list[tuple[Text, Text, Text, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class StageRow:
    """A row of a stage: its state as text and as kind (ok, failed, skipped, never), its duration and its start."""

    name: str
    state: Text
    took: Amount | Text = ""
    when: Text = ""
    kind: str = "never"


@dataclass(frozen=True)
class FailureNote:
    """A failed stage with the cause, the fix and the end of its log."""

    stage: str
    failure: Failure


@dataclass(frozen=True)
class CellRow:
    """A row of a sweep's cell: its state, its model, its figures in the header's order, its verdict and its report."""

    name: str
    state: Text | Ruling
    model: Text
    figures: list[Measured]
    ruling: Ruling
    source: Source


@dataclass(frozen=True)
class SweepPart:
    """The last sweep compared with the guide's models, or the reason why there is none."""

    title: Text
    reason: Text = ""
    facts: list[Text] = field(default_factory=list)
    recommendation: Text = ""
    rule: Text = ""
    header: list[Text] = field(default_factory=list)
    rows: list[CellRow] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    picture: Picture | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AlternativeRow:
    """A row of the guide's table of models, with this run's figures."""

    model: Text
    size: Text
    vram: Text
    use_case: Text
    measured: Text | tuple[Measured, ...]
