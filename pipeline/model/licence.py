"""What licence a model is under, and whether it forbids commercial use, by what the model's own files say."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.values import Frozen

# In a licence's name: qwen-research, cc-by-nc-4.0. In its text GPL's "noncommercially" forbids nothing.
FORBIDDING_NAME = re.compile(r"non-?commercial|research|(?:^|[-_ ])nc(?:[-_ ]|$)", re.IGNORECASE)
FORBIDDING_TEXT = re.compile(r"\bnon-?commercial\b", re.IGNORECASE)
UNLISTED = "other"  # what a card says whose licence the hub has no name for: its own name stands beside it
CARD = "README.md"
FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", re.DOTALL)


class Licence(Frozen):
    """The licence's name, None where nothing states one, and whether it forbids commercial use."""

    name: str | None
    non_commercial: bool


def read_licence(folder: Path, stated: str | None = None) -> Licence:
    """Return the licence by the front matter of the model's card, else `stated`; one without a known name by its text."""
    card = front_matter(text_of(folder / CARD))
    name, own_name = (value if isinstance(value, str) else None for value in (card.get("license"), card.get("license_name")))
    name = name or stated
    if name not in (None, UNLISTED):
        return Licence(name=name, non_commercial=bool(FORBIDDING_NAME.search(name)))
    name = own_name or name
    texts = (text_of(path) for path in sorted(folder.glob("LICENSE*")))
    forbids = bool(name and FORBIDDING_NAME.search(name)) or any(FORBIDDING_TEXT.search(text) for text in texts)
    return Licence(name=name, non_commercial=forbids)


def front_matter(card: str) -> dict[str, Any]:
    """Return the settings above a model card; none where they cannot be read."""
    found = FRONT_MATTER.match(card)
    try:
        values = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError):  # ValueError: an impossible date
        return {}
    return values if isinstance(values, dict) else {}


def text_of(path: Path) -> str:
    """Return the file's text, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
