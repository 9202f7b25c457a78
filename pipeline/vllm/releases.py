"""What differs between the vLLM releases of the sets, as far as the pipeline depends on it: one row per difference.

Read in the releases' own sources: those of both sets for GPUs, and between them of 0.20.0, 0.24.0, 0.28.0, 0.29.0, 0.30.0 and
0.32.0. `since` is the oldest of these that has the newer behaviour; a release between two of them counts as the older one.
What the pipeline uses and does not stand here is the same in both: every flag of the command line, the `vllm` command, the
names of the metrics, `return_token_ids`, the JSON of the structured outputs, and the start method of the worker processes.
"""

import re
from dataclasses import dataclass

Version = tuple[int, ...]
NEWEST = (10**6,)


def numbers_of(version: str) -> Version:
    """Return the numbers of a version; of one without numbers, as of a build from a branch, those of the newest."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(number or 0) for number in found.groups()) if found else NEWEST


@dataclass(frozen=True)
class Difference:
    """A difference: what newer releases do, the first one that does, what the pipeline does before it, and where it was read."""

    what: str
    since: Version
    before: str
    source: str

    def holds_in(self, version: str) -> bool:
        """Tell whether this release does it; one whose version cannot be read counts as the newest."""
        return numbers_of(version) >= self.since


DEFAULT_SHARE = Difference(
    "its default share of the GPU's memory is 0.92",
    (0, 20, 0),
    "0.9: the pipeline asks for 0.92, on which its plan counts",
    "config/cache.py, gpu_memory_utilization",
)
GRAPHS_IN_SHARE = Difference(
    "it takes an estimate of the CUDA graphs from the KV cache",
    (0, 20, 0),
    "the graphs come on top, and the KV cache is larger by them; both are within the plan's error",
    "envs.py, VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS",
)
SAMPLER = Difference(
    "FlashInfer's sampler is on by default",
    (0, 24, 0),
    "it is off, and nothing needs to turn it off",
    "v1/sample/ops/topk_topp_sampler.py",
)
SECOND_RUNNER = Difference(
    "the second model runner is the default, and its log says `Loading model from scratch`",
    (0, 24, 0),
    "the first one is, and says `Starting to load model`: both begin the phase `weights`",
    "config/vllm.py, use_v2_model_runner; v1/worker/gpu/model_runner.py",
)
UUIDS = Difference(
    "CUDA_VISIBLE_DEVICES may hold UUIDs of whole GPUs",
    (0, 24, 0),
    "it is read as integers: the server gets the devices' numbers",
    "platforms/cuda.py, device_control_id_to_physical_device_id; before it platforms/interface.py, device_id_to_physical_device_id",
)
KERNEL_MONITOR = Difference(
    "its log names the kernels that it compiles while it serves",
    (0, 24, 0),
    "the report does not name them; the requests that warm a server up are sent all the same",
    "utils/jit_monitor.py",
)
STARTUP_PLAN = Difference(
    "VLLM_ENABLE_STARTUP_PLAN=1 reuses the measured size of the KV cache",
    (0, 28, 0),
    "the variable is unknown, and is not set",
    "envs.py",
)
UNPINNED = Difference(
    "the second model runner works without pinned memory, which is off under WSL2",
    (0, 30, 0),
    "it dies of `UVA is not available`: under WSL2 VLLM_USE_V2_MODEL_RUNNER=0 keeps the first one",
    "v1/worker/gpu/buffer_utils.py, NonUvaBuffer",
)
FLASHINFER = Difference(
    "FlashInfer's attention is not taken on Turing, and what it compiles elsewhere is compiled by the set's own nvcc",
    (0, 33, 0),
    "it is taken on Turing and on compute capability 10, and the CUDA 12 set has no nvcc: there Triton's attention is asked for",
    "v1/attention/backends/flashinfer.py, supports_compute_capability; platforms/cuda.py, _get_backend_priorities",
)
