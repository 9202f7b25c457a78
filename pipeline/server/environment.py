"""The environment variables that every program of venv-vllm runs with."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.config import ENVIRONMENT_PREFIX

# Inherited settings that would bend the server's own Python, secrets that it does not need, and a key that our client
# does not send.
DROPPED = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "VLLM_API_KEY",
)


def base_environment(inherited: Mapping[str, str], cache: Path) -> dict[str, str]:
    """Return `inherited` without what harms, without telemetry and hub, and with the caches below `cache`."""
    kept = {k: v for k, v in inherited.items() if k not in DROPPED and not k.startswith(ENVIRONMENT_PREFIX)}
    return {
        **kept,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts; CUDA's own order begins with what it guesses to be the fastest
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a start that hangs is aborted and then tells where it stood
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
