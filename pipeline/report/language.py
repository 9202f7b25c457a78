"""The report's language, as gettext does it: the English text is the key, other languages stand in catalogues of templates/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pipeline.message import Message, Value, filled
from pipeline.report.catalogue import Catalogue, read_catalogue


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

    def _shown(self, value: Value) -> str:
        return self.said(value) if isinstance(value, Message) else f"{value}"


ENGLISH = Words("en")


def words(language: Literal["en", "tr"], templates: Path) -> Words:
    """Return the texts in that language."""
    return Words(language) if language == "en" else Words(language, read_catalogue(templates / f"{language}.po"))
