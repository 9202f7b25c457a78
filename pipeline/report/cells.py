"""What stands in one place of the report: values, which each format turns into text once. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.measure.digits import Shown, ends_of, shown
from pipeline.measure.digits import number as number_shown
from pipeline.measure.figures import Figure
from pipeline.measure.verdicts import SIGNS
from pipeline.message import Code, Digits, Message, Value, _, joined

Text: TypeAlias = str  # a Message is said in the report's language, Code shown as code; other text is left as somebody wrote it
NOT_MEASURED = "NOT_MEASURED"


def glued(*parts: Value) -> Message:
    """Return the parts one after the other."""
    return joined("", parts)


def comma_separated(parts: Iterable[Value]) -> Message:
    """Return the parts with a comma between them."""
    return joined(", ", parts)


def with_unit(digits: str, unit: Text) -> Message:
    """Return a number with its unit; where the sign of percent stands is up to the language."""
    number = Digits(digits)
    return _("{number} %", number=number) if unit == "%" else glued(number, " ", unit) if unit else glued(number)


def number(value: float, marks: Collection[float] = ()) -> Digits:
    """Return the value with three significant digits, whole from 100 on, on its side of each mark."""
    return Digits(number_shown(value, marks))


@dataclass(frozen=True)
class Measured:
    """A figure with unit, n and 95 % bounds, or that there is none and why; no rounding moves it across one of the marks."""

    value: float | None
    unit: Text = ""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    marks: tuple[float, ...] = ()
    reason: Text = ""
    aside: Text = ""  # what else is to be said of it
    word: str = NOT_MEASURED  # in place of a value

    @property
    def text(self) -> Message:
        """Return the value with its unit."""
        return with_unit(self._shown.value, self.unit) if self.value is not None else Message(self.word)

    @property
    def details(self) -> list[Message]:
        """Return n, bounds, and what else is to be said."""
        if self.value is None:
            return []
        found = [glued("n = ", self.n)] if self.n is not None else []
        if self._shown.low or self._shown.high:
            found.append(glued(_("95 %"), ": ", bounds_of(self._shown)))
        return [*found, *([glued(self.aside)] if self.aside else [])]

    @property
    def _shown(self) -> Shown:
        return shown(self.value or 0.0, self.low, self.high, (*self.marks, *ends_of(self.unit)))


def measured(figure: Figure | None, marks: Collection[float] = (), reason: Text = "", aside: Text = "") -> Measured:
    """Return the figure as a cell."""
    if figure is None or figure.value is None:
        return Measured(None, reason=reason)
    if figure.invalid:
        return Measured(None, reason=reason, word="INVALID")
    return Measured(figure.value, Message(figure.unit), figure.n, figure.low, figure.high, tuple(marks), aside=aside)


def bounds_of(found: Shown) -> Message:
    """Return the bounds in a few words."""
    if found.low and found.high:
        return _("{low} to {high}", low=Digits(found.low), high=Digits(found.high))
    return glued("≥ ", Digits(found.low)) if found.low else glued("≤ ", Digits(found.high))


@dataclass(frozen=True)
class Target:
    """What a figure must meet; a target that only the plan of a start could tell is named. `statistics`: which of its values."""

    comparator: str
    target: float | str
    unit: Text = ""
    statistics: tuple[Text, ...] = ()

    @property
    def text(self) -> Message:
        """Return what it must meet."""
        if isinstance(self.target, str):
            return glued(SIGNS[self.comparator], " ", self.target)
        return glued(SIGNS[self.comparator], " ", with_unit(f"{self.target:g}", self.unit))

    @property
    def aside(self) -> Message:
        """Return which statistic of the figure."""
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
        """Return what is said beside the word."""
        waiver = [glued("(", self.waiver, ")")] if self.waiver else []
        said = joined(": ", [*waiver, *([self.reason] if self.reason else [])])
        return said if self.required else glued(said, _(" (not required by this profile)"))

    @property
    def after(self) -> Message:
        """Return the note as it follows the word."""
        return glued(" " if self.waiver else ": " if self.reason else "", self.note)


@dataclass(frozen=True)
class Source:
    """Where a figure, or a cell of a sweep, is on record: `metric` is its name in report.json."""

    text: Text
    metric: str = ""


def source(stage: str, name: str) -> Source:
    """Return where the stage's figure is on record."""
    return Source(glued(Code(f"artifacts/{stage}.json"), " → ", Code(name)), f"{stage}.{name}")


@dataclass(frozen=True)
class Amount:
    """A text that stands for an amount, by which it is sorted."""

    text: Text
    value: float


@dataclass(frozen=True)
class Verbatim:
    """What a model or a user wrote, shown as it is."""

    text: str


Cell: TypeAlias = "Text | int | Measured | Target | Ruling | Source | Amount | Verbatim | tuple[Cell, ...]"


def amount(parts: Iterable[Value], value: float) -> Amount:
    """Return the parts, one after the other, as an amount."""
    return Amount(joined("", parts), value)


def sorting_key(cell: Cell) -> float | None:
    """Return by which number a cell is sorted; None where it is none."""
    if isinstance(cell, Measured | Amount):
        return cell.value
    if isinstance(cell, Target):
        return None if isinstance(cell.target, str) else cell.target
    return float(cell) if isinstance(cell, int | Digits) else None


def of_settings(text: str) -> Message:
    """Return a text of config.yaml, in which backticks mark code; what is ours of it has a translation."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return Message(text)
    codes = {str(at): Code(piece) for at, piece in enumerate(pieces[1::2])}
    return Message("".join(f"{{{at // 2}}}" if at % 2 else piece for at, piece in enumerate(pieces)), codes)
