"""docs/how-to/ci.md: its workflow is one, its commands and settings exist, and its step that compares passes the exit code on."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.layers import load_layers
from tests.builders.project import COMMAND_NAMES, STAGE_NAMES

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "how-to" / "ci.md"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def steps(text: str) -> list[dict[str, Any]]:
    workflow = yaml.safe_load(text.split("```yaml\n")[1].split("\n```\n")[0])
    found: list[dict[str, Any]] = workflow["jobs"]["measure"]["steps"]
    return found


def test_every_command_setting_and_linked_file_exists(text: str) -> None:
    named = set(re.findall(r"\./inv ([a-z-]+)", text))
    assert {"all", "compare", "calibrate-noise", "history"} <= named <= {*COMMAND_NAMES, *STAGE_NAMES}
    config = load_layers(ROOT / "config.yaml", {}).config(None).model_dump()
    settings = [found for found in re.findall(r"`(report|serve|runs)\.([a-z_]+)", text) if found[1] not in ("json", "html")]
    assert settings
    for section, name in settings:
        assert name in config[section]
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_step_that_compares_shows_the_table_and_ends_as_compare_does(text: str, tmp_path: Path, code: int) -> None:
    (script,) = [step["run"] for step in steps(text) if "compare" in step.get("run", "")]
    (tmp_path / "inv").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n', encoding="utf-8")
    (tmp_path / "inv").chmod(0o755)
    summary = tmp_path / "summary.md"
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]  # as GitHub runs `shell: bash`
    done = subprocess.run(words, cwd=tmp_path, env={"PATH": os.environ["PATH"], "GITHUB_STEP_SUMMARY": str(summary)})
    assert done.returncode == code
    assert summary.read_text(encoding="utf-8") == "```\ncompare git:origin/main latest\n```\n"
