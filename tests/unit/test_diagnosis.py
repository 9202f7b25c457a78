"""Causes of death, from logs as vLLM 0.32 writes them."""

import pytest

from pipeline.server.diagnosis import CAUSES, diagnose, last_error

CORE = "(EngineCore pid=4242) ERROR 11-23 13:40:10 [core.py:936] "
API = "(APIServer pid=4200) "
WRAPPER = "\n(APIServer pid=4200) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"

# One log per row of CAUSES, in that order: (name, telling line, what the words or the fix must hold).
LOGS = [
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
        "CUDA 12020",
    ),
    (
        "no-device",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "--profile cpu",
    ),
    (
        "free-vram",
        "ValueError: Free memory on device cuda:0 (2.11/5.77 GiB) on startup is less than desired GPU memory utilization (0.75, 4.33 GiB).",
        "serve.gpu_memory_utilization",
    ),
    (
        "free-ram",
        "ValueError: Available memory on node 0 (0.91/7.75 GiB) on startup is less than desired CPU memory utilization (0.4, 3.1 GiB).",
        "VLLM_CPU_KVCACHE_SPACE",
    ),
    (
        "kv-below-context",
        "ValueError: To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, which is larger "
        "than the available KV cache memory (0.58 GiB). Based on the available memory, the estimated maximum model length is 10864.",
        "serve.max_model_len=10864",
    ),
    (
        "kv-below-context",
        "ValueError: To serve at least one request with the model's max seq len (4096), (0.14 GiB KV cache is needed, which is larger than "
        "the available KV cache memory (0.01 GiB).",
        "one request of 4096 tokens",
    ),
    (
        "no-kv-room",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        "raise serve.gpu_memory_utilization",
    ),
    (
        "gpu-oom",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 298.00 MiB. GPU 0 has a total capacity of 5.77 GiB",
        "serve.max_num_seqs",
    ),
    (
        "context-too-long",
        "Value error, User-specified max_model_len (65536) is greater than the derived max_model_len (max_position_embeddings=8192.0 or "
        "model_max_length=None in model's config.json).",
        "serve.max_model_len=8192 or less",
    ),
    (
        "context-too-long",
        "Value error, User-specified max_model_len 65536 is greater than the derived maximum",
        "lower serve.max_model_len",
    ),
    (
        "bf16-on-turing",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has 7.5.",
        "serve.dtype=float16",
    ),
    (
        "quantization-unsupported",
        "ValueError: The quantization method awq_marlin is not supported for the current GPU. Minimum capability: 80. Current: 75.",
        "GPTQ",
    ),
    (
        "architecture-unknown",
        "Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys([...])",
        "['FooForCausalLM']",
    ),
    (
        "gated",
        "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct/resolve/main/config.json.",
        "HF_TOKEN",
    ),
    ("repo-not-found", "OSError: Invalid repository ID or local directory specified: 'models/nowhere'", "download-model"),
    ("shm-full", "OSError: Insufficient space in /dev/shm for shared memory buffer", "--shm-size"),
    ("disk-full", "OSError: [Errno 28] No space left on device: '/home/ayse/.cache/vllm'", "free some disk space"),
    ("port-taken", "OSError: [Errno 98] Address already in use", "serve.port"),
    ("no-python-headers", "/tmp/x/main.cpp:1:10: fatal error: Python.h: No such file or directory", "python3-dev"),
    ("no-compiler", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.", "g++"),
    ("bad-argument", "api_server.py: error: unrecognized arguments: --no-such-flag", "unrecognized arguments: --no-such-flag"),
]
OTHER_TEXTS = [
    ("free-ram", "ValueError: Available memory on node 0 (1.2/7.8 GiB) allocation is less than requested memory for kv (4.0 GiB)"),
    ("gpu-oom", "RuntimeError: Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization"),
    ("context-too-long", "User-specified max_model_len (9000) is greater than the derived max_model_len (8192 or sliding_window=None)"),
    ("repo-not-found", "401 Client Error. Repository Not Found for url: https://huggingface.co/api/models/no/such."),
    ("disk-full", "UserWarning: Not enough free disk space to download the file. The expected file size is: 5000.00 MB."),
    (
        "no-compiler",
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
    ),
]


def log_of(line: str) -> str:
    """Return a log with a start, the telling line in a traceback, and the wrapper that hides it."""
    start = f"{API}INFO 11-23 13:40:01 [api_server.py:1987] vLLM API server version 0.32.0\n"
    return f"{start}{CORE}EngineCore failed to start.\n{CORE}Traceback (most recent call last):\n{CORE}{line}\n{API}Traceback{WRAPPER}"


@pytest.mark.parametrize(("name", "line", "told"), LOGS, ids=[f"{number}-{row[0]}" for number, row in enumerate(LOGS)])
def test_cause_is_found_with_its_figures_filled_in(name: str, line: str, told: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    assert found.name == name
    assert told in f"{found.says}\n{found.fix}"
    assert "{" not in found.says + found.fix


@pytest.mark.parametrize(("name", "line"), OTHER_TEXTS)
def test_other_text_of_the_same_cause_is_found(name: str, line: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    assert found.name == name


def test_every_row_is_covered_in_order() -> None:
    assert [name for name, _, _ in LOGS] == [cause.name for cause in CAUSES]


@pytest.mark.parametrize(("number", "line"), list(enumerate(line for _, line, _ in LOGS)))
def test_each_log_is_told_by_its_own_row(number: int, line: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    own = diagnose_by_row(number, line)
    assert (found.says, found.fix) == own


def diagnose_by_row(number: int, line: str) -> tuple[str, str]:
    import re

    cause = CAUSES[number]
    match = re.search(cause.text, line)
    assert match, "the row's own text does not match its log"
    return cause.says.format(*match.groups()), cause.fix.format(*match.groups())


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
