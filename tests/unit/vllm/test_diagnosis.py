"""What a log says about a death: unknown errors, ends from outside, and builds that failed."""

import pytest

from pipeline.vllm.diagnosis import diagnose, last_error
from tests.builders.logs import API, CORE, WRAPPER, log_of


@pytest.mark.parametrize("log", ["", "INFO everything is fine\n", f"{CORE}ValueError: something new\n{WRAPPER}"])
def test_unknown_text_gives_none(log: str) -> None:
    assert diagnose(log) is None


def test_last_error_looks_above_the_wrapper() -> None:
    assert last_error(log_of("ValueError: something new")) == "ValueError: something new"


def test_last_error_takes_the_last_of_several() -> None:
    assert last_error(f"{CORE}KeyError: 'a'\n{CORE}TypeError: b\nINFO bye\n") == "TypeError: b"


def test_last_error_is_no_line_of_source() -> None:
    log = f"{CORE}AssertionError: local rank 0 is out of bounds for 0 devices.\n(APIServer pid=1)     raise RuntimeError(\n{WRAPPER}"
    assert last_error(log) == "AssertionError: local rank 0 is out of bounds for 0 devices."


def test_last_error_gives_the_wrapper_when_there_is_nothing_else() -> None:
    assert "Engine core initialization failed" in last_error(WRAPPER)


def test_where_nothing_is_known_the_last_lines_that_are_no_wrappers_are_told() -> None:
    log = f"{CORE}the disc spins backwards\n{CORE}Process EngineCore:\n{CORE}giving up\n{API}Traceback (most recent call last):{WRAPPER}"
    assert last_error(log) == "the disc spins backwards · giving up"
    assert diagnose(log) is None


def test_a_worker_that_ends_silently_while_it_loads_is_told() -> None:
    wrapper = "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace for root cause."
    assert last_error(f"{CORE}{wrapper}\n{WRAPPER}").startswith("a worker ended while it loaded")
    assert last_error(f"(Worker pid=7) ValueError: the moon\n{CORE}{wrapper}\n{WRAPPER}") == "ValueError: the moon"


def test_last_error_of_a_silent_log_is_empty() -> None:
    assert last_error("INFO fine\nwarning: no errors\n") == ""


def test_last_error_is_cut_to_one_readable_line() -> None:
    assert len(last_error(f"ValueError: {'x' * 5000}")) == 300


# Lines of vLLM 0.32 after each signal.
DEAD = "(APIServer pid=1) ERROR 11-24 00:06:22 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered\n"
ENDED = {
    "engine killed": (
        "(APIServer pid=1) WARNING 11-24 00:06:22 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; starting",
        "its engine was killed",
    ),
    "worker killed": (
        "(EngineCore pid=2) ERROR 11-24 00:04:24 [multiproc_executor.py:315] "
        "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.\n"
        "(EngineCore pid=2) ERROR 11-24 00:04:24 [core.py:1105] RuntimeError: cancelled",
        "its worker was killed",
    ),
    "worker ended": ("Worker proc VllmWorker-1 died unexpectedly (exit code: 1), shutting down executor.", "its worker ended unexpectedly"),
    "terminated": (
        "(APIServer pid=1) INFO 11-24 00:05:17 [launcher.py:254] [shutdown] API server: shutdown triggered\n"
        "RuntimeError: cannot schedule new futures after shutdown",
        "it was asked to end (SIGTERM)",
    ),
}


@pytest.mark.parametrize(("line", "says"), ENDED.values(), ids=ENDED)
def test_an_end_from_outside_is_told_where_no_error_tells_more(line: str, says: str) -> None:
    assert last_error(f"{line}\n{DEAD}").startswith(says)
    assert last_error(f"ValueError: the cause\n{line}\n{DEAD}") == "ValueError: the cause"


