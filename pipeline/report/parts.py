"""What the report is put together of: rows, tables, charts, pictures and scenarios, without any layout or language."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from pipeline.config.schema import IMAGES
from pipeline.engine.record import Failure
from pipeline.report.cells import Amount, Cell, Measured, Ruling, Source, Target, Text
from pipeline.report.words import Words

Drawing: TypeAlias = Callable[[Words], str]  # an SVG with its texts in that language


@dataclass(frozen=True)
class GateRow:
    """One line of a table of targets; `notes` are its definitions."""

    label: Text
    target: Target
    measured: Measured
    ruling: Ruling
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FigureRow:
    """One figure: what it is, its value with bounds and n, and where it is on record."""

    label: Text
    measured: Measured
    source: Source
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table beneath the figures; `shaded`: counts that are the darker the larger."""

    title: Text
    header: list[Text]
    rows: list[list[Cell]]
    notes: tuple[str, ...] = ()
    shaded: bool = False


@dataclass(frozen=True)
class Chart:
    """Drawings of the page with a caption, what belongs to each colour, and the numbers they show; or why there are none."""

    id: str
    title: Text
    note: Text = ""
    keys: list[Text] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture in a file of its own beside the report; without a drawing there is nothing to show."""

    file: str
    drawing: Drawing | None

    @property
    def path(self) -> str:
        """Return where it is, seen from the report."""
        return f"{IMAGES}/{self.file}"


@dataclass(frozen=True)
class Scenario:
    """One of the guide's tests: its facts, figures, tables, charts and pictures, and why it was not measured, if so.

    `examples` are wrong answers: case, arm, failure, answer.
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
    """One stage: how it ended in words and in kind (ok, failed, skipped, never), how long it took, when."""

    name: str
    state: Text
    took: Amount | Text = ""
    when: Text = ""
    kind: str = "never"


@dataclass(frozen=True)
class FailureNote:
    """A failed stage with cause, fix and the end of its log."""

    stage: str
    failure: Failure


@dataclass(frozen=True)
class CellRow:
    """One cell of a sweep: what became of it, its model, its figures under the section's header, its own verdict and report."""

    name: str
    state: Text | Ruling
    model: Text
    figures: list[Measured]
    ruling: Ruling
    source: Source


@dataclass(frozen=True)
class SweepPart:
    """The last sweep beside the guide's models, or the reason why there is none."""

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
    """One row of the guide's table of models, with what was measured of it."""

    model: Text
    size: Text
    vram: Text
    use_case: Text
    measured: Text | tuple[Measured, ...]
