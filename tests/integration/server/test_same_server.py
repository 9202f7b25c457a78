"""A server that serves something else after a measurement than before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.requests import RequestsConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError
from pipeline.server.watch import watched
from pipeline.stages.serve import attached_handle
from pipeline.terminal import Silent
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with FakeVllm() as made:
        yield made


def measure(fake: FakeVllm, workspace: Workspace, then: Script) -> None:
    """Measure nothing, while the server becomes another one."""
    with watched(attached_handle(fake.base_url, RequestsConfig()), workspace):
        fake.script = then


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, Silent())


@pytest.mark.parametrize(
    ("then", "says"),
    [
        (Script(model_id="another"), "fake-model was /models/fake, then gone"),
        (Script(root="/models/another"), "fake-model was /models/fake, then /models/another"),
        (Script(version="0.1.0"), "vLLM was .*, then 0.1.0"),
    ],
)
def test_another_model_folder_or_version_fails_the_measurement(then: Script, says: str, fake: FakeVllm, workspace: Workspace) -> None:
    with pytest.raises(MeasureError, match=f"the server changed while it was measured: {says}"):
        measure(fake, workspace, then)


def test_a_model_that_was_added_or_pages_that_fail_do_not(fake: FakeVllm, workspace: Workspace) -> None:
    more = '{"data": [{"id": "fake-model", "root": "/models/fake"}, {"id": "an-adapter", "root": "/models/b"}]}'
    measure(fake, workspace, Script(bodies={"/v1/models": more}))
    measure(fake, workspace, Script(bodies={"/v1/models": "not JSON"}))
