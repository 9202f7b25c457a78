"""serve: a server that is proven real, and lies that are found."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from pipeline.client.control import Control
from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.errors import ConfigError, ServerError
from pipeline.load.generator import closed_loop
from pipeline.server import ports, state
from pipeline.server.identity import prove
from pipeline.stages.serve import Server, server_present
from pipeline.vllm.metrics import GENERATED_TOKENS
from tests.builders.servers import PHASES, assert_nothing_left, closing_note
from tests.fakes.environment import MODEL_NAME, FakeProject, until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import VERSION, Script

CLAIMS = {
    "port": "our child listens on the port",
    "python": "it runs the Python of the environment on record",
    "version": "/version is the installed one",
    "models": "/v1/models names the model, its folder and length",
    "metrics": "its metrics count the tokens of a completion",
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeProject, Server]]:
    project = FakeProject(tmp_path_factory.mktemp("up"))
    project.play(Script(log=PHASES))
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HF_TOKEN", "VLLM_POC__SERVE__SEED"):
                patch.setenv(name, "1")
            server = project.serve(project.settings())
        yield project, server
    finally:
        project.close()


def test_serve_gives_a_server_that_is_proven_real(up: tuple[FakeProject, Server]) -> None:
    _, server = up
    assert [proof.claim for proof in server.proofs] == list(CLAIMS.values())
    assert all(proof.holds for proof in server.proofs), server.proofs
    assert server.real
    assert (server.model, server.vllm, server.device, server.max_model_len) == (MODEL_NAME, VERSION, "Fake CPU", 4096)
    assert server.command[0] == "venv-vllm/bin/python"


def test_the_handle_leads_to_the_process_its_log_and_its_samples(up: tuple[FakeProject, Server]) -> None:
    project, server = up
    launch = project.launch()
    assert (launch.id, launch.pid) == (server.handle.launch_id, server.handle.pid)
    assert state.is_running(launch)
    assert ports.owner(launch.host, launch.port) == launch.pid
    assert os.getsid(launch.pid) == launch.pid != os.getsid(0)
    assert PHASES[0] in (project.root / server.handle.log).read_text(encoding="utf-8")
    until((project.root / server.handle.samples).is_file, "the first sample")
    assert server_present(server, project.workspace)


def test_the_phases_are_the_logs_and_add_up(up: tuple[FakeProject, Server]) -> None:
    _, server = up
    assert list(server.handle.phases_s) == ["interpreter", "configuration", "engine", "weights", "compile", "KV cache", "HTTP"]
    assert sum(server.handle.phases_s.values()) == pytest.approx(server.handle.ready_s, abs=0.05)


def test_the_servers_environment_is_clean(up: tuple[FakeProject, Server]) -> None:
    project, server = up
    environment = psutil.Process(server.handle.pid).environ()
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "HF_TOKEN", "VLLM_POC__SERVE__SEED"} & set(environment)
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_CACHE_ROOT"].startswith(str(project.root))


def test_a_client_is_served_and_counted(up: tuple[FakeProject, Server]) -> None:
    _, server = up
    control = Control(server.handle.base_url)
    before = control.metrics()[GENERATED_TOKENS]
    payloads = [streamed(server.model, [{"role": "user", "content": "Hi."}], 5, ignore_eos=True) for _ in range(4)]
    answers, _ = closed_loop(Endpoint(server.handle.base_url), payloads, 2, 30)
    assert [answer.tokens for answer in answers] == [5] * 4
    assert control.metrics()[GENERATED_TOKENS] - before == 20


@pytest.mark.parametrize(
    ("lie", "claim", "seen"),
    [
        (Script(version="0.1.0"), "version", "0.1.0"),
        (Script(model_id="other"), "models", "['other']"),
        (Script(root="/elsewhere"), "models", MODEL_NAME),
        (Script(max_model_len=32), "models", "32 tokens"),
        (Script(owned_by="llama.cpp"), "models", "by llama.cpp"),
        (Script(counting=0), "metrics", "0 counted, 8 said"),
        (Script(counting=2), "metrics", "16 counted, 8 said"),
        (Script(metrics=False), "metrics", "is not there"),
    ],
)
def test_each_lie_fails_its_own_proof_and_no_other(up: tuple[FakeProject, Server], lie: Script, claim: str, seen: str) -> None:
    project, server = up
    launch = project.launch()
    project.play(lie)
    try:
        proofs = prove(launch, Control(launch.base_url), server.vllm)
    finally:
        project.play(Script())
    failed = [proof for proof in proofs if not proof.holds]
    assert [proof.claim for proof in failed] == [CLAIMS[claim]]
    assert seen in failed[0].seen


def test_a_listener_on_another_address_does_not_disturb_the_proof(up: tuple[FakeProject, Server]) -> None:
    project, server = up
    launch = project.launch()
    with neighbours(launch.port):
        proofs = prove(launch, Control(launch.base_url), server.vllm)
    assert [proof.claim for proof in proofs if not proof.holds] == []


@contextmanager
def neighbours(port: int) -> Iterator[None]:
    """Listen on the port at a dozen other loopback addresses."""
    listeners = []
    try:
        for last in range(2, 14):
            listener = socket.socket()
            listeners.append(listener)
            listener.bind((f"127.0.0.{last}", port))
            listener.listen()
        yield
    finally:
        for listener in listeners:
            listener.close()


def test_a_server_in_this_very_process_fails_the_proofs_of_the_process(up: tuple[FakeProject, Server]) -> None:
    project, server = up
    with FakeVllm(model=MODEL_NAME, folder=str(project.folder)) as fake:
        own = {"pid": os.getpid(), "created": state.created_s(os.getpid()), "port": fake.port}
        launch = project.launch().model_copy(update=own)
        proofs = prove(launch, Control(fake.base_url), server.vllm)
    assert [proof.claim for proof in proofs if not proof.holds] == [CLAIMS["port"], CLAIMS["python"]]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_other_ways_to_say_this_machine_are_proven_too(project: FakeProject, host: str) -> None:
    server = project.serve(project.settings(host=host))
    assert server.real
    assert server_present(server, project.workspace)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (Script(version="0.1.0"), f"{CLAIMS['version']}: 0.1.0"),
        (Script(poses_as="python3"), CLAIMS["python"]),
        (Script(metrics_status=404), "404"),
        (Script(status=500), "does not complete a request"),
        (Script(texts=("",)), "first completion says nothing: ''"),
        (Script(texts=("!!!!!!!!!!!!",)), "first completion says nothing: '!!!!!!!!!!!!'"),
    ],
)
def test_a_server_that_is_not_what_it_should_be_is_refused_and_stopped(project: FakeProject, lie: Script, says: str) -> None:
    project.play(lie)
    settings = project.settings()
    with pytest.raises(ServerError) as caught:
        project.serve(settings)
    assert says in caught.value.message
    assert caught.value.hint
    assert caught.value.log is not None
    assert caught.value.log.is_file()
    assert_nothing_left(project, settings.port)


def test_a_foreign_server_that_takes_the_port_while_ours_loads_is_refused(project: FakeProject) -> None:
    project.play(Script(hang=True))
    settings = project.settings()

    def take_port() -> None:
        until(lambda: state.read(project.workspace), "a launch")
        taken.append(FakeVllm(model=MODEL_NAME, folder=str(project.folder), port=settings.port))
        taken[0].__enter__()

    taken: list[FakeVllm] = []
    thread = threading.Thread(target=take_port)
    thread.start()
    try:
        with pytest.raises(ServerError, match="is not the server we started") as caught:
            project.serve(settings)
    finally:
        thread.join()
        for fake in taken:
            fake.__exit__()
    assert CLAIMS["port"] in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message
    assert project.processes() == []
    assert not closing_note(project).port_free


def test_a_host_without_an_address_is_refused_before_anything_starts(project: FakeProject) -> None:
    with pytest.raises(ConfigError, match=r"serve\.host: nosuch\.invalid has no address on this machine"):
        project.serve(project.settings().model_copy(update={"host": "nosuch.invalid"}))
    assert project.processes() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_told_with_its_owner_before_anything_starts(project: FakeProject, address: str) -> None:
    with FakeVllm(host=address) as foreign:
        settings = project.settings(foreign.port)
        with pytest.raises(ServerError) as caught:
            project.serve(settings)
        assert f"port {foreign.port} is taken by pid {os.getpid()}" in caught.value.message
        assert f"serve.port={foreign.port + 1}" in caught.value.hint
        assert Control(f"http://127.0.0.1:{foreign.port}").answers(), "the other program is left alone"
    assert not project.workspace.launches.exists()
    assert project.processes() == []
