"""A server that dies while it is measured."""

import psutil
import pytest

from pipeline.client.control import Control
from pipeline.config.schema import BenchConfig
from pipeline.contexts import RequestLimits
from pipeline.errors import MeasureError, ServerError
from pipeline.server import state
from pipeline.server import watch as watch_module
from pipeline.server.watch import Watch, watched
from pipeline.stages.bench import bench
from pipeline.stages.serve import Server
from tests.fakes.environment import FakeProject, until
from tests.fakes.script import Script


@pytest.fixture
def crowded(project: FakeProject) -> tuple[FakeProject, Server, Control]:
    """A server whose session holds another process, as an engine would be."""
    project.play(Script(orphan=True))
    server = project.serve(project.settings())
    return project, server, Control(server.handle.base_url)


def child_of(project: FakeProject) -> psutil.Process:
    return next(process for process in state.members(project.launch()) if process.pid != project.launch().pid)


def test_an_engine_that_dies_is_noticed_by_what_the_server_says(crowded: tuple[FakeProject, Server, Control]) -> None:
    project, server, _ = crowded
    project.play(Script(healthy=False))

    def measured() -> None:
        with watched(server.handle, project.workspace) as target:
            assert target.alive(), "all its processes live"
            child_of(project).kill()
            until(lambda: not target.alive(), "the notice")
            raise MeasureError("broken requests")

    with pytest.raises(ServerError, match="died while it was measured"):
        measured()


def test_a_helper_that_ends_by_itself_is_no_death(crowded: tuple[FakeProject, Server, Control], monkeypatch: pytest.MonkeyPatch) -> None:
    project, server, control = crowded
    monkeypatch.setattr(watch_module, "TELLS_S", 0.1)
    watch = Watch(server.handle, control)
    child_of(project).kill()
    until(lambda: watch.alive() and len(watch._others) == 1, "the helper's end")  # one is the API server itself
    assert watch.alive()
    project.play(Script(healthy=False))
    assert watch.alive(), "nothing more has died"


def test_a_server_that_dies_under_load_is_the_failure_of_the_measurement(project: FakeProject) -> None:
    server = project.serve(project.settings())
    project.play(Script(die_at_request=6, last_words=("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB",)))
    settings = BenchConfig(ttft_requests=3, decode_requests=2, output_tokens=4, concurrency=(1, 2), requests_per_level=2, timeout_s=30)
    with pytest.raises(ServerError, match="died while it was measured: the GPU ran out of memory"):
        bench(settings, RequestLimits(), server, project.workspace)
