"""Links and tables of a report in Markdown, read as GitHub reads them."""

import re

from markdown_it import MarkdownIt

LINK = re.compile(r"(!?)\[((?:[^\[\]]|`[^`]*`)*)\]\(([^)]+)\)")


GFM = MarkdownIt("commonmark").enable("table")


def pipes(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


def tables_of(text: str) -> list[list[str]]:
    """Return the lines of each table outside code."""
    found: list[list[str]] = [[]]
    fence = ""
    for line in text.splitlines():
        mark = re.match(r"(`{3,})", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        if not fence and line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]
