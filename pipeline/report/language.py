"""The report's language, as gettext does it: the English text is the key, other languages stand in catalogues of templates/."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from pipeline.message import Message, Value, filled


@dataclass(frozen=True)
class Catalogue:
    """Texts of one language by the English ones; those with a count by their text for 1, with a form for each index that `form` gives."""

    texts: Mapping[str, str]
    forms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    form: Callable[[int], int] = lambda count: int(count != 1)

    def plural(self, one: str, many: str, count: int) -> str:
        """Return the text for that count; the English one where the catalogue lacks it."""
        if one in self.forms:
            return self.forms[one][self.form(count)]
        text = one if count == 1 else many
        return self.texts.get(text, text)


class Words:
    """English texts in the language of the report."""

    def __init__(self, language: str, catalogue: Catalogue | Mapping[str, str] | None = None) -> None:
        self.language = language
        self.catalogue = Catalogue(catalogue) if isinstance(catalogue, Mapping) else catalogue

    def __call__(self, text: str, **values: object) -> str:
        """Return the text in the report's language with its {names} filled in; KeyError where the catalogue lacks it."""
        known = text if self.catalogue is None else self.catalogue.texts[text]
        return known.format(**values) if values else known

    def given(self, text: str) -> str:
        """Return a text of config.yaml: its own translated, what a user wrote himself as he wrote it."""
        return text if self.catalogue is None else self.catalogue.texts.get(text, text)

    def said(self, message: str) -> str:
        """Return a message by its template and its values, messages among them; plain text where it is known as a whole, else as it is."""
        if self.catalogue is None or not isinstance(message, Message):
            return self.given(message)
        count = message.values.get("count")
        if message.plural and isinstance(count, int):
            return filled(self.catalogue.plural(message.template, message.plural, count), message.values, self._shown)
        return filled(self.given(message.template), message.values, self._shown)

    def number(self, number: float | str) -> str:
        """Return a number as the language writes it."""
        if self.catalogue is None:
            return f"{number}"
        from babel.numbers import get_decimal_symbol

        return f"{number}".replace(".", get_decimal_symbol(self.language))

    def percent(self, number: float | str) -> str:
        """Return a number of percent as the language writes it, its sign included."""
        if self.catalogue is None:
            return f"{number} %"
        from babel import Locale

        pattern = Locale.parse(self.language).percent_formats[None]
        return f"{pattern.prefix[0]}{self.number(number)}{pattern.suffix[0]}"

    def _shown(self, value: Value) -> str:
        return self.said(value) if isinstance(value, Message) else f"{value}"


ENGLISH = Words("en")


def words(language: Literal["en", "tr"], templates: Path) -> Words:
    """Return the texts in that language."""
    if language == "en":
        return Words(language)
    return Words(language, yaml.safe_load((templates / f"{language}.yaml").read_text(encoding="utf-8")))


def read_catalogue(path: Path) -> Catalogue:
    """Return the texts of a gettext catalogue; a text that nobody has translated is not among them."""
    from gettext import c2py

    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        read = read_po(file, ignore_obsolete=True, abort_invalid=True)
    texts: dict[str, str] = {}
    forms: dict[str, Sequence[str]] = {}
    for entry in read:
        if isinstance(entry.id, str) and isinstance(entry.string, str) and entry.id and entry.string:
            texts[entry.id] = entry.string
        elif isinstance(entry.id, tuple) and isinstance(entry.string, tuple) and all(entry.string):
            forms[entry.id[0]] = entry.string
    return Catalogue(texts, forms, c2py(read.plural_expr))
