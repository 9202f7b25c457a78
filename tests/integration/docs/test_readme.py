"""The pages' generated parts are what the code says now. Write them anew with `python -m tests.integration.docs.test_readme`."""

import json
import re
from pathlib import Path

import pytest

import tasks
from examples.keep import examples
from pipeline.config.layers import load_layers
from tests.integration.docs.parts import DOCS, GENERATED, PARTS, README, ROOT, fill, part

CURRENT = [(page, name) for page, names in PARTS.items() for name in names if name != "excerpt"]
FORMATS = ("json", "html", "svg")  # of `report.json` and `report.html`, which are files
PAGES = [README, *sorted(DOCS.rglob("*.md"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(("page", "name"), CURRENT, ids=lambda value: named(value) if isinstance(value, Path) else value)
def test_a_generated_part_is_current(page: Path, name: str) -> None:
    again = "`python -m tests.integration.docs.test_readme` writes it anew"
    assert part(page.read_text(encoding="utf-8"), name) == PARTS[page][name](), again


def test_the_excerpt_is_of_a_real_run() -> None:
    shown = part(README.read_text(encoding="utf-8"), "excerpt")
    assert "TBD" not in shown
    assert re.search(r"\*\*\d[\d.]* ms\*\* \(n = \d+", shown)


def test_the_readme_is_short_and_says_what_a_newcomer_needs() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "Windows means WSL2" in "\n".join(text.splitlines()[:12])
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert re.findall(r"^    (\./inv [a-z]+)  ", text, re.MULTILINE)[:2] == ["./inv all", last]


def test_the_readmes_times_are_those_of_the_benchmarks_and_the_example() -> None:
    text = README.read_text(encoding="utf-8")
    benchmarks, example = ((ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in ("benchmarks", "examples"))
    seconds, minutes = re.findall(r"\b(\d+)\s+s\b", text), re.findall(r"\b(\d+)\s+minutes\b", text)
    assert len(seconds) == 2
    assert len(minutes) == 1
    assert [number for number in seconds if f" {number} s " not in benchmarks] == []
    assert f"took {minutes[0]} minutes together" in example
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (examples()[0] / "artifacts").glob("*.json")]
    assert f"{sum(record['duration_s'] for record in records) / 60:.0f}" == minutes[0]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_setting_and_profile_that_a_page_names_exists(page: Path) -> None:
    text = GENERATED.sub("", page.read_text(encoding="utf-8"))
    layers = load_layers(ROOT / "config.yaml", {})
    config = layers.config(None).model_dump()
    sections = "|".join(set(config) - {"gates", "profile"})
    if page.name != "adding-a-stage.md":  # its commands are those of its own stage, which its own test runs
        assert set(re.findall(r"\./inv ([a-z][a-z-]*)", text)) <= set(tasks.namespace.task_names)
        for section, name in re.findall(r"--set ([a-z_]+)\.([a-z_]+)[.=]", text):
            assert name in config[section], f"{section}.{name}"
    for section, name in re.findall(rf"`({sections})\.([a-z_]+)[`.:]", text):
        assert name in config[section] or name in FORMATS, f"{section}.{name}"
    for profile in re.findall(r"--profile ([a-z0-9.-]+)", text):
        assert profile in layers.profiles, profile


def test_every_profile_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "profiles.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|(?: \d+ GB \|)? `([a-z0-9.-]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(load_layers(ROOT / "config.yaml", {}).profiles)


if __name__ == "__main__":
    for page, makers in PARTS.items():
        text = page.read_text(encoding="utf-8")
        for name, make in makers.items():
            text = fill(text, name, make())
        page.write_text(text, encoding="utf-8")
