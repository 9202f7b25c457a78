"""stop: what is ended, what is waited for, what is left alone; and launches that follow each other."""

import os
import signal
import subprocess

import psutil
import pytest

from pipeline.config.schema import ServeConfig
from pipeline.engine.record import now
from pipeline.server import launch as launching
from pipeline.server import ports, state
from pipeline.server.stop import stop_server
from pipeline.stages.serve import server_present
from tests.builders.servers import assert_nothing_left, closing_note
from tests.fakes.environment import MODEL_NAME, FakeProject, free_port, until
from tests.fakes.script import Script


def test_stop_is_asked_for_nicely_and_noted(project: FakeProject) -> None:
    settings = project.settings()
    server = project.serve(settings)
    closing = stop_server(project.launch(), project.workspace)
    assert (closing.launch_id, closing.was_running, closing.asked_nicely) == (server.handle.launch_id, True, True)
    assert closing.killed == []
    assert closing.port_free
    assert closing_note(project) == closing
    assert not server_present(server, project.workspace)
    assert_nothing_left(project, settings.port)


def test_stop_waits_for_a_port_that_is_given_back_a_moment_late(project: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread of a dying process is a zombie while the others still hold its sockets and its device memory."""
    settings = project.settings()
    project.serve(settings)
    late = iter([False, False])
    is_free = ports.is_free
    monkeypatch.setattr(ports, "is_free", lambda host, port: next(late, True) and is_free(host, port))
    assert stop_server(project.launch(), project.workspace).port_free


def test_a_leader_that_ignores_sigterm_is_killed(project: FakeProject) -> None:
    project.play(Script(ignore_sigterm=True))
    settings = project.settings(stop_timeout_s=0.3)
    server = project.serve(settings)
    closing = stop_server(project.launch(), project.workspace)
    assert [int(words.split()[0]) for words in closing.killed] == [server.handle.pid]
    assert closing.took_s >= 0.3
    assert_nothing_left(project, settings.port)


def test_a_leader_killed_hard_is_noticed_and_its_child_cleaned_up(project: FakeProject) -> None:
    project.play(Script(orphan=True))
    settings = project.settings()
    server = project.serve(settings)
    launch = project.launch()
    (child,) = psutil.Process(launch.pid).children()
    os.kill(launch.pid, signal.SIGKILL)
    until(lambda: not state.is_running(launch), "the leader's death")
    assert child.is_running()
    assert [process.pid for process in state.members(launch)] == [child.pid]
    assert not server_present(server, project.workspace)
    closing = stop_server(launch, project.workspace)
    assert (closing.was_running, closing.asked_nicely) == (True, False)
    assert [int(words.split()[0]) for words in closing.killed] == [child.pid]
    assert_nothing_left(project, settings.port)


def test_a_server_that_was_already_gone_is_stopped_without_a_kill(project: FakeProject) -> None:
    settings = project.settings()
    project.serve(settings)
    launch = project.launch()
    os.kill(launch.pid, signal.SIGKILL)
    os.waitpid(launch.pid, 0)
    closing = stop_server(launch, project.workspace)
    assert (closing.was_running, closing.asked_nicely, closing.killed) == (False, False, [])
    assert_nothing_left(project, settings.port)


def test_stop_leaves_alone_whoever_got_the_leaders_pid_later(project: FakeProject) -> None:
    """Process ids start anew after a reboot; an old note must not kill another program's session."""
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        launch = state.Launch(
            id="before-the-reboot",
            pid=other.pid,
            created=state.created_s(other.pid) - 1,
            boot=state.boot_id(),
            host="127.0.0.1",
            port=free_port(),
            model=MODEL_NAME,
            log="server.log",
            command=[],
            settings=ServeConfig(),
            started=now(),
        )
        state.write(project.workspace, launch)
        closing = stop_server(launch, project.workspace)
        assert other.poll() is None, "killed a stranger"
        assert not closing.was_running
    finally:
        other.kill()
        other.wait()


def test_a_second_serve_stops_the_first(project: FakeProject) -> None:
    first_settings, second_settings = project.settings(), project.settings()
    first = project.serve(first_settings)
    second = project.serve(second_settings)
    assert second.handle.launch_id != first.handle.launch_id
    assert closing_note(project).launch_id == first.handle.launch_id
    assert not psutil.pid_exists(first.handle.pid or 0)
    assert ports.is_free("127.0.0.1", first_settings.port)
    assert not server_present(first, project.workspace)
    assert server_present(second, project.workspace)
    assert first.identity() == second.identity(), "the port is no part of what is measured"


def test_a_server_can_follow_the_first_on_the_same_port(project: FakeProject) -> None:
    settings = project.settings()
    first, second = project.serve(settings), project.serve(settings)
    assert first.handle.pid != second.handle.pid
    assert server_present(second, project.workspace)


def test_two_starts_in_one_second_have_folders_of_their_own(project: FakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = now()
    monkeypatch.setattr(launching, "now", lambda: moment)
    first, second = project.serve(project.settings()), project.serve(project.settings())
    assert first.handle.launch_id != second.handle.launch_id
    assert (project.root / first.handle.log).is_file()


def test_ten_launches_are_kept(project: FakeProject) -> None:
    old = [project.workspace.launches / f"20200101-0000{number:02}-1" for number in range(12)]
    for folder in old:
        folder.mkdir(parents=True)
    server = project.serve(project.settings())
    kept = sorted(path.name for path in project.workspace.launches.iterdir())
    assert kept == [*(folder.name for folder in old[3:]), server.handle.launch_id]


def test_the_sampler_ends_by_itself_after_a_server_that_nobody_stopped(project: FakeProject) -> None:
    project.serve(project.settings())
    launch = project.launch()
    assert state.process(launch.sampler_pid, launch.sampler_created) is not None
    os.kill(launch.pid, signal.SIGKILL)
    until(lambda: state.process(launch.sampler_pid, launch.sampler_created) is None, "the sampler's end")
