"""docs/adding-a-stage.md: its example is put into a copy of the pipeline as the page says, and does there what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.project import ROOT, STAGE_NAMES, Project

TEXT = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
FILES = {"pipeline/stages/memory_copy.py", "tests/unit/test_memory_copy.py"}
FIRST = ("memory-copy", "--profile", "cpu", "--set", "memory.copy_mib=1")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return the page's blocks in that language, each with the file that was named last before it."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [(re.findall(r"`((?:pipeline|tests)/[a-z_/]+\.py)`", TEXT[: block.start()])[-1], block[1]) for block in found]


def applied(text: str, diff: str) -> str:
    """Return `text` with the lines added; the lines around them must stand there, once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line.startswith(" "))
    assert text.count(old) == 1, old
    return text.replace(old, "".join(line[1:] for line in lines))


@pytest.fixture
def extended(tmp_path: Path) -> Project:
    """A project with a pipeline of its own that has the page's stage."""
    project = Project(tmp_path / "project")
    project.copy_pipeline()
    for name, diff in blocks("diff"):
        path = project.root / name
        path.write_text(applied(path.read_text(encoding="utf-8"), diff), encoding="utf-8")
    for name, code in blocks("python"):
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_text(code, encoding="utf-8")
    return project


def test_the_page_names_the_files_of_its_blocks_and_is_short() -> None:
    assert {name for name, _ in blocks("python")} == FILES
    assert {name for name, _ in blocks("diff")} == {"pipeline/config/schema.py", "pipeline/dag.py"}
    for name in re.findall(r"`(pipeline/[a-z_/]+\.py)`", TEXT):
        assert name in FILES or (ROOT / name).is_file(), name
    assert len(TEXT.splitlines()) < 150


def test_each_command_says_what_stands_behind_it(extended: Project) -> None:
    commands = re.findall(r"^    \./inv (.+?) +# (.+)$", TEXT, re.MULTILINE)
    assert len(commands) > 5
    for words, said in commands:
        done = extended.invoke(*words.split())
        assert said in done.stdout + done.stderr, words
        assert done.returncode == (2 if re.search(r"✗|should be", said) else 0), words
        if said.startswith("▶"):
            check, copy = (extended.record(name) for name in ("check-gpu", "memory-copy"))
            assert check["started"] < copy["started"]


def test_it_leaves_a_record_is_skipped_and_runs_again_when_its_code_changes_but_not_its_comments(extended: Project) -> None:
    assert extended.invoke(*FIRST, "--force").returncode == 0
    record = extended.record("memory-copy")
    assert (record["status"], record["because"]["memory"]) == ("ok", {"copy_mib": 1, "copies": 20})
    assert set(record["because"]) == {"schema", "code", "memory", "check-gpu"}
    assert record["data"]["figures"]["copy_mib_s_p50"]["n"] == 20
    path = extended.root / "pipeline" / "stages" / "memory_copy.py"
    code = path.read_text(encoding="utf-8")
    path.write_text(f"{code}\n# as it was\n", encoding="utf-8")
    assert "· memory-copy unchanged" in extended.invoke(*FIRST).stderr
    assert extended.record("memory-copy") == record
    path.write_text(f"{code}\nKIB = 1 << 10\n", encoding="utf-8")
    assert extended.says(*FIRST, "--why")[0].split(maxsplit=1) == ["memory-copy", "code changed"]


def test_it_stands_among_the_other_stages_where_the_page_puts_it(extended: Project) -> None:
    listed = [line.split()[0] for line in extended.says("status", "--profile", "cpu")[1:-1]]
    assert listed == ["check-gpu", "memory-copy", *STAGE_NAMES[1:]]
    told = json.loads("\n".join(extended.says("--list", "--list-format", "json")))
    (help_,) = [task["help"] for task in told["tasks"] if task["name"] == "memory-copy"]
    assert help_ == "how fast one core copies memory."


def test_its_own_test_passes_and_its_code_is_clean(extended: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended.root)}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_memory_copy.py"]
    done = subprocess.run(words, cwd=extended.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    ruff, settings = str(Path(sys.executable).with_name("ruff")), ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    for task in (["check"], ["format", "--check"]):
        checked = subprocess.run([ruff, *task, *settings, *sorted(FILES)], cwd=extended.root, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
