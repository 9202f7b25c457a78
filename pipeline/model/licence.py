"""A model's licence, and whether it forbids commercial use, according to the model's own files."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.values import Frozen

# Names are like qwen-research and cc-by-nc-4.0. In a text, GPL's "noncommercially" forbids nothing.
FORBIDDING_NAME = re.compile(r"non-?commercial|research|(?:^|[-_ ])nc(?:[-_ ]|$)", re.IGNORECASE)
FORBIDDING_TEXT = re.compile(r"\bnon-?commercial\b", re.IGNORECASE)
UNLISTED = "other"  # a card's value for a licence that the hub does not list; `license_name` then names it
CARD = "README.md"
FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", re.DOTALL)


class Licence(Frozen):
    """The licence's name, None if none is stated, and whether it forbids commercial use."""

    name: str | None
    non_commercial: bool


def read_licence(folder: Path, default: str | None = None) -> Licence:
    """Return the licence from the front matter of the model's card, else `default`; one without a known name is judged by its text."""
    card = front_matter(text_of(folder / CARD))
    name, own_name = (value if isinstance(value, str) else None for value in (card.get("license"), card.get("license_name")))
    name = name or default
    if name not in (None, UNLISTED):
        return Licence(name=name, non_commercial=bool(FORBIDDING_NAME.search(name)))
    name = own_name or name
    texts = (text_of(path) for path in sorted(folder.glob("LICENSE*")))
    forbids = bool(name and FORBIDDING_NAME.search(name)) or any(FORBIDDING_TEXT.search(text) for text in texts)
    return Licence(name=name, non_commercial=forbids)


def front_matter(card: str) -> dict[str, Any]:
    """Return the settings above a model card, or {} if they cannot be read."""
    found = FRONT_MATTER.match(card)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError):  # ValueError: an impossible date
        return {}
    return values if isinstance(values, dict) else {}


def text_of(path: Path) -> str:
    """Return the file's text, or "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
