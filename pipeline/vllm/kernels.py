"""The kernels that vLLM compiles while it serves, by its log. Pure: text in, names out."""

import re

# From vLLM 0.33's utils/jit_monitor.py; each worker process logs it once per kernel.
ON_CUDA = "device_config=cuda"  # in the engine's first line, in the releases of both sets
ACTIVE = "Kernel JIT monitor activated"
COMPILED = re.compile(r"JIT compilation during inference: (.+?)(?: \(.*\))?\. This causes a latency spike")


# Names go into the report, so that anything unexpected in a log is replaced or cut.
NOT_A_NAME, LONGEST_NAME = re.compile(r"[^\w.:-]"), 100


def compiles_on_demand(log: str) -> bool:
    """Tell whether the server compiles kernels when a request first needs them: on a GPU, whether or not it says so."""
    return ON_CUDA in log or is_monitored(log)


def is_monitored(log: str) -> bool:
    """Tell whether the server watched for kernels compiled after its start."""
    return ACTIVE in log


def compiled(log: str) -> list[str]:
    """Return the names of the kernels that were compiled while requests waited, each once, in the order of the log."""
    return list(dict.fromkeys(NOT_A_NAME.sub("?", name)[:LONGEST_NAME] for name in COMPILED.findall(log)))
