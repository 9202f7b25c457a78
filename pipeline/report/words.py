"""The report's language, as in gettext: the English text is the key of the catalogues in templates/."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pipeline.message import NAME, Code, Digits, Message, Value
from pipeline.report.catalogue import Catalogue, number_in, read_catalogue


class Words:
    """Translates messages into the report's language."""

    def __init__(self, language: str, catalogue: Catalogue | Mapping[str, str] | None = None) -> None:
        self.language = language
        self.catalogue = Catalogue(catalogue) if isinstance(catalogue, Mapping) else catalogue

    def __call__(self, template: str, **values: Value) -> str:
        """Return the translated template with its {names} filled in; raise KeyError if the catalogue lacks it."""
        if self.catalogue is not None:
            self.catalogue.texts[template]  # raises KeyError if it is missing
        return self.text(Message(template, values))

    def text(self, value: Value) -> str:
        """Return the value as text in the report's language, code in backticks."""
        return "".join(f"{part}" for part in self.parts(value))

    def parts(self, value: Value) -> Iterator[str]:
        """Yield the pieces of the value in the report's language, each Code or plain text."""
        if isinstance(value, Message):
            yield from self._message(value)
        elif isinstance(value, Digits) and self.catalogue is not None:
            yield number_in(self.language, value)
        else:
            yield value if isinstance(value, Code) else str(value)

    def _message(self, message: Message) -> Iterator[str]:
        template, at = self._template(message), 0
        for match in NAME.finditer(template) if message.values else ():
            if match[1] in message.values:
                yield template[at : match.start()]
                yield from self.parts(message.values[match[1]])
                at = match.end()
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
    """Return the translations into that language."""
    return Words(language) if language == "en" else Words(language, read_catalogue(templates / f"{language}.po"))
