"""docs/tutorial/reading-the-report.md: every verdict is explained, every command, setting and linked file exists, and the page is short."""

import re
from pathlib import Path
from typing import get_args

import tasks
from pipeline.config.layers import load_layers
from pipeline.measure.statistics import percentile_figure
from pipeline.measure.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "tutorial" / "reading-the-report.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_verdict_is_explained_and_no_other() -> None:
    assert set(re.findall(r"^\| ([A-Z_]{4,}) \|", TEXT, re.MULTILINE)) == set(get_args(Verdict))


def test_a_95th_percentile_has_no_upper_bound_below_the_n_that_is_named() -> None:
    n = int(re.findall(r"no upper bound below n = (\d+)", TEXT)[0])
    assert percentile_figure([float(value) for value in range(1, n)], 0.95, "ms").high is None
    assert percentile_figure([float(value) for value in range(1, n + 1)], 0.95, "ms").high is not None


def test_every_command_profile_section_and_linked_file_exists() -> None:
    assert set(re.findall(r"`\./inv ([a-z-]+)", TEXT)) <= set(tasks.namespace.task_names)
    layers = load_layers(ROOT / "config.yaml", {})
    assert set(re.findall(r"profile `([^`]+)`", TEXT)) <= set(layers.profiles)
    assert set(re.findall(r"`([a-z]+):`", TEXT)) <= set(layers.config(None).model_dump())
    assert [link for link in re.findall(r"\]\((?!http|#)([^)]+)\)", TEXT) if not (PAGE.parent / link).exists()] == []
    assert len(TEXT.splitlines()) < 150
