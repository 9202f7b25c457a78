"""The resolution of settings that `auto` leaves to the machine."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pipeline.config.schema import ServeConfig
from pipeline.gpu.host import Host
from pipeline.gpu.nvml import UNIFIED_SHARE, Gpu
from pipeline.vllm.demand import COMPILATION, arguments
from pipeline.vllm.plan import DEFAULT_UTILIZATION
from pipeline.vllm.releases import DEFAULT_SHARE, FLASHINFER, SAMPLER, STARTUP_PLAN, UNPINNED
from pipeline.vllm.sets import CPU_SET

# With more cores vLLM's binding of threads to them should outweigh the cost of a worker process; measured on 2 cores only.
MOST_UNBOUND_CORES = 4


def settle(
    settings: ServeConfig,
    host: Host,
    distribution: str,
    versions: Mapping[str, str] = MappingProxyType({}),
    gpus: Sequence[Gpu] = (),
) -> ServeConfig:
    """Return the settings with `auto` resolved for this host, by the measurements in benchmarks/README.md.

    `versions` are those of the packages in the server's environment, `gpus` the visible devices.
    """
    on_cpu = distribution == CPU_SET.distribution
    eager, executor = settings.enforce_eager, settings.distributed_executor_backend
    alone = settings.world_size == settings.data_parallel_size == 1
    if eager == "auto":
        eager = on_cpu and "avx512_vnni" not in host.vector
    if executor == "auto" and on_cpu and alone and host.physical_cores <= MOST_UNBOUND_CORES:
        executor = "uni"
    # Without the first variable vLLM overrides the executor on CPUs; with it, the number of threads is ours to set.
    threads = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(host.physical_cores)}
    share = settings.gpu_memory_utilization
    if share is None and not on_cpu and not DEFAULT_SHARE.holds_in(release(versions)):
        share = DEFAULT_UTILIZATION
    if not on_cpu and any(gpu.unified for gpu in gpus):
        share = min(share or DEFAULT_UTILIZATION, UNIFIED_SHARE)
    words = settings.extra_args if on_cpu else (*settings.extra_args, *attention(settings, release(versions), gpus))
    on_gpu = {**quick_start(versions, alone), **(under_wsl(versions) if host.wsl else {})}
    env = {**({} if on_cpu else on_gpu), **(threads if on_cpu and executor == "uni" else {}), **settings.env}
    if not on_cpu and settings.tensor_parallel_size > 1 and KERNELS not in versions:
        env = {ALL_REDUCE: "0", **env}
        words = unfused(words) if env[ALL_REDUCE] == "0" else words
    changed = {"enforce_eager": eager, "distributed_executor_backend": executor, "gpu_memory_utilization": share}
    return settings.model_copy(update={**changed, "env": env, "extra_args": words})


ATTENTION = "--attention-backend"
KERNELS = "flashinfer-jit-cache"  # FlashInfer's precompiled kernels
# Tensor parallelism with vLLM's own all-reduce, or NCCL's where that cannot be used: FlashInfer's is compiled for two minutes of a start
# (vllm/distributed/device_communicators/flashinfer_all_reduce.py, 0.33), and its workspace needs NVLink multicast. Without it the pass
# that fuses all-reduce and norm must go too, since it makes the same workspace (compilation/passes/fusion/allreduce_rms_fusion.py).
ALL_REDUCE = "VLLM_ALLREDUCE_USE_FLASHINFER"
FUSION = "fuse_allreduce_rms"


def unfused(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return vLLM's arguments without the fusion of all-reduce and norm; as they are where they already decide about its passes."""
    for at, word in enumerate(words):
        name, equals, text = word.partition("=")
        name = name.replace("_", "-")
        if name == "--config" or name.startswith((f"{COMPILATION}.", "-cc.")):  # vLLM does not merge these with the JSON form
            return words
        if name in (COMPILATION, "-cc"):
            try:
                config = json.loads(text if equals else words[at + 1])
                passes = {FUSION: False, **(config.get("pass_config") or {})}
            except (ValueError, IndexError, AttributeError, TypeError):  # vLLM says what is wrong with it
                return words
            merged = json.dumps({**config, "pass_config": passes}, separators=(",", ":"))
            return (*words[:at], f"{word.partition('=')[0]}={merged}", *words[at + (1 if equals else 2) :])
    return (*words, f'{COMPILATION}={{"pass_config":{{"{FUSION}":false}}}}')


def release(versions: Mapping[str, str]) -> str:
    """Return the version of vLLM among those of an environment's packages; empty where it is not known."""
    return versions.get("vllm", "")


def quick_start(versions: Mapping[str, str], alone: bool = True) -> dict[str, str]:
    """Return the variables that save a server on a GPU minutes at its first start, and seconds at later ones.

    `versions` are those of the packages in the server's environment; `alone` means that one device has the whole model.
    """
    vllm = release(versions)
    return {
        # Compiling FlashInfer's sampler takes minutes of the first start, unless its kernels are installed as a package.
        **({} if KERNELS in versions or not SAMPLER.holds_in(vllm) else {"VLLM_USE_FLASHINFER_SAMPLER": "0"}),
        # The engine is forked from the API server, which has already imported everything; vLLM itself starts a new process
        # where a fork is impossible: where CUDA is in use, and in WSL.
        **({"VLLM_WORKER_MULTIPROC_METHOD": "fork"} if alone else {}),
        # A later start reuses the size of the KV cache that the first one measured.
        **({"VLLM_ENABLE_STARTUP_PLAN": "1"} if STARTUP_PLAN.holds_in(vllm) else {}),
    }


def attention(settings: ServeConfig, version: str, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Return the argument that keeps a release off FlashInfer's attention where its set cannot compile it."""
    compiled = any(gpu.compute_capability == "7.5" or gpu.compute_capability.startswith("10.") for gpu in gpus)
    if FLASHINFER.holds_in(version) or not compiled or ATTENTION in arguments(settings.extra_args):
        return ()
    return (f"{ATTENTION}=TRITON_ATTN",)


def under_wsl(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without which this vLLM does not start under WSL2, where it pins no memory."""
    return {} if UNPINNED.holds_in(release(versions)) else {"VLLM_USE_V2_MODEL_RUNNER": "0"}
