"""Cells of the report: values that each format turns into text. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.measure.digits import Shown, ends_of, shown
from pipeline.measure.digits import number as number_shown
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import SIGNS
from pipeline.message import Code, Digits, Message, Value, _, joined

Text: TypeAlias = str  # a Message is translated, Code is marked up, and any other text is left as it is
NOT_MEASURED = "NOT_MEASURED"


def glued(*parts: Value) -> Message:
    """Concatenate the parts."""
    return joined("", parts)


def comma_separated(parts: Iterable[Value]) -> Message:
    """Join the parts with commas."""
    return joined(", ", parts)


def with_unit(digits: str, unit: Text) -> Message:
    """Return a number with its unit; the language decides the place of the percent sign."""
    number = Digits(digits)
    return _("{number} %", number=number) if unit == "%" else glued(number, " ", unit) if unit else glued(number)


def number(value: float, marks: Collection[float] = ()) -> Digits:
    """Return the value with three significant digits, whole from 100 on, never rounded across a mark."""
    return Digits(number_shown(value, marks))


@dataclass(frozen=True)
class Measured:
    """A figure with unit, n and 95 % bounds, or the reason why there is none; rounding never moves it across a mark."""

    value: float | None
    unit: Text = ""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    marks: tuple[float, ...] = ()
    reason: Text = ""
    aside: Text = ""  # a further remark
    word: str = NOT_MEASURED  # in place of a value

    @property
    def text(self) -> Message:
        """Return the value with its unit, or the word in its place."""
        return with_unit(self._shown.value, self.unit) if self.value is not None else Message(self.word)

    @property
    def details(self) -> list[Message]:
        """Return n, the bounds and the aside, as far as there are any."""
        if self.value is None:
            return []
        result = [glued("n = ", self.n)] if self.n is not None else []
        if self._shown.low or self._shown.high:
            result.append(glued(_("95 %"), ": ", bounds_of(self._shown)))
        return [*result, *([glued(self.aside)] if self.aside else [])]

    @property
    def _shown(self) -> Shown:
        return shown(self.value or 0.0, self.low, self.high, (*self.marks, *ends_of(self.unit)))


def measured(figure: Figure | None, marks: Collection[float] = (), reason: Text = "", aside: Text = "") -> Measured:
    """Return the figure as a cell."""
    if figure is not None and figure.undecided:
        return Measured(None, reason=reason, word="INCONCLUSIVE")
    if figure is None or figure.value is None:
        return Measured(None, reason=reason)
    if figure.invalid:
        return Measured(None, reason=reason, word="INVALID")
    return Measured(figure.value, Message(figure.unit), figure.n, figure.low, figure.high, tuple(marks), aside=aside)


def bounds_of(bounds: Shown) -> Message:
    """Return the bounds as text."""
    if bounds.low and bounds.high:
        return _("{low} to {high}", low=Digits(bounds.low), high=Digits(bounds.high))
    return glued("≥ ", Digits(bounds.low)) if bounds.low else glued("≤ ", Digits(bounds.high))


@dataclass(frozen=True)
class Target:
    """The target of a figure: a number, or a name if the plan of a start had to provide it; `statistics` names the judged values."""

    comparator: str
    target: float | str
    unit: Text = ""
    statistics: tuple[Text, ...] = ()

    @property
    def text(self) -> Message:
        """Return the comparator and the target."""
        if isinstance(self.target, str):
            return glued(SIGNS[self.comparator], " ", self.target)
        return glued(SIGNS[self.comparator], " ", with_unit(f"{self.target:g}", self.unit))

    @property
    def aside(self) -> Message:
        """Return the statistics of the figure."""
        return joined("; ", self.statistics)


@dataclass(frozen=True)
class Ruling:
    """A verdict with its waiver, its reason, and whether the profile requires it."""

    word: str
    waiver: Text = ""
    reason: Text = ""
    required: bool = True

    @property
    def note(self) -> Message:
        """Return the waiver and the reason, and whether the profile requires the gate."""
        waiver = [glued("(", self.waiver, ")")] if self.waiver else []
        text = joined(": ", [*waiver, *([self.reason] if self.reason else [])])
        return text if self.required else glued(text, _(" (not required by this profile)"))

    @property
    def after(self) -> Message:
        """Return the note with the separator that follows the verdict."""
        return glued(" " if self.waiver else ": " if self.reason else "", self.note)


@dataclass(frozen=True)
class Source:
    """The location of a figure, or of a cell of a sweep, in the records; `metric` is its name in report.json."""

    text: Text
    metric: str = ""


def source(stage: str, name: str) -> Source:
    """Return the location of the stage's figure in its record."""
    return Source(glued(Code(f"artifacts/{stage}.json"), " → ", Code(name)), f"{stage}.{name}")


@dataclass(frozen=True)
class Amount:
    """A text with the number by which it is sorted."""

    text: Text
    value: float


@dataclass(frozen=True)
class Verbatim:
    """Text of a model or a user, shown as it is."""

    text: str


Cell: TypeAlias = "Text | int | Measured | Target | Ruling | Source | Amount | Verbatim | tuple[Cell, ...]"


def amount(parts: Iterable[Value], value: float) -> Amount:
    """Return the concatenated parts as an Amount."""
    return Amount(joined("", parts), value)


def sorting_key(cell: Cell) -> float | None:
    """Return the number by which a cell is sorted; None if there is none."""
    if isinstance(cell, Measured | Amount):
        return cell.value
    if isinstance(cell, Target):
        return None if isinstance(cell.target, str) else cell.target
    return float(cell) if isinstance(cell, int | Digits) else None


def of_settings(text: str) -> Message:
    """Return a text of config.yaml as a message, in which backticks mark code; the default texts have translations."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return Message(text)
    codes = {str(at): Code(piece) for at, piece in enumerate(pieces[1::2])}
    return Message("".join(f"{{{at // 2}}}" if at % 2 else piece for at, piece in enumerate(pieces)), codes)
