"""A size limit for a report: lists and texts are cut in steps until it fits, and the report names what was cut. Pure."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar, cast

from pipeline.message import Code, Message, Value, _, joined
from pipeline.report.cells import Text
from pipeline.report.parts import Chart, FailureNote, Picture
from pipeline.report.view import View
from pipeline.report.words import Words

# (most entries of a list, most characters of a text), step by step.
STEPS = ((1000, 4000), (200, 1000), (100, 500), (50, 300), (25, 200), (12, 100), (6, 60), (3, 30), (2, 14), (1, 7))
WHOLE = ("stages", "scenarios", "definitions", "edges", "sweep", "charts")  # not lists of data, or cut separately
# Names of the lists of a view, of a scenario and of a sweep.
OF_VIEW: dict[str, Text] = {
    "cautions": _("Cautions"),
    "targets": _("Performance targets"),
    "criteria": _("Success criteria"),
    "alternatives": _("Model alternatives"),
    "failures": _("Failures"),
    "environment": _("Environment"),
    "proofs": _("Proofs"),
    "not_measured": _("Not measured, and why"),
}
OF_SCENARIO: dict[str, Text] = {
    "facts": _("facts"),
    "figures": _("figures"),
    "tables": _("tables"),
    "examples": _("examples"),
    "pictures": _("pictures"),
}
OF_SWEEP: dict[str, Text] = {"facts": _("facts"), "rows": _("cells")}
T = TypeVar("T")


def fit(view: View, render: Callable[[View], str], size: Callable[[str], int], limit: int, words: Words) -> str:
    """Return the rendered view, cut no further than needed for a size of at most `limit`; even the last step may exceed it."""
    candidate = view
    for entries, characters in STEPS:
        if weight(candidate) <= limit and size(text := render(candidate)) <= limit:
            return text
        candidate = shorten(view, entries, characters, words)
    return render(candidate)


def weight(value: object) -> int:
    """Return the number of characters of all texts in the value, a cheap estimate of its rendered size."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, FailureNote):
        return weight([value.failure.message, value.failure.hint, value.failure.log_tail])
    if isinstance(value, list | tuple):
        return sum(weight(item) for item in value)
    if isinstance(value, type | Chart) or not dataclasses.is_dataclass(value):
        return 0
    return sum(weight(getattr(value, field.name)) for field in dataclasses.fields(value))


def shorten(view: View, entries: int, characters: int, words: Words) -> View:
    """Return the view with each list and text cut to these limits, and `left_out` naming what was cut."""
    cut = Cutter(entries, characters, words)
    scenarios = [cut.fields(scenario, qualify(scenario.title, OF_SCENARIO)) for scenario in view.scenarios]
    sweep = cut.fields(view.sweep, qualify(view.sweep.title, OF_SWEEP)) if view.sweep is not None else None
    short = dataclasses.replace(cut.fields(view, OF_VIEW), scenarios=scenarios, sweep=sweep)
    notes: list[Value] = [_("{where}: {shown} of {total}", where=where, shown=entries, total=total) for where, total in cut.lists]
    if cut.texts:
        notes.append(_("{count} long texts, which end in “…”", count=cut.texts))
    return dataclasses.replace(short, left_out=joined("; ", notes))


def qualify(title: Text, names: dict[str, Text]) -> dict[str, Text]:
    """Prefix the names of lists with the title of the part that holds them."""
    return {field: joined(", ", [title, name]) for field, name in names.items()}


class Cutter:
    """Cuts values of any shape and counts what it cut."""

    def __init__(self, entries: int, characters: int, words: Words) -> None:
        self.entries = entries
        self.characters = characters
        self.words = words
        self.lists: list[tuple[Text, int]] = []
        self.texts = 0

    def fields(self, part: T, names: dict[str, Text]) -> T:
        """Return the part with its fields cut; note each cut list under its name."""
        assert dataclasses.is_dataclass(part)
        assert not isinstance(part, type)
        changes: dict[str, object] = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name == "stages":
                changes[field.name] = [self.cut(row) for row in value]
            elif field.name not in WHOLE:
                changes[field.name] = self.cut(value, names.get(field.name, ""))
        return cast(T, dataclasses.replace(part, **changes))

    def cut(self, value: T, name: Text = "") -> T:
        """Return the value, cut."""
        return cast(T, self._cut(value, name))

    def _cut(self, value: object, name: Text) -> object:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            if name and len(value) > self.entries:
                self.lists.append((name, len(value)))
            return [self.cut(item) for item in value[: self.entries]]
        if isinstance(value, tuple):
            return tuple(self.cut(item) for item in value)
        if isinstance(value, FailureNote):
            failure = value.failure
            log_tail = [self.text(line) for line in failure.log_tail[-self.entries :]]
            changes = {"message": self.text(failure.message), "hint": self.text(failure.hint), "log_tail": log_tail}
            return FailureNote(value.stage, failure.model_copy(update=changes))
        if isinstance(value, Picture | type) or not dataclasses.is_dataclass(value):
            return value
        title = self.text(getattr(value, "title", ""))
        return self.fields(value, {"rows": title} if title else {})

    def text(self, text: Text) -> Text:
        """Return the text, translated and cut if it is too long."""
        translation = self.words.text(text) if isinstance(text, Message) else text
        if len(translation) <= self.characters:
            return text
        self.texts += 1
        short = translation[: self.characters - 1] + "…"
        return Code(short) if isinstance(text, Code) else short
