"""What a server's log says about why it died. Data first: one row per cause, most telling first."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A cause of death: its name, the text that shows it, and what a person can do; groups of `text` fill {0}, {1}."""

    name: str
    text: str
    says: str
    fix: str


# Texts as they stand in vLLM 0.32's source; those of 0.33 and 0.19 without a device as they were printed.
CAUSES = (
    Cause(
        "driver-too-old",
        r"The NVIDIA driver on your system is too old \(found version (\d+)\)",
        "the NVIDIA driver is too old for this vLLM (it offers CUDA {0})",
        "set install.set=vllm-cuda12, or update the driver to 580 or newer",
    ),
    Cause(
        "no-device",
        r"Failed to infer device type",
        "vLLM finds no device that it can run on",
        "run `./inv check-gpu`; without a GPU use --profile cpu with install.set at auto, which installs the CPU build",
    ),
    Cause(
        "free-vram",
        r"Free memory on device .*?on startup is less than desired GPU memory utilization",
        "other programs hold too much of the GPU's memory",
        "close them (`invoke check-gpu` lists them), or lower serve.gpu_memory_utilization",
    ),
    Cause(
        "free-ram",
        r"Available memory on node .* (?:is less than desired CPU memory utilization|allocation is less than requested memory for kv)",
        "too little free main memory",
        "close other programs, or lower VLLM_CPU_KVCACHE_SPACE in serve.env",
    ),
    Cause(
        "kv-below-context",
        r"estimated maximum model length is (\d+)",
        "the KV cache is too small for serve.max_model_len",
        "set serve.max_model_len={0}, or give it more memory",
    ),
    Cause(
        "kv-below-context",
        r"To serve at least one request with the model's max seq len \((\d+)\)",
        "the KV cache is too small for one request of {0} tokens",
        "lower serve.max_model_len, or give it more memory",
    ),
    Cause(
        "no-kv-room",
        r"No available memory for the cache blocks",
        "the weights leave no memory for the KV cache",
        "raise serve.gpu_memory_utilization, or take a smaller model (--profile qwen2.5-1.5b)",
    ),
    Cause(
        "gpu-oom",
        r"CUDA out of memory. Tried to allocate|Failed to load model - not enough GPU memory",
        "the GPU ran out of memory",
        "take a smaller model (--profile qwen2.5-1.5b), or lower serve.max_num_seqs and serve.max_model_len",
    ),
    Cause(
        "context-too-long",
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \((?:[a-z_]+=)?(\d+)",
        "serve.max_model_len {0} is more than the model's {1}",
        "set serve.max_model_len={1} or less",
    ),
    Cause(
        "context-too-long",
        r"User-specified max_model_len .* is greater than the derived",
        "serve.max_model_len is more than the model has",
        "lower serve.max_model_len",
    ),
    Cause(
        "bf16-on-turing",
        r"Bfloat16 is only supported on GPUs with compute capability of at least 8.0",
        "this GPU cannot compute in bfloat16",
        "set serve.dtype=float16",
    ),
    Cause(
        "quantization-unsupported",
        r"is not supported for the current GPU. Minimum capability",
        "this GPU is too old for the model's quantisation",
        "take an unquantised or GPTQ model",
    ),
    Cause(
        "architecture-unknown",
        r"Model architectures (\[.*?\]) are not supported for now",
        "this vLLM does not know the architecture {0}",
        "take another model, or a newer vLLM (install.set)",
    ),
    Cause("gated", r"Cannot access gated repo for url", "the model is gated", "accept its licence on the hub and set HF_TOKEN"),
    Cause(
        "repo-not-found",
        r"Invalid repository ID or local directory specified:|Repository Not Found for url",
        "the model's folder or repository is not there",
        "run `invoke download-model`",
    ),
    Cause(
        "shm-full",
        r"Insufficient space in /dev/shm for",
        "/dev/shm is too small",
        "give the container --shm-size=2g, or free /dev/shm",
    ),
    Cause(
        "disk-full",
        r"\[Errno 28\] No space left on device|Not enough free disk space to download the file",
        "the disk is full",
        "free some disk space",
    ),
    Cause("port-taken", r"\[Errno 98\] Address already in use", "the port was taken while the server loaded", "set another serve.port"),
    Cause(
        "no-python-headers",
        r"fatal error: Python.h",
        "the Python headers are missing, which torch.compile needs",
        "install them (Debian, Ubuntu: sudo apt install python3-dev), or set serve.enforce_eager to true",
    ),
    Cause(
        "no-compiler",
        r"Failed to find C compiler|No working C\+\+ compiler found|InvalidCxxCompiler",
        "no C/C++ compiler, which torch.compile needs",
        "install one (Debian, Ubuntu: sudo apt install g++), or set serve.enforce_eager to true",
    ),
    Cause(
        "bad-argument",
        r"api_server\.py: error: (.+)",
        "vLLM does not take these arguments: {0}",
        "check serve.extra_args",
    ),
)


# How an end from outside looks, most telling first, where no error tells more; seen in vLLM 0.32's log after each signal.
KILLED = "was killed (SIGKILL: by hand, or by the kernel for lack of memory)"
ENDINGS = (
    (r"Worker proc \S+ died unexpectedly \(exit code: -9\)", f"its worker {KILLED}"),
    (r"Worker proc \S+ died unexpectedly", "its worker ended unexpectedly"),
    (r"\[shutdown\] API server: shutdown triggered", "it was asked to end (SIGTERM), and not by us"),
    (r"engine core exited unexpectedly", f"its engine {KILLED}"),
)
# Errors that only follow from another one.
WRAPPERS = re.compile(
    r"initialization failed|EngineDeadError|cannot schedule new futures after shutdown|Executor failed|RuntimeError: cancelled$"
)


@dataclass(frozen=True)
class Diagnosis:
    """The cause by name, in words, and the fix."""

    name: str
    says: str
    fix: str


def diagnose(log: str) -> Diagnosis | None:
    """Return the first cause whose text stands in the log, or None."""
    for cause in CAUSES:
        match = re.search(cause.text, log)
        if match:
            groups = match.groups()
            return Diagnosis(cause.name, cause.says.format(*groups), cause.fix.format(*groups))
    return None


def last_error(log: str) -> str:
    """Return the log's last line that names an exception, for a cause that the table does not know; else how it was ended."""
    shouted = [line for line in log.splitlines() if not re.search(r"\b(DEBUG|INFO|WARNING) \d\d-\d\d ", line)]
    lines = [line for line in shouted if re.search(r"\b[A-Z]\w*(Error|Exception)\b", line)]
    told = [line for line in lines if not re.search(r"\braise \w", line)] or lines  # a traceback also shows the source
    telling = [line for line in told if not WRAPPERS.search(line)]
    if not telling:
        ending = next((says for text, says in ENDINGS if re.search(text, log)), "")
        if ending or not told:
            return ending
    return re.sub(r"^\(.*?\) (?:[A-Z]+ [\d-]+ [\d:]+ \[.*?\] )?", "", (telling or told)[-1]).strip()[:300]
