"""The environment variable that makes a server's answers independent of its other requests, by device. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.gpu.nvml import Gpu
from pipeline.message import _
from pipeline.vllm.limits import BATCH_INVARIANCE
from pipeline.vllm.sets import CPU_SET, as_numbers

LEAST_CAPABILITY = BATCH_INVARIANCE.least


@dataclass(frozen=True)
class Remedy:
    """A variable of the server's environment, its value, and why it helps."""

    variable: str
    value: str
    why: str

    def in_force(self, environment: Mapping[str, str]) -> bool:
        """Tell whether a server with this environment has the remedy."""
        return environment.get(self.variable) == self.value

    def __str__(self) -> str:
        return f"{self.variable}={self.value}"


@dataclass(frozen=True)
class NoRemedy:
    """The reason why there is no remedy."""

    reason: str


SPLIT_KV_OFF = Remedy(
    "VLLM_CPU_ATTN_SPLIT_KV", "0", _("vLLM splits attention over the KV cache by what else is running, which changes the order of its sums")
)
BATCH_INVARIANT = Remedy("VLLM_BATCH_INVARIANT", "1", _("vLLM then takes kernels whose sums do not depend on the size of the batch"))


def remedy_for(distribution: str, gpus: Sequence[Gpu], attached: str | None = None) -> Remedy | NoRemedy:
    """Return the remedy for a server of this distribution on the first of these devices."""
    if attached:
        return NoRemedy(_("the server at {address} is not ours to start with another environment", address=attached))
    if distribution == CPU_SET.distribution or not gpus:
        return SPLIT_KV_OFF
    gpu = gpus[0]
    if as_numbers(gpu.compute_capability) >= LEAST_CAPABILITY:
        return BATCH_INVARIANT
    least = ".".join(map(str, LEAST_CAPABILITY))
    values = {"name": f"{BATCH_INVARIANT}", "value": least, "reason": gpu.name, "target": gpu.compute_capability}
    return NoRemedy(_("{name} needs compute capability {value}, and {reason} has {target}", **values))
