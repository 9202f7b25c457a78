"""A report that must fit: lists and texts are cut in steps until it does, and it says what was cut. Pure."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.report.language import Words
from pipeline.report.view import FailureNote, Scenario, SweepSection, View

# (entries of a list, characters of a text), step by step.
STEPS = ((1000, 4000), (200, 1000), (100, 500), (50, 300), (25, 200), (12, 100), (6, 60), (3, 30), (2, 14), (1, 7))
WHOLE = ("stages", "scenarios", "definitions", "edges", "sweep")  # not lists of the data, or cut by themselves
T = TypeVar("T")


def fitted(view: View, render: Callable[[View], str], size: Callable[[str], int], limit: int, t: Words) -> str:
    """Return the rendered view, cut as little as lets its size be at most `limit`."""
    made = view
    for entries, characters in STEPS:
        if weight(made) <= limit and size(text := render(made)) <= limit:
            return text
        made = shortened(view, entries, characters, t)
    return render(made)


def weight(value: Any) -> int:
    """Return the characters of all texts in the value, which a rendering cannot be shorter than."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, FailureNote):
        return weight([value.failure.message, value.failure.hint, value.failure.log_tail])
    if isinstance(value, list | tuple):
        return sum(weight(item) for item in value)
    return sum(weight(getattr(value, field.name)) for field in dataclasses.fields(value)) if dataclasses.is_dataclass(value) else 0


def shortened(view: View, entries: int, characters: int, t: Words) -> View:
    """Return the view with at most so many entries in each list and characters in each text, and what was cut."""
    cut = Cutter(entries, characters)
    names = {
        "cautions": t("Cautions"),
        "targets": t("Performance targets"),
        "criteria": t("Success criteria"),
        "alternatives": t("Model alternatives"),
        "failures": t("Failures"),
        "environment": t("Environment"),
        "proofs": t("Proofs"),
        "not_measured": t("Not measured, and why"),
    }
    told = {"facts": t("facts"), "figures": t("figures"), "tables": t("tables"), "examples": t("examples"), "pictures": t("pictures")}
    scenarios = [
        dataclasses.replace(scenario, **cut.fields(scenario, {field: f"{scenario.title}, {name}" for field, name in told.items()}))
        for scenario in view.scenarios
    ]
    sweep = view.sweep
    if sweep is not None:
        named = {"facts": f"{sweep.title}, {t('facts')}", "rows": f"{sweep.title}, {t('cells')}"}
        sweep = dataclasses.replace(sweep, **cut.fields(sweep, named))
    made = dataclasses.replace(view, **{**cut.fields(view, names), "scenarios": scenarios, "sweep": sweep})
    said = [t("{where}: {shown} of {total}", where=where, shown=entries, total=total) for where, total in cut.lists]
    if cut.texts:
        said.append(t("{count} long texts, which end in “…”", count=cut.texts))
    return dataclasses.replace(made, left_out=said)


class Cutter:
    """Cuts values of any shape, and keeps count of what it cut."""

    def __init__(self, entries: int, characters: int) -> None:
        self.entries = entries
        self.characters = characters
        self.lists: list[tuple[str, int]] = []
        self.texts = 0

    def fields(self, part: View | Scenario | SweepSection, names: dict[str, str]) -> dict[str, Any]:
        """Return the part's fields, cut; a list that is cut is noted under its name."""
        found = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name == "stages":
                found[field.name] = [self.cut(row) for row in value]
            elif field.name not in WHOLE:
                found[field.name] = self.cut(value, names.get(field.name, ""))
        return found

    def cut(self, value: T, name: str = "") -> T:
        """Return the value, cut."""
        found: Any = value
        if isinstance(value, str):
            found = self.text(value)
        elif isinstance(value, list):
            if name and len(value) > self.entries:
                self.lists.append((name, len(value)))
            found = [self.cut(item) for item in value[: self.entries]]
        elif isinstance(value, tuple):
            found = tuple(self.cut(item) for item in value)
        elif isinstance(value, FailureNote):
            failure = value.failure
            last = [self.text(line) for line in failure.log_tail[-self.entries :]]
            short = {"message": self.text(failure.message), "hint": self.text(failure.hint), "log_tail": last}
            found = FailureNote(value.stage, failure.model_copy(update=short))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            title = self.text(getattr(value, "title", ""))
            changes = {
                field.name: self.cut(getattr(value, field.name), title if field.name == "rows" else "")
                for field in dataclasses.fields(value)
            }
            found = dataclasses.replace(value, **changes)
        return found  # type: ignore[no-any-return]

    def text(self, text: str) -> str:
        """Return the text, cut."""
        if len(text) <= self.characters:
            return text
        self.texts += 1
        return text[: self.characters - 1] + "…"
