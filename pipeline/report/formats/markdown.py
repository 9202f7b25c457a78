"""REPORT.md: the view through Jinja into Markdown as GitHub shows it."""

import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from pipeline.message import Code, Value
from pipeline.report.cells import Cell, Measured, Ruling, Source, Verbatim
from pipeline.report.drawing.diagram import diagram
from pipeline.report.formats.cut import fit
from pipeline.report.formats.plain import Plain
from pipeline.report.view import View
from pipeline.report.words import ENGLISH, Words

LIMIT_BYTES = 65536  # what GitHub takes as a comment, in characters
LINK_BYTES = 120  # by which a relative link grows in a comment, where it leads to a commit
RELATIVE = re.compile(r"\]\((?!https?:|#)")
TAG = re.compile(r"<(?=[A-Za-z/!?])")
ENDS = re.compile(r"[\r\n]+")
MARKS = {
    "PASS": "✅ PASS",
    "FAIL": "❌ FAIL",
    "NOT PASSED": "❌ NOT PASSED",
    "INCONCLUSIVE": "⚠️ INCONCLUSIVE",
    "NOT_MEASURED": "▫️ NOT_MEASURED",
    "INVALID": "🚫 INVALID",
    "TRIAL": "🧪 TRIAL",
    "SIMULATED": "🚫 SIMULATED",
}


class Markdown(Plain):
    """Cells in a language, as lines of Markdown."""

    def say(self, value: Value) -> str:
        """Return a value in the language: code as it is, and other text so that none of it begins a block, HTML or code."""
        pieces = [(is_code, "".join(run)) for is_code, run in groupby(self.words.parts(value), lambda part: isinstance(part, Code))]
        return "".join(verbatim(piece) if is_code else self.harmless(piece, len(pieces) > 1) for is_code, piece in pieces)

    def harmless(self, text: str, beside_code: bool) -> str:
        """Return the text as one line without HTML, and without backticks beside code."""
        line = TAG.sub("&lt;", ENDS.sub(" ", text))
        return line.replace("`", "\\`") if beside_code else line


class TableCells(Markdown):
    """Cells in a language, as cells of tables in Markdown; `places` holds the link of each figure, by <stage>.<name>."""

    def __init__(self, words: Words = ENGLISH, places: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.places = places or {}

    def harmless(self, text: str, beside_code: bool) -> str:
        """Return the text so that it also stays inside its cell."""
        return super().harmless(text.replace("\\", "\\\\").replace("|", "\\|"), beside_code)

    def cell(self, cell: Cell) -> str:
        """Return the cell."""
        if isinstance(cell, Verbatim):
            return verbatim(cell.text)
        if isinstance(cell, Ruling):
            return MARKS.get(cell.word, cell.word) + self.say(cell.after)
        place = self.places.get(cell.metric) if isinstance(cell, Source) else None
        return f"[{self.text(cell)}]({place})" if place else self.text(cell)

    def figure(self, cell: Cell) -> str:
        """Return figures, each value in bold; anything else as `cell` does."""
        figures = cell if isinstance(cell, tuple) else (cell,)
        return ", ".join(self.measured(one, "**") if isinstance(one, Measured) else self.cell(one) for one in figures)


def verbatim(text: str) -> str:
    """Return what a model or a user wrote as code in one cell of a table, so that none of it is a link, a picture or a name."""
    text = re.sub(r"\s+", " ", text).strip()
    if not text:
        return ""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    inner = re.sub(r"(\\*)\|", lambda found: found[1] * 2 + "\\|", text)
    return f"{fence}{space}{inner}{space}{fence}"


def fenced(lines: list[str]) -> str:
    """Return the lines as a code block whose fence is longer than any run of backticks in them."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


def code(text: str, language: str) -> str:
    """Return the text as a code block in that language."""
    fence, rest = fenced(text.splitlines()).split("\n", 1)
    return f"{fence}{language}\n{rest}"


def refs(notes: tuple[str, ...]) -> str:
    """Return the footnotes' marks."""
    return "".join(f"[^{note}]" for note in notes)


def size_bytes(markdown: str) -> int:
    """Return how large the report is at most where its links are absolute."""
    return len(markdown.encode()) + LINK_BYTES * len(RELATIVE.findall(markdown))


def render(templates: Path, view: View, words: Words = ENGLISH, places: Mapping[str, str] | None = None) -> str:
    """Return the report in that language; `places` holds the link of each figure, by <stage>.<name>."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    cells = TableCells(words, places)
    filters = (cells.cell, cells.figure, verbatim, fenced, code, refs)
    environment.filters |= {"line": Markdown(words).text, **{function.__name__: function for function in filters}}
    template = environment.get_template("report.md.j2")

    def rendered(shown: View) -> str:
        return template.render(view=shown, t=words, diagram=diagram(shown.stages, shown.edges, words))

    return fit(view, rendered, size_bytes, LIMIT_BYTES, words)
