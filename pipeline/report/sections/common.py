"""Texts that several sections share. Pure."""

from datetime import datetime

from pipeline.engine.record import Artifact, Outcome
from pipeline.message import Message, Value, _, joined
from pipeline.report.cells import Text, glued, number


def reason_of(outcome: Outcome[Artifact]) -> Text:
    """Return why the outcome has no data; empty if it has data."""
    if outcome.data is not None:
        return ""
    return outcome.failure.message if outcome.failure else _("this stage never ran")


def yes(holds: bool) -> Message:
    """Return yes or a conspicuous NO."""
    return _("yes") if holds else _("NO")


def counter(count: int | None) -> Value:
    """Return the value of a server's counter, or that it is not available."""
    return _("not available") if count is None else count


def reasons(text: Text) -> Text:
    """Return several reasons, recorded as one text, as a message."""
    return text if isinstance(text, Message) else joined(", ", text.split(", "))


def milliseconds(*values: float) -> Message:
    """Return the values in ms with their unit."""
    return glued(joined(", ", [number(value) for value in values]), " ms")


def moment(when: datetime) -> str:
    """Return a wall-clock time in UTC."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def minute(when: datetime) -> str:
    """Return a wall-clock time without seconds and zone."""
    return f"{when:%Y-%m-%d %H:%M}"
