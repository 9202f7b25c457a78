"""docs/reference/glossary.md: each of its terms is used elsewhere, and each abbreviation of the pages is in it."""

import re
from pathlib import Path

import pytest

from tests.integration.docs.parts import DOCS, README, ROOT
from tests.integration.docs.test_links import prose

GLOSSARY = DOCS / "reference" / "glossary.md"
ROWS = re.findall(r"^\| (?!term|---)(.+?) \|", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
TERMS = [term for row in ROWS for term in row.split(", ")]
PAGES = [README, *(page for page in sorted(DOCS.rglob("*.md")) if page != GLOSSARY)]
ABBREVIATION = re.compile(r"(?<![\w./:-])[A-Z][A-Z0-9]+(?:-\d+)?(?!\w|\.\w|-[A-Za-z])")
VERDICTS = {"PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED", "SIMULATED", "INVALID"}
OUTPUT = re.compile(r"<!-- (excerpt|faults) -->.*?<!-- /\1 -->", re.DOTALL)  # what programs said
NAMES = {"NVIDIA", "RTX", "H100", "HTTP", "URL", "OK", "WARN", "PATH", "LICENSE"}
NAMES |= {"A100", "AGX", "DGX", "GB10", "GH200", "GTX", "T4", "V100"}  # products


def elsewhere() -> str:
    """Return all text in which a term may be used."""
    files = [*PAGES, ROOT / "config.yaml", *sorted((ROOT / "pipeline").rglob("*.py"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files).lower()


def abbreviations(page: Path) -> set[str]:
    """Return the abbreviations in the page's words; code, the output of programs and targets of links are left out."""
    words = re.sub(r"^    .*$|`[^`]*`|\]\([^)]*\)", "", OUTPUT.sub("", prose(page)), flags=re.MULTILINE)
    return set(ABBREVIATION.findall(words))


def test_each_term_is_used_and_they_are_in_order() -> None:
    text = elsewhere()
    assert [term for term in TERMS if not re.search(rf"(?<!\w){re.escape(term.lower())}", text)] == []
    assert sorted(ROWS, key=str.lower) == ROWS
    assert len(TERMS) == len(set(TERMS))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_abbreviation_is_explained(page: Path) -> None:
    explained = set(re.findall(r"[A-Z][A-Z0-9]+(?:-\d+)?", " ".join(TERMS)))
    assert abbreviations(page) - explained - VERDICTS - NAMES == set()


def test_an_abbreviation_that_is_not_explained_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The XYZ of `ABC`, [a page](ABC.md) and TTFT.\n", encoding="utf-8")
    assert abbreviations(page) == {"XYZ", "TTFT"}
