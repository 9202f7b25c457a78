"""report.html: the view rendered with Jinja as one file that is readable without network or script."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.message import Code
from pipeline.report.cells import Amount, Cell, Source, sorting_key
from pipeline.report.formats.plain import Plain
from pipeline.report.parts import Drawing
from pipeline.report.view import View
from pipeline.report.words import Words

if TYPE_CHECKING:
    from markupsafe import Markup

SHADES = 9


class Html(Plain):
    """Cells in a language, as HTML: code becomes elements, everything else is escaped."""

    def markup(self, cell: Cell) -> "Markup":
        """Return the cell as HTML, with code as elements and everything else escaped."""
        from markupsafe import Markup, escape

        if isinstance(cell, tuple):
            return Markup(", ").join(self.markup(part) for part in cell)
        if isinstance(cell, Source | Amount):
            return self.markup(cell.text)
        if isinstance(cell, str | int):
            return Markup("").join(code(part) if isinstance(part, Code) else escape(part) for part in self.words.parts(cell))
        return escape(self.text(cell))

    def key(self, cell: Cell) -> str:
        """Return the cell's sorting key as text; empty if it has none."""
        number = sorting_key(cell)
        return "" if number is None else f"{number:.12g}"

    def drawn(self, drawing: Drawing) -> str:
        """Return the drawing's SVG, which needs no escaping."""
        return drawing(self.words)


def code(text: str) -> "Markup":
    """Return the code as an element that may wrap after each slash."""
    from markupsafe import Markup

    return Markup("<code>{}</code>").format(Markup("/<wbr>").join(str(text).split("/")))


def shade(count: int, row: Sequence[Cell]) -> int:
    """Return the shade of a cell of a confusion matrix, 0 to 9, by its share of the row's counts."""
    total = sum(cell for cell in row if isinstance(cell, int))
    return round(SHADES * count / total) if total else 0


def numeric(rows: Sequence[Sequence[Cell]], column: int) -> bool:
    """Tell whether a column sorts by number: every cell has a sorting key or is empty, and at least one has a key."""
    cells = [row[column] for row in rows]
    return any(sorting_key(cell) is not None for cell in cells) and all(
        sorting_key(cell) is not None or (isinstance(cell, str) and not cell.strip("– ")) for cell in cells
    )


def digest(text: str) -> str:
    """Return the hash of an inline script or style for a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render_html(templates: Path, view: View, words: Words) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    html = Html(words)
    environment.filters |= {function.__name__: function for function in (html.markup, html.text, html.key, html.drawn)}
    environment.globals |= {"shade": shade, "numeric": numeric}
    style, script = ((templates / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    hashes = f"style-src '{digest(style)}'; script-src '{digest(script)}'"
    policy = f"default-src 'none'; {hashes}; img-src data:; base-uri 'none'; form-action 'none'"
    return environment.get_template("report.html.j2").render(view=view, t=words, style=style, script=script, policy=policy)
