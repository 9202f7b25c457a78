"""Starts that never get ready: deaths told by their cause, hangs, and Ctrl-C."""

import signal
import threading
from typing import Any

import psutil
import pytest

from pipeline.client.control import Control
from pipeline.errors import ServerError
from pipeline.server import launch as launching
from pipeline.server import readiness, state
from pipeline.server.readiness import wait_until_ready
from tests.builders.servers import KV, PHASES, assert_nothing_left, closing_note, started
from tests.fakes.environment import FakeProject, until
from tests.fakes.script import Script

WRAPPER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


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
    ("Killed quietly", "Killed quietly", "log"),
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
def test_a_server_that_never_gets_ready_is_given_up_in_its_phase_and_place(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    def start_and_listen(*arguments: Any) -> state.Launch:
        """A loaded machine may take longer to begin than this start may take in all."""
        launch = start(*arguments)
        until(lambda: PHASES[2] in (project.root / launch.log).read_text(encoding="utf-8"), "its log")
        return launch

    start = launching.start
    monkeypatch.setattr(launching, "start", start_and_listen)
    project.play(script)
    settings = project.settings(start_timeout_s=1)
    with pytest.raises(ServerError, match=r"not ready after 1 s \(in phase weights; main \(tests/fakes/fake_vllm.py:\d+\)\)") as caught:
        project.serve(settings)
    assert "start_timeout_s" in caught.value.hint
    assert_nothing_left(project, settings.port)


@pytest.mark.parametrize("stopped", [False, True], ids=["waits", "stopped"])
def test_a_start_without_progress_is_a_hang_with_phase_and_place(
    project: FakeProject, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setattr(readiness, "PROGRESS_CHECK_S", 0.1)
    project.play(Script(hang=True, log=PHASES[:3]))
    settings = project.settings(stall_timeout_s=1)
    with started(project, settings) as (launch, log):
        until(lambda: PHASES[2] in log.read_text(encoding="utf-8"), "its log")
        if stopped:
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
        until(lambda: state.read(project.workspace), "the launch's note, from which on the start is waited for")
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
