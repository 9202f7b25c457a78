"""CONTRIBUTING.md and docs/explanation/architecture.md: every file they name exists, and the pre-commit hooks are the checks of `lint`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from invoke.tasks import Task

import tasks
from tests.integration.docs.parts import DOCS, ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE = DOCS / "explanation" / "architecture.md"
HOOKS = ROOT / ".pre-commit-config.yaml"
MOST_FILES = {"A stage": 5, "A figure": 2, "A gate": 1, "A report format": 2, "A command": 2}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def files(text: str) -> set[str]:
    """Return the files and folders of the project that the text names; of `<name>.py` the folder must be there."""
    return set(re.findall(r"`((?:pipeline|tests|requirements)/[\w./<>-]+|[a-z]+\.(?:py|yaml))`", text))


def missing(names: set[str]) -> set[str]:
    """Return the names that stand for nothing."""
    return {name for name in names if not (ROOT / name.partition("<")[0]).exists()}


def test_every_file_that_contributing_names_exists() -> None:
    assert missing(files(text_of(CONTRIBUTING))) == set()


def test_every_file_that_the_architecture_names_exists() -> None:
    assert missing(files(text_of(ARCHITECTURE))) == set()


def test_a_missing_file_is_found() -> None:
    named = files("`pipeline/gone.py`, `pipeline/gone/<name>.py`, `pipeline/stages/<name>.py`, `tasks.py` and `gone.yaml`")
    assert missing(named) == {"pipeline/gone.py", "pipeline/gone/<name>.py", "gone.yaml"}


@pytest.mark.parametrize(("what", "most"), MOST_FILES.items())
def test_what_is_added_takes_few_files(what: str, most: int) -> None:
    section = re.split(r"^#+ ", text_of(CONTRIBUTING).split(f"### {what}\n")[1], flags=re.MULTILINE)[0]
    assert 0 < len(re.findall(r"^\| `", section, re.MULTILINE)) <= most


def test_the_architecture_names_every_room_once() -> None:
    rows = re.findall(r"^\| (`pipeline/.+?) \|", text_of(ARCHITECTURE), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`pipeline/(\w+)(?:/|\.py)`", row)]
    rooms = [path.stem for path in (ROOT / "pipeline").iterdir() if path.stem not in ("__init__", "__pycache__")]
    assert sorted(named) == sorted(rooms)


def test_lint_runs_the_hooks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(words: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
        ran.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    cast("Task[Any]", tasks.lint).body(None)
    hooks = [hook for repo in yaml.safe_load(text_of(HOOKS))["repos"] for hook in repo["hooks"]]
    assert [" ".join(words) for words in ran] == [hook["entry"] for hook in hooks]
    assert [Path(words[0]).name for words in ran] == ["ruff", "ruff", "mypy", "lint-imports"]


def test_the_hooks_are_local_look_at_the_whole_project_and_are_valid() -> None:
    repos = yaml.safe_load(text_of(HOOKS))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True)
        assert hook["entry"].startswith(f".venv/bin/{hook['id'].removesuffix('-check').removesuffix('-format')}")
    words = [str(Path(sys.executable).with_name("pre-commit")), "validate-config", str(HOOKS)]
    assert subprocess.run(words, cwd=ROOT).returncode == 0
