"""Every relative link in the pages for people leads to a file, and to a heading where it names one; docs/README.md lists every page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("README*.md")),
    *(ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *(ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md"),
    *sorted(DOCS.rglob("*.md")),
]
FENCED = re.compile(r"^(```+)[^\n]*\n.*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|//")


def prose(page: Path) -> str:
    """Return the page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def links(text: str) -> list[str]:
    """Return the targets of the relative links."""
    found = [one or other for one, other in LINK.findall(text)]
    return [target for target in found if not ELSEWHERE.match(target)]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(next(one for one in (name, *(f"{name}-{number}" for number in range(1, 99))) if one not in found))
    return found


def broken(page: Path, text: str) -> list[str]:
    """Return the links of `text`, which stands in `page`, that lead nowhere."""
    found = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(text if file == page else prose(file))):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere_in_the_project(page: Path) -> None:
    text = prose(page)
    assert broken(page, text) == []
    outside = [target for target in links(text) if not (page.parent / target.partition("#")[0]).resolve().is_relative_to(ROOT)]
    assert outside == []


def test_the_documentations_first_page_lists_every_other_once_and_the_readme_leads_to_it() -> None:
    first = DOCS / "README.md"
    listed = sorted((DOCS / target.partition("#")[0]).resolve() for target in links(prose(first)))
    assert listed == sorted(set(DOCS.rglob("*.md")) - {first})
    assert "docs/README.md" in links(prose(ROOT / "README.md"))


def test_every_page_that_code_and_settings_name_exists() -> None:
    files = [ROOT / "config.yaml", ROOT / "tasks.py", *sorted((ROOT / "pipeline").rglob("*.py"))]
    named = {name for file in files for name in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text(encoding="utf-8"))}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_what_leads_nowhere_is_found() -> None:
    page = ROOT / "README.md"
    text = (
        "# A b: `c`\n[1](#a-b-c) [2](#gone) [3](docs/how-to/ci.md#gone) [4](docs/how-to/ci.md) [5](gone.md) [6](https://a.example/x) "
        '<img src="gone.svg">'
    )
    assert broken(page, text) == ["#gone", "docs/how-to/ci.md#gone", "gone.md", "gone.svg"]