# The ends of real logs on a machine without a GPU, of the hash-pinned sets as `./inv install` makes them.
NO_DEVICE = {
    "vllm-cuda13, vLLM 0.33.0": """\
W1124 17:25:20.629000 370 torch/utils/cpp_extension.py:183] No CUDA runtime is found, using CUDA_HOME='/usr/local'
api_server.py:51: DeprecationWarning: The `python -m vllm.entrypoints.openai.api_server` command is deprecated and may be removed in a \
future release. Please use `vllm server` instead.
  warnings.warn(
Traceback (most recent call last):
  File "venv-vllm/lib/python3.12/site-packages/vllm/engine/arg_utils.py", line 350, in _compute_kwargs
    default = default.default_factory()  # type: ignore[call-arg]
  File "venv-vllm/lib/python3.12/site-packages/vllm/config/device.py", line 55, in __post_init__
    raise RuntimeError(
RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose \
logging to help debug the issue.
""",
    "vllm-cuda12, vLLM 0.19.1": """\
  File "venv-vllm/lib/python3.12/site-packages/vllm/engine/arg_utils.py", line 280, in _compute_kwargs
    default = default.default_factory()  # type: ignore[call-arg]
  File "venv-vllm/lib/python3.12/site-packages/pydantic/_internal/_dataclasses.py", line 121, in __init__
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
  File "venv-vllm/lib/python3.12/site-packages/vllm/config/device.py", line 56, in __post_init__
    raise RuntimeError(
RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose \
logging to help debug the issue.
""",
}


@pytest.mark.parametrize("log", NO_DEVICE.values(), ids=NO_DEVICE)
def test_the_gpu_sets_real_logs_without_a_gpu_name_the_cause(log: str) -> None:
    found = diagnose(log)
    assert found is not None
    assert (found.name, "--profile cpu with install.set at auto" in found.fix) == ("no-device", True)
    assert last_error(log).startswith("RuntimeError: Failed to infer device type")


def test_a_warning_that_mentions_an_error_is_none() -> None:
    warning = "(APIServer pid=1) WARNING 11-24 00:05:46 [system_utils.py:255] Found ulimit of 20000, which can cause `OSError: [Errno 24]`."
    assert last_error(warning) == ""


def test_information_that_names_a_cause_is_none() -> None:
    warning = (
        "(APIServer pid=7) WARNING 11-27 10:00:00 [flashinfer.py:99] FlashInfer kernels are disabled: nvcc: not found or ninja missing.\n"
        "2026-11-27 10:00:01,111 - INFO - core.py:594 - flashinfer.jit: Building JIT module, libcuda.so cannot found\n"
        "(EngineCore pid=8) INFO 11-27 10:00:02 [core.py:139] Initializing a V1 LLM engine with config: `trust_remote_code=True`\n"
    )
    assert diagnose(warning) is None
    assert last_error(warning) == ""


def test_source_that_a_traceback_shows_is_no_cause() -> None:
    log = (
        f"{CORE}Traceback (most recent call last):\n"
        f'{CORE}  File "loader.py", line 4, in load\n{CORE}    raise ValueError("UVA is not available" if uva else text)\n{CORE}    ^^^^^\n'
        f"{CORE}ValueError: the moon is full\n"
    )
    assert diagnose(log) is None
    assert last_error(log) == "ValueError: the moon is full"


def test_an_engine_that_is_killed_while_it_serves_is_not_killed_while_it_loads() -> None:
    died = (
        "(EngineCore pid=2) ERROR 11-27 10:04:24 [multiproc_executor.py:380] Worker proc VllmWorker-0 died unexpectedly (exit code: -9)\n"
    )
    found = diagnose(died)
    assert found is not None
    assert found.name == "killed"
    serving = f"INFO:     Application startup complete.\n{died}"
    assert diagnose(serving) is None
    assert last_error(serving).startswith("its worker was killed")


