"""Fixtures of these tests."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine.workspace import Workspace
from pipeline.stages.serve import Server
from pipeline.terminal import Silent
from tests.builders.stages import CASES, SCHEMA
from tests.fakes.environment import simulated_server
from tests.fakes.fake_vllm import FakeVllm


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Silent())
    (tmp_path / "server.log").write_text("", encoding="utf-8")
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "suite.yaml").write_text(
        "name: tiny\nlanguage: en\ndescription: A test.\nprompt: prompt.j2\nschema: schema.json\ncases: cases.jsonl\n", encoding="utf-8"
    )
    (tmp_path / "prompts.txt").write_text("steady\n\nshaky\n", encoding="utf-8")
    (suite / "prompt.j2").write_text("Answer with JSON.", encoding="utf-8")
    (suite / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    lines = [json.dumps({"id": f"c{number}", "text": name, **gold}) for number, (name, (gold, _)) in enumerate(CASES.items())]
    (suite / "cases.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm() as made:
        yield made


@pytest.fixture
def server(fake: FakeVllm, workspace: Workspace) -> Server:
    return simulated_server(fake, workspace)
