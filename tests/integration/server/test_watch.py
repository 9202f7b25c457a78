"""`serve --watch`: a server that crashes comes back, one that keeps crashing is given up, one that is stopped stays stopped."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pipeline.commands import watch
from pipeline.commands.session import Options, locked
from pipeline.commands.watch import keep_running
from pipeline.engine.record import Failure, Store, now
from pipeline.errors import ServerError
from pipeline.server import restarts, state
from pipeline.server.restarts import read_crashes
from pipeline.server.stop import stop_server
from pipeline.stages.serve import Server
from pipeline.terminal import Output
from tests.fakes.environment import FakeProject, code_of, until
from tests.fakes.script import Script


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProject]:
    """A project whose `serve` stage starts the fake, as the engine would."""
    made = FakeProject(tmp_path)
    settings = made.settings()
    store = Store(made.workspace.artifacts)

    def bring_up(root: Path, options: Options, name: str, wait: bool = False) -> Output:
        with locked(made.workspace, wait):
            try:
                store.write(name, {}, now(), 0.0, made.serve(settings))
                state.write(made.workspace, made.launch().model_copy(update={"stays": True}))
            except ServerError as error:
                store.write(name, {}, now(), 0.0, Failure(kind=error.kind, message=error.message))
                return Output(2, [], None)
        return Output(0, [], None)

    (made.root / "config.yaml").write_text("profile: cpu\nprofiles: {cpu: {}}\nwatch: {max_restarts: 2}\n", encoding="utf-8")
    monkeypatch.setattr(watch, "run_stage", bring_up)
    monkeypatch.setattr(watch, "WATCH_S", 0.02)
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.01)
    yield made
    made.close()


@pytest.fixture
def keeper(project: FakeProject) -> Iterator["Future[Output]"]:
    """`serve --watch` at work in another terminal."""
    with ThreadPoolExecutor(1) as terminal:
        future = terminal.submit(keep_running, project.root, Options())
        yield future
        with locked(project.workspace, wait=True):
            launch = state.read(project.workspace)
            if launch is not None:
                stop_server(launch, project.workspace)


def running(project: FakeProject, other_than: str = "") -> bool:
    """Tell whether a server is up and on record, other than that one."""
    launch, server = state.read(project.workspace), Store(project.workspace.artifacts).outcome("serve", Server).data
    up = launch is not None and server is not None and server.handle.launch_id == launch.id and state.is_running(launch)
    return up and launch is not None and launch.id != other_than


def test_a_crash_is_noted_and_the_server_comes_back(
    project: FakeProject, keeper: "Future[Output]", capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: running(project), "the first server")
    first = project.launch()
    psutil.Process(first.pid).kill()
    until(lambda: running(project, first.id), "the second server")
    (crash,) = read_crashes(project.workspace)
    assert (crash.launch_id, crash.restart) == (first.id, True)
    assert "without a word" in crash.cause
    with locked(project.workspace, wait=True):
        stop_server(project.launch(), project.workspace)
    assert code_of(keeper.result(timeout=60)) == 0
    assert "starting again in 0.01 s" in capsys.readouterr().out
    assert len(read_crashes(project.workspace)) == 1, "a stop is no crash"


def test_a_server_that_another_command_replaced_is_watched_on(project: FakeProject, keeper: "Future[Output]") -> None:
    until(lambda: running(project), "the first server")
    first = project.launch()
    with locked(project.workspace, wait=True):
        stop_server(first, project.workspace)
        restarted = project.serve(project.settings())
    Store(project.workspace.artifacts).write("serve", {}, now(), 0.0, restarted)
    assert read_crashes(project.workspace) == []
    second = project.launch()
    psutil.Process(second.pid).kill()
    until(lambda: running(project, second.id), "the third server")
    assert [crash.launch_id for crash in read_crashes(project.workspace)] == [second.id]


def test_a_server_that_keeps_crashing_is_given_up(project: FakeProject, keeper: "Future[Output]") -> None:
    until(lambda: running(project), "the first server")
    project.play(Script(exit_code=1, log=("ValueError: its disk broke",)))
    psutil.Process(project.launch().pid).kill()
    with pytest.raises(ServerError, match="ValueError: its disk broke; 3 crashes within 600 s, so a restart does not help"):
        keeper.result(timeout=60)
    assert [crash.restart for crash in read_crashes(project.workspace)] == [True, True, False]
    assert project.processes() == []


def test_a_first_start_that_fails_is_no_crash(project: FakeProject) -> None:
    project.play(Script(exit_code=1))
    assert code_of(keep_running(project.root, Options())) == 2
    assert read_crashes(project.workspace) == []


def interrupted_after(project: FakeProject, prepare: Callable[[], object]) -> None:
    """Watch, and press Ctrl-C once the server runs and `prepare` is through."""

    def press() -> None:
        until(lambda: running(project) and project.launch().stays, "the server")
        prepare()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            keep_running(project.root, Options())
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_stops_the_server_that_is_watched(project: FakeProject) -> None:
    interrupted_after(project, lambda: None)
    assert state.read(project.workspace) is None
    assert project.processes() == []


def test_ctrl_c_leaves_the_server_that_another_command_measures(project: FakeProject) -> None:
    with ExitStack() as held:

        def measure() -> None:
            held.enter_context(locked(project.workspace, wait=True))
            stop_server(project.launch(), project.workspace)
            project.serve(project.settings())

        interrupted_after(project, measure)
    assert state.is_running(project.launch())
