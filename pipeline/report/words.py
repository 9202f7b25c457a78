"""The report's language, as gettext does it: the English text is the key, other languages stand in catalogues of templates/."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pipeline.message import NAME, Code, Digits, Message, Value
from pipeline.report.catalogue import Catalogue, number_in, read_catalogue


class Words:
    """English texts in the language of the report."""

    def __init__(self, language: str, catalogue: Catalogue | Mapping[str, str] | None = None) -> None:
        self.language = language
        self.catalogue = Catalogue(catalogue) if isinstance(catalogue, Mapping) else catalogue

    def __call__(self, template: str, **values: Value) -> str:
        """Return the text in the report's language with its {names} filled in; KeyError where the catalogue lacks it."""
        if self.catalogue is not None:
            self.catalogue.texts[template]  # raises where it is missing
        return self.text(Message(template, values))

    def text(self, value: Value) -> str:
        """Return the value as text in the report's language, code in backticks."""
        return "".join(f"{part}" for part in self.parts(value))

    def parts(self, value: Value) -> Iterator[str]:
        """Yield the pieces of the value in the report's language: Code, and text that stands for itself."""
        if isinstance(value, Message):
            yield from self._message(value)
        elif isinstance(value, Digits) and self.catalogue is not None:
            yield number_in(self.language, value)
        else:
            yield value if isinstance(value, Code) else str(value)

    def _message(self, message: Message) -> Iterator[str]:
        template, at = self._template(message), 0
        for found in NAME.finditer(template) if message.values else ():
            if found[1] in message.values:
                yield template[at : found.start()]
                yield from self.parts(message.values[found[1]])
                at = found.end()
        yield template[at:]

    def _template(self, message: Message) -> str:
        count = message.values.get("count")
        if self.catalogue is None:
            return message.plural if message.plural and count != 1 else message.template
        if message.plural and isinstance(count, int):
            return self.catalogue.plural(message.template, message.plural, count)
        return self.catalogue.texts.get(message.template, message.template)


ENGLISH = Words("en")


def words(language: Literal["en", "tr"], templates: Path) -> Words:
    """Return the texts in that language."""
    return Words(language) if language == "en" else Words(language, read_catalogue(templates / f"{language}.po"))
