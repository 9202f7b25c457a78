"""Whoever attends a server in the foreground."""

from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from pipeline.commands.server import attend
from pipeline.commands.session import locked
from pipeline.errors import ServerError
from pipeline.server import state
from pipeline.server.readiness import gone
from pipeline.server.stop import stop_server
from pipeline.stages.serve import restart, server_present
from tests.builders.servers import assert_nothing_left, closing_note, served_and_recorded
from tests.fakes.environment import FakeProject
from tests.fakes.script import Script


def test_whoever_attends_a_server_does_not_stop_the_one_that_a_restart_put_there(project: FakeProject) -> None:
    first = served_and_recorded(project)
    with ThreadPoolExecutor(1) as terminal:
        attending = terminal.submit(attend, project.root)
        with locked(project.workspace):  # as every command does
            second = restart(first, project.workspace)
        assert attending.result(timeout=30).code == 0
    assert server_present(second, project.workspace)


def test_whoever_attends_a_server_that_dies_cleans_up_after_it(project: FakeProject) -> None:
    project.play(Script(orphan=True))
    settings = project.settings()
    server = project.serve(settings)
    with ThreadPoolExecutor(1) as terminal:
        attending = terminal.submit(attend, project.root)
        psutil.Process(server.handle.pid).kill()
        with pytest.raises(ServerError, match="the server died: it ended without a word"):
            attending.result(timeout=30)
    assert closing_note(project).killed
    assert_nothing_left(project, settings.port)


def test_a_server_from_before_a_restart_of_the_machine_is_gone_and_told_so(project: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = project.settings()
    server = project.serve(settings)
    launch = project.launch()
    with monkeypatch.context() as later:
        later.setattr(state, "boot_id", lambda: "another")
        assert not server_present(server, project.workspace)
        assert state.members(launch) == []
        assert gone(launch, project.workspace).message == "the server died: the machine was restarted"
    stop_server(launch, project.workspace)
    assert_nothing_left(project, settings.port)


def test_forgetting_a_server_leaves_the_one_that_took_its_place(project: FakeProject) -> None:
    first = served_and_recorded(project)
    old = project.launch()
    second = restart(first, project.workspace)
    state.clear(project.workspace, old)
    assert project.launch().id == second.handle.launch_id
