"""A model's licence, by its card and the licence's text."""

from pathlib import Path

import pytest

from pipeline.model.facts import read_facts
from pipeline.model.licence import Licence, read_licence

RESEARCH = "Research License: you may use the Materials for NON-COMMERCIAL PURPOSES only."
GPL = "This alternative is allowed only occasionally and noncommercially."


def card(settings: str) -> str:
    return f"---\n{settings}\n---\n\n# A model\n\nlicense: not this one\n"


@pytest.mark.parametrize(
    ("files", "stated", "name", "forbids"),
    [
        ({"README.md": card("license: apache-2.0")}, None, "apache-2.0", False),
        ({"README.md": card("license: apache-2.0"), "LICENSE": RESEARCH}, None, "apache-2.0", False),
        ({"README.md": card("license: other\nlicense_name: qwen-research")}, "other", "qwen-research", True),
        ({"README.md": card("license: other\nlicense_name: acme"), "LICENSE.md": RESEARCH}, "other", "acme", True),
        ({"README.md": card("license: other\nlicense_name: acme"), "LICENSE": GPL}, "other", "acme", False),
        ({"README.md": card("license: cc-by-nc-4.0")}, None, "cc-by-nc-4.0", True),
        ({"README.md": card("license: llama3.2")}, None, "llama3.2", False),
        ({"README.md": card("license: [mit, gpl]")}, "mit", "mit", False),
        ({"README.md": card("license: 2027-13-45"), "LICENSE": GPL}, None, None, False),
        ({"README.md": card("license: {")}, "mit", "mit", False),
        ({"README.md": "# A model"}, "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", True),
        ({"LICENSE": RESEARCH}, None, None, True),
        ({}, "other", "other", False),
        ({}, None, None, False),
    ],
)
def test_what_a_licence_allows(tmp_path: Path, files: dict[str, str], stated: str | None, name: str | None, forbids: bool) -> None:
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_licence(tmp_path, stated) == Licence(name=name, non_commercial=forbids)


def test_a_models_facts_name_its_own_licence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text(card("license: other\nlicense_name: qwen-research"), encoding="utf-8")
    facts = read_facts(tmp_path, "other")
    assert (facts.license, facts.non_commercial) == ("qwen-research", True)
