"""A change of code: which stages `why` would run again, for one file of each kind."""

from collections.abc import Iterator

import pytest

from tests.builders.project import SMALL, Project
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script

MEASURING = {"test-router", "test-determinism", "bench"}
CODE = "\nEDITED = 1\n"
CHANGES = {
    "pipeline/stages/bench.py": {"bench"},
    "pipeline/measure/agreement.py": {"test-determinism"},
    "pipeline/client/answer.py": MEASURING,
    "pipeline/report/stage.py": set(),
    "pipeline/commands/chain.py": set(),
    "pipeline/config/schema.py": set(),
    "pipeline/engine/pipeline.py": set(),
    "pipeline/engine/record.py": set(),
    "pipeline/message.py": set(),
    "pipeline/terminal.py": set(),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, tuple[str, ...]]]:
    """A project with a pipeline of its own and records of all stages but those that a server of somebody else needs none of."""
    project = Project(tmp_path_factory.mktemp("why") / "project")
    project.copy_pipeline()
    with FakeVllm(Script(texts=('{"route": "chat"}',))) as fake:
        settings = ("--profile", "cpu", "--set", f"attach.url={fake.base_url}", *SMALL)
        assert project.invoke("all", *settings).returncode == 2, "its memory is not ours to measure"
        yield project, settings


def reasons(project: Project, settings: tuple[str, ...]) -> dict[str, str]:
    """Return what `why` says of each stage."""
    lines = project.says("why", *settings)[:-1]
    return dict(tuple(line.split(maxsplit=1)) for line in lines)  # type: ignore[misc]


def test_nothing_would_run_when_nothing_changed(measured: tuple[Project, tuple[str, ...]]) -> None:
    answers = reasons(*measured)
    assert {answers[name] for name in (*MEASURING, "serve")} == {"unchanged"}
    assert answers["report"] == "after install, if its outcome changes", "which a server of somebody else does without"


@pytest.mark.parametrize("file", CHANGES)
def test_a_measurement_runs_again_when_code_that_computes_it_changed_and_else_not(
    measured: tuple[Project, tuple[str, ...]], file: str
) -> None:
    project, settings = measured
    path = project.root / file
    before = path.read_text(encoding="utf-8")
    try:
        project.append(file, "\n# a comment\n")
        assert reasons(project, settings)["bench"] == "unchanged"
        project.append(file, CODE)
        answers = reasons(project, settings)
    finally:
        path.write_text(before, encoding="utf-8")
    assert {name for name in MEASURING if answers[name] == "code changed"} == CHANGES[file]
    assert all(answers[name] == "unchanged" for name in MEASURING - CHANGES[file])
    assert (answers["report"] == "code changed") == (file in ("pipeline/report/stage.py", "pipeline/client/answer.py"))


def test_a_template_is_a_reason_to_render_again_and_to_measure_nothing(measured: tuple[Project, tuple[str, ...]]) -> None:
    project, settings = measured
    path = project.root / "templates" / "report.md.j2"
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n", encoding="utf-8")
    try:
        answers = reasons(project, settings)
    finally:
        path.write_text(before, encoding="utf-8")
    assert answers["report"] == "report file templates changed"
    assert {answers[name] for name in MEASURING} == {"unchanged"}
