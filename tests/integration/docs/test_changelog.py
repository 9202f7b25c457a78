"""CHANGELOG.md: dated sections, newest first."""

import re
from datetime import date

from tests.integration.docs.parts import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_sections_are_dated_and_the_newest_comes_first() -> None:
    titles = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    days = [date.fromisoformat(title) for title in titles]
    assert days
    assert days == sorted(set(days), reverse=True)


def test_each_section_says_what_is_new_or_changed() -> None:
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds
        assert set(kinds) <= {"New", "Changed", "Fixed"}
        assert len(re.findall(r"^- ", section, re.MULTILINE)) >= len(kinds)
