"""Cells as plain text, for the terminal and as the base of the other formats."""

from pipeline.message import Value
from pipeline.report.cells import Amount, Cell, Measured, Ruling, Source, Target, Verbatim
from pipeline.report.words import ENGLISH, Words


class Plain:
    """Cells in a language, as text without layout."""

    def __init__(self, words: Words = ENGLISH) -> None:
        self.words = words

    def text(self, cell: Cell) -> str:
        """Return the cell as text."""
        say = self.say
        if isinstance(cell, Measured):
            return self.measured(cell)
        if isinstance(cell, Target):
            return say(cell.text) + (f" ({say(cell.aside)})" if cell.statistics else "")
        if isinstance(cell, Ruling):
            return cell.word + say(cell.after)
        if isinstance(cell, Source | Amount):
            return say(cell.text)
        if isinstance(cell, tuple):
            return ", ".join(self.text(part) for part in cell)
        return cell.text if isinstance(cell, Verbatim) else say(cell)

    def say(self, value: Value) -> str:
        """Return a value in the language, with code in backticks."""
        return self.words.text(value)

    def measured(self, cell: Measured, bold: str = "") -> str:
        """Return a figure with n and bounds; `bold` is the markup around its value."""
        value, details = self.say(cell.text), "; ".join(self.say(detail) for detail in cell.details)
        reason = f": {self.say(cell.reason)}" if cell.reason else ""
        return (value if cell.value is None else f"{bold}{value}{bold}") + (f" ({details})" if details else "") + reason