# FlashInfer's build on two H100s without a CUDA toolkit, cut; and others of the kind. {said} is what the compiler says.
NINJA = """\
(EngineCore pid=60) ERROR 11-27 10:17:08 [core.py:1584] EngineCore failed to start.
Process EngineCore:
Traceback (most recent call last):
  File "venv-vllm/lib/python3.12/site-packages/flashinfer/jit/cpp_ext.py", line 433, in run_ninja
    subprocess.run(
subprocess.CalledProcessError: Command '['ninja', '-v', '-C', '.cache/flashinfer/sampling']' returned non-zero exit status 127.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "venv-vllm/lib/python3.12/site-packages/flashinfer/jit/cpp_ext.py", line 445, in run_ninja
    raise RuntimeError(msg) from e
RuntimeError: Ninja build failed. Ninja output:
ninja: Entering directory `.cache/flashinfer/sampling'
[1/4]  /usr/local/cuda/bin/nvcc -ccbin /usr/bin/gcc -I/usr/include/error: -c sampling.cu -o sampling.cuda.o
FAILED: [code=1] sampling.cuda.o
 /usr/local/cuda/bin/nvcc -ccbin /usr/bin/gcc -I/usr/include/error: -c sampling.cu -o sampling.cuda.o
{said}
[2/4]  /usr/local/cuda/bin/nvcc -c renorm.cu -o renorm.cuda.o
FAILED: [code=1] renorm.cuda.o
 /usr/local/cuda/bin/nvcc -c renorm.cu -o renorm.cuda.o
renorm.cu(1): error: a later one
ninja: build stopped: subcommand failed.

(APIServer pid=59) INFO 11-27 10:17:11 [utils.py:628] [shutdown] Process manager: send sigterm to process EngineCore
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
"""
SAID = {
    "sh": ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", "nvcc is missing"),
    "bash": ("/bin/sh: line 1: /usr/local/cuda/bin/nvcc: No such file or directory", "nvcc is missing"),
    "nvcc": (
        "sampling.cu(42): warning #20012-D: a hint\nsampling.cu(77): error: no operator matches",
        "sampling.cu(77): error: no operator",
    ),
    "gcc": ("x.h:3:5: note: here\nx.h:9:5: error: 'foo' was not declared", "x.h:9:5: error: 'foo' was not declared"),
    "nvcc fatal": ("nvcc fatal   : Unknown option '--std=c++23'", "nvcc fatal   : Unknown option '--std=c++23'"),
    "linker": (
        "/usr/bin/ld: a.o: undefined reference to `cudaFoo'\ncollect2: error: ld returned 1 exit status",
        "undefined reference to `cudaFoo'",
    ),
    "library": ("/usr/bin/ld: cannot find -lcudart: No such file or directory", "does not find the library -lcudart"),
    "header": ("x.cuh:1:10: fatal error: cublas_v2.h: No such file or directory", "the CUDA header cublas_v2.h is missing"),
    "old": ("nvcc fatal   : Unsupported gpu architecture 'compute_100f'", "it does not know compute_100f"),
    "other": ("/bin/sh: 1: Syntax error", "/bin/sh: 1: Syntax error"),
    "strange": ("the compiler's licence has run out", "the compiler's licence has run out"),
    "silent": ("", "ninja failed without a word in the log"),
}


@pytest.mark.parametrize(("said", "cause"), SAID.values(), ids=SAID)
def test_a_build_that_fails_is_told_by_the_compilers_own_first_words(said: str, cause: str) -> None:
    found = diagnose(NINJA.format(said=said))
    assert found is not None
    assert cause in found.says
    assert "a later one" not in found.says
    assert "VLLM_USE_FLASHINFER_SAMPLER=0" in found.fix


