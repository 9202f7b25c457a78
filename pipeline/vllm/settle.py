"""The resolution of settings that `auto` leaves to the machine."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from pipeline.config.schema import ServeConfig
from pipeline.gpu.host import Host
from pipeline.vllm.demand import COMPILATION
from pipeline.vllm.sets import CPU_SET

# With more cores vLLM's binding of threads to them should outweigh the cost of a worker process; measured on 2 cores only.
MOST_UNBOUND_CORES = 4


def settle(settings: ServeConfig, host: Host, distribution: str, versions: Mapping[str, str] = MappingProxyType({})) -> ServeConfig:
    """Return the settings with `auto` resolved for this host, by the measurements in benchmarks/README.md.

    `versions` are those of the packages in the server's environment.
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
    env = {**({} if on_cpu else quick_start(versions, alone)), **(threads if on_cpu and executor == "uni" else {}), **settings.env}
    arguments = settings.extra_args
    if not on_cpu and settings.tensor_parallel_size > 1 and KERNELS not in versions:
        env = {ALL_REDUCE: "0", **env}
        arguments = unfused(arguments) if env[ALL_REDUCE] == "0" else arguments
    update = {"enforce_eager": eager, "distributed_executor_backend": executor, "env": env, "extra_args": arguments}
    return settings.model_copy(update=update)


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


def quick_start(versions: Mapping[str, str], alone: bool = True) -> dict[str, str]:
    """Return the variables that save a server on a GPU minutes at its first start, and seconds at later ones.

    `versions` are those of the packages in the server's environment; `alone` means that one device has the whole model.
    """
    return {
        # Compiling FlashInfer's sampler takes minutes of the first start, unless its kernels are installed as a package.
        **({} if KERNELS in versions else {"VLLM_USE_FLASHINFER_SAMPLER": "0"}),
        # The engine is forked from the API server, which has already imported everything; vLLM itself starts a new process
        # where a fork is impossible: where CUDA is in use, and in WSL.
        **({"VLLM_WORKER_MULTIPROC_METHOD": "fork"} if alone else {}),
        # A later start reuses the size of the KV cache that the first one measured.
        "VLLM_ENABLE_STARTUP_PLAN": "1",
    }
