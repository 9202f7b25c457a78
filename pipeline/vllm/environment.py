"""The environment variables that every program of venv-vllm runs with."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.layers import ENVIRONMENT_PREFIX
from pipeline.vllm.toolkit import toolkit_environment

API_KEY = "VLLM_API_KEY"  # not an argument, which every user of the machine could read
# The number of a server's share of a node that cells of a sweep share. Each share has caches of its own, which the cells there use one
# after the other: Triton, inductor, vLLM and FlashInfer write to them in mid-run. The first has the project's.
SLOT = "VLLM_POC_SLOT"
# Variables that would alter the server's Python, secrets that it does not need, and a key that our client does not send.
NOT_INHERITED = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    API_KEY,
    SLOT,
)

# The cache folder of each library, below ours.
CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
    "HF_HOME": "huggingface",
    "XDG_CACHE_HOME": "other",
}


def base_environment(inherited: Mapping[str, str], cache: Path, python: Path) -> dict[str, str]:
    """Return `inherited` as if `python`'s environment were active, without harmful variables, telemetry and hub; caches are in `cache`."""
    cache = cache / "slots" / inherited[SLOT] if inherited.get(SLOT) else cache
    variables = {k: v for k, v in inherited.items() if k not in NOT_INHERITED and not k.startswith(ENVIRONMENT_PREFIX)}
    return {
        **variables,
        "PATH": os.pathsep.join(filter(None, (str(python.parent), inherited.get("PATH")))),  # programs installed by packages, such as ninja
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order of nvidia-smi; CUDA's own begins with the device that it guesses to be the fastest
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a start that hangs is aborted, and then writes its stacks
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **{name: str(cache / folder) for name, folder in CACHES.items()},
        **toolkit_environment(inherited, python, cache),
    }


def server_environment(
    own: Mapping[str, str], inherited: Mapping[str, str], cache: Path, python: Path, api_key: str | None = None
) -> dict[str, str]:
    """Return the server's environment: `base_environment`, overridden by the server's `own` variables, and the API key."""
    return {**base_environment(inherited, cache, python), **own, **({API_KEY: api_key} if api_key else {})}
