"""The view model through Jinja into Markdown."""

import re
from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    """Return `value` so that it stays inside one cell of a Markdown table."""
    text = str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def render(templates: Path, view: Any) -> str:
    """Return the report in English."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template("report.en.md.j2").render(view=view)
