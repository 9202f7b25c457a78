"""The server's devices by number, where vLLM cannot read their UUIDs."""

from collections.abc import Mapping, Sequence

from pipeline.config.schema import CUDA_DEVICES, ServeConfig
from pipeline.errors import ServerError
from pipeline.gpu import nvml
from pipeline.gpu.nvml import Gpu
from pipeline.vllm.releases import UUIDS


def by_number(settings: ServeConfig, inherited: Mapping[str, str], gpus: Sequence[Gpu], version: str) -> ServeConfig:
    """Return the settings with the visible devices' numbers, if the choice names UUIDs that this vLLM cannot read.

    `gpus` are the visible devices. Every release mistakes an instance's number on its GPU for a GPU's; the GPU's own number
    gives CUDA the first of its instances. ServerError for another instance.
    """
    choice = settings.env.get(CUDA_DEVICES, inherited.get(CUDA_DEVICES, ""))
    if not gpus or all(entry.strip().isdecimal() for entry in choice.split(",") if entry.strip()):
        return settings
    instances = [gpu for gpu in gpus if gpu.mig]
    if not instances and UUIDS.holds_in(version):
        return settings
    for gpu in instances:
        first = nvml.read(str(gpu.index)).gpus
        if first and first[0].uuid != gpu.uuid:
            raise ServerError(
                f"vLLM finds only the first instance of GPU {gpu.index}, {first[0].uuid}, and {CUDA_DEVICES} names {gpu.uuid}",
                "choose the first one, or show a container only this one: `docker run --gpus device=UUID`",
            )
    numbers = ",".join(str(gpu.index) for gpu in gpus)
    return settings.model_copy(update={"env": {**settings.env, CUDA_DEVICES: numbers}})
