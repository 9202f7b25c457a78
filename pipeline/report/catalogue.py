"""Gettext catalogues, and numbers as a language writes them, by Babel; an English report imports none of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


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


def number_in(language: str, number: str) -> str:
    """Return a number, as digits with a decimal point, as the language writes it."""
    from babel.numbers import get_decimal_symbol

    return number.replace(".", get_decimal_symbol(language))
