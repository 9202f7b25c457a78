"""The view model through Jinja into Markdown."""

import re
from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    """Return `value` so that it stays inside one cell of a Markdown table."""
    text = str(value).replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"[\r\n]+", " ", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def fenced(lines: list[str]) -> str:
    """Return the lines as a code block whose fence is longer than any run of backticks in them."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


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
    environment.filters["fenced"] = fenced
    return environment.get_template("report.en.md.j2").render(view=view)
