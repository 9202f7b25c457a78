"""Every text that a report may show, as Babel extracts them; `python -m tests.builders.texts` brings templates/tr.po up to date.

It keeps what is translated, adds what is not with an empty text, and removes what nobody says any more.
"""

import ast
from collections.abc import Collection, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

from pipeline.config.layers import load_layers
from pipeline.report.cells import of_settings

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "templates"
TURKISH = TEMPLATES / "tr.po"
KEYWORDS = {"t": None, "_": None, "plural": (1, 2)}
Text = str | tuple[str, ...]  # a text for 1 and one for any other count
PLURAL = "nplurals=2; plural=(n != 1);"


def extracted() -> dict[Text, list[str]]:
    """Return each text with the files that say it."""
    found: dict[Text, list[str]] = {}
    for where, text in (*in_code(), *in_templates(), *in_settings()):
        if text and where not in (places := found.setdefault(text, [])):
            places.append(where)
    return found


def in_code() -> Iterator[tuple[str, Text]]:
    """Yield the texts of t(), _() and plural()."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        with path.open("rb") as file:
            for _line, text, _comments, _context in extract(cast(Any, calls), file, keywords=KEYWORDS):
                yield path.relative_to(ROOT).as_posix(), text


def calls(
    file: BinaryIO, keywords: Collection[str], _tags: Any, options: Any
) -> Iterator[tuple[int, str, tuple[str | None, ...], list[str]]]:
    """Yield the calls of the keywords; Babel's own way misses those within an f-string before Python 3.12."""
    for call in ast.walk(ast.parse(file.read())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in keywords:
            texts = [part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None for part in call.args]
            yield call.lineno, call.func.id, tuple(texts), []


def in_templates() -> Iterator[tuple[str, Text]]:
    """Yield the texts of the templates."""
    for path in sorted(TEMPLATES.glob("*.j2")):
        with path.open("rb") as file:
            for _line, text, _comments, _context in extract(cast(Any, babel_extract), file, keywords=KEYWORDS):
                yield path.relative_to(ROOT).as_posix(), text


def in_settings() -> Iterator[tuple[str, Text]]:
    """Yield what config.yaml's own gates and alternatives say."""
    config = load_layers(ROOT / "config.yaml", {}).config(None)
    gates = [text for gate in config.gates.root.values() for text in (gate.label, gate.statistic)]
    for text in (*gates, *(entry.use_case for entry in config.alternatives.root)):
        yield "config.yaml", of_settings(text).template


def known() -> dict[str, str]:
    """Return what is translated, in both forms of those with a count."""
    found: dict[str, str] = {}
    with TURKISH.open("rb") as file:
        for entry in read_po(file):
            found |= {text: translated for text, translated in zip(forms(entry.id), forms(entry.string), strict=True) if translated}
    return found


def forms(text: str | Sequence[str] | None) -> Sequence[str]:
    """Return the forms of a text, which has several where a count decides."""
    return (text or "",) if text is None or isinstance(text, str) else text


def catalogue() -> bytes:
    """Return the Turkish catalogue of today's texts."""
    translated = known()
    made = Catalog(locale="tr", fuzzy=False, header_comment="# The report in Turkish. A test compares it with the texts of the code.")
    made.mime_headers = [("Plural-Forms", PLURAL)]
    for text, places in extracted().items():
        string = tuple(translated.get(form, "") for form in text) if isinstance(text, tuple) else translated.get(text, "")
        made.add(text, string, locations=[(place, 0) for place in places])
    out = BytesIO()
    write_po(out, made, width=0, include_lineno=False, omit_header=False)
    lines = out.getvalue().decode().splitlines()
    dated = ("POT-Creation-Date", "PO-Revision-Date", "Last-Translator", "Language-Team", "Project-Id", "Report-Msgid", "Generated-By")
    return "".join(f"{line}\n" for line in lines if not line.startswith(tuple(f'"{name}' for name in dated))).encode()


if __name__ == "__main__":
    TURKISH.write_bytes(catalogue())
