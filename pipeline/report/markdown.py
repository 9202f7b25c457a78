"""The view model through Jinja into Markdown."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.cut import fitted
from pipeline.report.diagram import diagram
from pipeline.report.language import ENGLISH, Words
from pipeline.report.view import View

LIMIT_BYTES = 65536  # what GitHub takes as a comment, in characters
LINK_BYTES = 120  # by which a relative link grows in a comment, where it leads to a commit
RELATIVE = re.compile(r"\]\((?!https?:|#)")


def cell(value: Any) -> str:
    """Return `value` so that it stays inside one cell of a Markdown table."""
    text = str(value).replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"[\r\n]+", " ", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def line(value: Any) -> str:
    """Return `value` as one line of text, so that none of it begins a block or HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"[\r\n]+", " ", str(value)))


def verbatim(value: Any) -> str:
    """Return what a model or a user wrote as code in one cell of a table, so that none of it is a link, a picture or a name."""
    text = re.sub(r"\s+", " ", str(value)).strip()
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


def render(templates: Path, view: View, t: Words = ENGLISH, places: Mapping[str, str] | None = None) -> str:
    """Return the report in the language of `t`; `places` holds the link of each figure, by <stage>.<name>."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def linked(row: Any) -> str:
        place = (places or {}).get(row.metric)
        return f"[{cell(row.source)}]({place})" if place else cell(row.source)

    filters = (cell, line, verbatim, fenced, code, refs, linked)
    environment.filters |= {function.__name__: function for function in filters}
    template = environment.get_template("report.md.j2")

    def made(shown: View) -> str:
        return template.render(view=shown, t=t, diagram=diagram(shown.stages, shown.edges, t))

    return fitted(view, made, size_bytes, LIMIT_BYTES, t)