TRITON = (
    "{said}(EngineCore pid=7) ERROR 11-27 10:00:30 [core.py:1584] Traceback (most recent call last):\n"
    "(EngineCore pid=7) ERROR 11-27 10:00:30 [core.py:1584] torch._inductor.exc.InductorError: CalledProcessError: Command "
    "'['/usr/bin/gcc', '/tmp/t/main.c', '-O3', '-o', '/tmp/t/cuda_utils.so', '-l:libcuda.so.1']' returned non-zero exit status 1.\n"
)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("", "/usr/bin/gcc failed without a word in the log"),
        ("/tmp/t/main.c:9:1: error: unknown type name 'CUfoo'\n", "/tmp/t/main.c:9:1: error: unknown type name 'CUfoo'"),
        (
            "/tmp/t/main.c:1:10: fatal error: Python.h: No such file or directory\ncompilation terminated.\n",
            "the Python headers are missing",
        ),
        ("/usr/bin/ld: cannot find -l:libcuda.so.1: No such file or directory\n", "the library -l:libcuda.so.1"),
    ],
)
def test_tritons_own_compiler_is_told_by_its_words(said: str, cause: str) -> None:
    found = diagnose(TRITON.format(said=said))
    assert found is not None
    assert cause in found.says
    assert "python3-dev" in found.fix or "ldconfig" in found.fix


def test_a_program_that_is_no_compiler_is_no_build() -> None:
    assert diagnose("subprocess.CalledProcessError: Command '['/usr/bin/lscpu', '-J']' returned non-zero exit status 1.") is None


def test_torchs_cpp_build_is_told_by_the_compilers_words() -> None:
    log = f"{CORE}torch._inductor.exc.InductorError: CppCompileError: C++ compile error\n\nOutput:\nx.cpp:3:1: error: no 'at'\n"
    found = diagnose(log)
    assert found is not None
    assert found.says == "a kernel could not be compiled: x.cpp:3:1: error: no 'at'"
    assert "serve.enforce_eager=true" in found.fix


TRACE = (
    f'{CORE}Traceback (most recent call last):\n{CORE}  File "x.py", line 1, in f\n{CORE}    assert heads % size == 0\n{CORE}       ^^^\n'
)
UNKNOWN = {
    "no Error in its name": (
        f"{TRACE}{CORE}torch._dynamo.exc.Unsupported: call_function foo",
        "torch._dynamo.exc.Unsupported: call_function foo",
    ),
    "no message": (f"{TRACE}{CORE}AssertionError", "AssertionError (assert heads % size == 0)"),
    "message below": (
        f"{TRACE}{CORE}torch._dynamo.exc.BackendCompilerFailed:\n{CORE}  the moon",
        "torch._dynamo.exc.BackendCompilerFailed: the moon",
    ),
    "exit": (f"{TRACE}{CORE}SystemExit: 7", "SystemExit: 7"),
    "of another process": (f"{TRACE}{API}KeyError: 'x'\n{CORE}queue.Empty", "queue.Empty (assert heads % size == 0)"),
    "pydantic": (
        f"{API}pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        f"{API}  Value error, the moon is full [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n"
        f"{API}    For further information visit https://errors.pydantic.dev/2.12/v/value_error\n",
        "ModelConfig: the moon is full",
    ),
    "pydantic, a message of several lines": (
        f"{API}pydantic_core.ValidationError: 1 validation error for ModelConfig\n{API}  Value error, the moon is full.\nRun [type=x]\n",
        "ModelConfig: the moon is full.",
    ),
    "pydantic, a field": (
        f"{API}pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\n{API}block_size\n"
        f"{API}  Input should be 8, 16 or 32 [type=literal_error, input_value=7, input_type=int]\n",
        "CacheConfig.block_size: Input should be 8, 16 or 32",
    ),
    "coloured": ("\x1b[36m(RayWorker pid=7, ip=10.0.0.9)\x1b[0m ValueError: the moon is full", "ValueError: the moon is full"),
}


@pytest.mark.parametrize(("log", "told"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_error_is_told_by_its_telling_line(log: str, told: str) -> None:
    assert diagnose(log) is None
    assert last_error(f"{log}\n{API}Traceback (most recent call last):{WRAPPER}") == told
