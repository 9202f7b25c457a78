"""The view model through Jinja into report.html: one file that needs no network, and no script to be read."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.charts import Chart
from pipeline.report.language import Words

VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED", "SIMULATED")
SHADES = 9
VERDICT = re.compile(rf"\W*({'|'.join(VERDICTS)})\b:?\s*(.*)", re.DOTALL)
NUMBER = re.compile(r"[*≥≤<>=~ ]*(-?\d+(?:\.\d+)?)(?![\d.]*[-:]\d)")
TARGET = re.compile(r"([^()]+?) \((.+)\)", re.DOTALL)
MEASURED = re.compile(r"\*\*([^*]+)\*\* \((.+)\)", re.DOTALL)
# What the view writes in its own words: code, emphasis, and links to files beside the report or to places in it.
INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^\[\]]+)\]\((?![\w+.-]*:|/)([^()\s<>\"]+)\)|\[\^[\w-]+\]")


def inline(text: Any) -> Any:
    """Return the text with its code, emphasis and relative links as elements, all else escaped."""
    from markupsafe import Markup, escape

    made, at, text = Markup(""), 0, str(text)
    for found in INLINE.finditer(text):
        code, strong, said, link = found.groups()
        made += escape(text[at : found.start()])
        if code is not None:
            made += Markup("<code>{}</code>").format(Markup("/<wbr>").join(code.split("/")))
        elif strong is not None:
            made += Markup("<strong>{}</strong>").format(inline(strong))
        elif link is not None:
            made += Markup('<a href="{}">{}</a>').format(link, inline(said))
        at = found.end()
    return made + escape(text[at:])


def verdict(text: str) -> tuple[str, str]:
    """Return the word of a verdict, empty where there is none, and what is said beside it."""
    found = VERDICT.fullmatch(text)
    return (found[1], found[2].strip()) if found else ("", text)


def measured(text: str) -> tuple[str, list[str]]:
    """Return a figure's value and, apart, its n and bounds."""
    found = MEASURED.fullmatch(text)
    return (found[1], found[2].split("; ")) if found else (text, [])


def split_target(text: str) -> tuple[str, str]:
    """Return what a figure must meet and, apart, which statistic of it."""
    found = TARGET.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def key(text: Any) -> str:
    """Return the number that a cell begins with, by which its column is sorted; empty where it is none."""
    found = NUMBER.match(str(text))
    return found[1] if found else ""


def shade(count: str, row: Sequence[str]) -> int:
    """Return how dark a cell of a confusion matrix is, 0 to 9: its share of the row's counts."""
    total = sum(int(cell) for cell in row if cell.isdigit())
    return round(SHADES * int(count) / total) if count.isdigit() and total else 0


def numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Tell whether every cell of a column begins with a number or holds nothing."""
    cells = [row[column] for row in rows]
    return any(key(cell) for cell in cells) and all(key(cell) or not cell.strip("– ") for cell in cells)


def digest(text: str) -> str:
    """Return the hash by which a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render_html(templates: Path, view: Any, charts: Mapping[str, Sequence[Chart]], t: Words) -> str:
    """Return the page; `charts` by the scenario that they belong to."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"inline": inline, "verdict": verdict, "measured": measured, "split_target": split_target, "key": key}
    environment.globals |= {"shade": shade, "numeric": numeric}
    style, script = ((templates / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    own = f"style-src '{digest(style)}'; script-src '{digest(script)}'"
    policy = f"default-src 'none'; {own}; img-src data:; base-uri 'none'; form-action 'none'"
    template = environment.get_template("report.html.j2")
    return template.render(view=view, charts=charts, t=t, style=style, script=script, policy=policy)
