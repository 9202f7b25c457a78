"""README.tr.md is README.md in Turkish: the same headings, commands, code, links, numbers and tables, section by section."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.integration.docs.parts import README, TURKISH, part

SHARED = ("excerpt", "graph")  # parts that both languages show alike
CODE = re.compile(r"^```[^\n]*\n.*?^```$|(?:^    [^\n]*\n)+", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: code, and prose without it."""

    level: int
    title: str
    code: list[str]
    prose: str


def own(text: str) -> str:
    """Return the text without the parts that both languages show alike."""
    for name in SHARED:
        text = text.replace(part(text, name), "")
    return text


def sections(text: str) -> list[Section]:
    """Return the sections in order."""
    blocks = CODE.findall(text)
    pieces = re.split(r"^(#+) (.+)$", CODE.sub("\n\0\n", text), flags=re.MULTILINE)[1:]
    found, at = [], 0
    for mark, title, body in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        count = body.count("\0")
        found.append(Section(len(mark), title, blocks[at : at + count], body.replace("\0", "")))
        at += count
    return found


def commands(section: Section) -> list[str]:
    """Return the lines of code without the comments, which are translated."""
    return [re.sub(r"\s+# .*", "", line) for block in section.code for line in block.strip("\n").splitlines()]


def spans(section: Section) -> list[str]:
    return sorted(set(re.findall(r"`([^`]+)`", section.prose)))


def links(section: Section) -> list[str]:
    return sorted(target for target in re.findall(r"\]\(([^)]+)\)", section.prose) if not target.startswith("README"))


def numbers(section: Section) -> list[str]:
    """Return the numbers of the prose outside `code` and links."""
    prose = re.sub(r"`[^`]+`|\]\([^)]+\)", "", section.prose)
    return sorted(number.rstrip(".") for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)*", prose))


def bold(section: Section) -> int:
    return len(re.findall(r"\*\*[^*]+\*\*", section.prose))


def tables(section: Section) -> list[int]:
    """Return the number of columns of each row."""
    return [line.count("|") for line in section.prose.splitlines() if line.startswith("|")]


def compared(aspect: Callable[[Section], object], english: str, turkish: str) -> dict[str, tuple[object, object]]:
    """Return by English heading what differs."""
    pairs = zip(sections(english), sections(turkish), strict=True)
    return {one.title: (aspect(one), aspect(other)) for one, other in pairs if aspect(one) != aspect(other)}


@pytest.fixture(scope="module")
def english() -> str:
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def turkish() -> str:
    return TURKISH.read_text(encoding="utf-8")


def test_each_heading_has_its_own(english: str, turkish: str) -> None:
    levels = [[section.level for section in sections(text)] for text in (english, turkish)]
    assert levels[0] == levels[1], "a heading was added or removed in one of the two"


@pytest.mark.parametrize("aspect", [commands, spans, links, numbers, bold, tables], ids=lambda aspect: aspect.__name__)
def test_section_by_section_they_tell_the_same(aspect: Callable[[Section], object], english: str, turkish: str) -> None:
    assert compared(aspect, own(english), own(turkish)) == {}


@pytest.mark.parametrize("name", SHARED)
def test_what_a_program_said_is_shown_alike(name: str, english: str, turkish: str) -> None:
    assert part(turkish, name) == part(english, name), "`python -m tests.integration.docs.test_readme` writes it anew"


def test_each_leads_to_the_other(english: str, turkish: str) -> None:
    assert "[Türkçe](README.tr.md)" in english
    assert "[English](README.md)" in turkish


@pytest.mark.parametrize(
    ("old", "new", "aspect"),
    [
        ("./inv test  ", "./inv lint  ", commands),
        ("`REPORT.md` dosyasını", "`REPORT` dosyasını", spans),
        ("(CHANGELOG.md)", "(LICENSE)", links),
        ("195 s", "196 s", numbers),
        ("| GPU bulunamıyor |", "| GPU bulunamıyor", tables),
    ],
)
def test_a_difference_is_found(old: str, new: str, aspect: Callable[[Section], object], english: str, turkish: str) -> None:
    assert turkish.count(old) == 1
    assert len(compared(aspect, own(english), own(turkish.replace(old, new)))) == 1
