"""What several sections say in the same way. Pure."""

from datetime import datetime

from pipeline.engine.record import Artifact, Outcome
from pipeline.message import Message, Value, _, joined
from pipeline.report.cells import Text, glued, number


def reason_of(outcome: Outcome[Artifact]) -> Text:
    """Return why the outcome has no data; empty when it has."""
    if outcome.data is not None:
        return ""
    return outcome.failure.message if outcome.failure else _("this stage never ran")


def yes(holds: bool) -> Message:
    """Return whether it holds, so that what does not stands out."""
    return _("yes") if holds else _("NO")


def counter(count: int | None) -> Value:
    """Return a server's counter."""
    return _("not available") if count is None else count


def reasons(said: Text) -> Text:
    """Return several reasons that stand in one text."""
    return said if isinstance(said, Message) else joined(", ", said.split(", "))


def milliseconds(*values: float) -> Message:
    """Return the values with their unit."""
    return glued(joined(", ", [number(value) for value in values]), " ms")


def moment(when: datetime) -> str:
    """Return a wall-clock label."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def minute(when: datetime) -> str:
    """Return a wall-clock label without seconds and zone."""
    return f"{when:%Y-%m-%d %H:%M}"
