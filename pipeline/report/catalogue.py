"""Gettext catalogues and localised numbers, with Babel. An English report does not import Babel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Catalogue:
    """Translations by English text; `forms` holds plural forms by the English singular, and `form` returns the index for a count."""

    texts: Mapping[str, str]
    forms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    form: Callable[[int], int] = lambda count: int(count != 1)

    def plural(self, one: str, many: str, count: int) -> str:
        """Return the text for that count, in English if the catalogue lacks it."""
        if one in self.forms:
            return self.forms[one][self.form(count)]
        text = one if count == 1 else many
        return self.texts.get(text, text)


def read_catalogue(path: Path) -> Catalogue:
    """Read a gettext catalogue, without untranslated and obsolete entries."""
    from gettext import c2py

    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        catalogue = read_po(file, ignore_obsolete=True, abort_invalid=True)
    texts: dict[str, str] = {}
    forms: dict[str, Sequence[str]] = {}
    for entry in catalogue:
        if isinstance(entry.id, str) and isinstance(entry.string, str) and entry.id and entry.string:
            texts[entry.id] = entry.string
        elif isinstance(entry.id, tuple) and isinstance(entry.string, tuple) and all(entry.string):
            forms[entry.id[0]] = entry.string
    return Catalogue(texts, forms, c2py(catalogue.plural_expr))


def number_in(language: str, number: str) -> str:
    """Return a number, given with a decimal point, in the language's notation."""
    from babel.numbers import get_decimal_symbol

    return number.replace(".", get_decimal_symbol(language))
