"""REPORT.md: the view rendered with Jinja as GitHub Flavored Markdown."""

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

LIMIT_BYTES = 65536  # GitHub's limit for a comment, which counts characters
LINK_BYTES = 120  # growth of a relative link in a comment, where it is absolute and names a commit
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
    """Cells in a language, as Markdown text outside tables."""

    def say(self, value: Value) -> str:
        """Return a value in the language, with code verbatim and other text escaped so that it starts no block, HTML or code."""
        pieces = [(is_code, "".join(run)) for is_code, run in groupby(self.words.parts(value), lambda part: isinstance(part, Code))]
        return "".join(verbatim(piece) if is_code else self.escape(piece, len(pieces) > 1) for is_code, piece in pieces)

    def escape(self, text: str, beside_code: bool) -> str:
        """Return the text as one line, with HTML tags escaped, and backticks too if code is next to it."""
        line = TAG.sub("&lt;", ENDS.sub(" ", text))
        return line.replace("`", "\\`") if beside_code else line


class TableCells(Markdown):
    """Cells in a language, as cells of Markdown tables; `places` maps <stage>.<name> to the link of each figure."""

    def __init__(self, words: Words = ENGLISH, places: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.places = places or {}

    def escape(self, text: str, beside_code: bool) -> str:
        """Return the text escaped for a table cell."""
        return super().escape(text.replace("\\", "\\\\").replace("|", "\\|"), beside_code)

    def cell(self, cell: Cell) -> str:
        """Return the cell as Markdown."""
        if isinstance(cell, Verbatim):
            return verbatim(cell.text)
        if isinstance(cell, Ruling):
            return MARKS.get(cell.word, cell.word) + self.say(cell.after)
        place = self.places.get(cell.metric) if isinstance(cell, Source) else None
        return f"[{self.text(cell)}]({place})" if place else self.text(cell)

    def figure(self, cell: Cell) -> str:
        """Return figures with bold values; other cells as `cell` does."""
        figures = cell if isinstance(cell, tuple) else (cell,)
        return ", ".join(self.measured(one, "**") if isinstance(one, Measured) else self.cell(one) for one in figures)


def verbatim(text: str) -> str:
    """Return text of a model or a user as inline code for a table cell, so that no link, image or mention in it takes effect."""
    text = re.sub(r"\s+", " ", text).strip()
    if not text:
        return ""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    inner = re.sub(r"(\\*)\|", lambda match: match[1] * 2 + "\\|", text)
    return f"{fence}{space}{inner}{space}{fence}"


def fenced(lines: list[str]) -> str:
    """Return the lines as a code block, fenced by more backticks than any run of them in the lines."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


def code(text: str, language: str) -> str:
    """Return the text as a code block in that language."""
    fence, rest = fenced(text.splitlines()).split("\n", 1)
    return f"{fence}{language}\n{rest}"


def refs(notes: tuple[str, ...]) -> str:
    """Return the references to the footnotes."""
    return "".join(f"[^{note}]" for note in notes)


def size_bytes(markdown: str) -> int:
    """Return an upper bound for the report's size in bytes once its relative links are absolute."""
    return len(markdown.encode()) + LINK_BYTES * len(RELATIVE.findall(markdown))


def render(templates: Path, view: View, words: Words = ENGLISH, places: Mapping[str, str] | None = None) -> str:
    """Return the report in that language; `places` maps <stage>.<name> to the link of each figure."""
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

    def render_view(candidate: View) -> str:
        return template.render(view=candidate, t=words, diagram=diagram(candidate.stages, candidate.edges, words))

    return fit(view, render_view, size_bytes, LIMIT_BYTES, words)
