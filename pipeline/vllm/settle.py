"""What `auto` leaves to the machine, decided."""

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.config.schema import ServeConfig
from pipeline.gpu.host import Host
from pipeline.vllm.sets import CPU_SET

# From here on vLLM's binding of threads to cores should pay for a worker process of its own; measured on 2 cores only.
MOST_UNBOUND_CORES = 4


def settle(settings: ServeConfig, host: Host, distribution: str, versions: Mapping[str, str] = MappingProxyType({})) -> ServeConfig:
    """Return the settings with what `auto` leaves to the machine decided, as benchmarks/README.md found it to pay.

    `versions` are those of the packages of the server's environment.
    """
    on_cpu = distribution == CPU_SET.distribution
    eager, executor = settings.enforce_eager, settings.distributed_executor_backend
    alone = settings.world_size == settings.data_parallel_size == 1
    if eager == "auto":
        eager = on_cpu and "avx512_vnni" not in host.vector
    if executor == "auto" and on_cpu and alone and host.physical_cores <= MOST_UNBOUND_CORES:
        executor = "uni"
    # vLLM takes another executor for the CPU than the one asked for, unless this is set; it then leaves the threads to us.
    threads = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(host.physical_cores)}
    env = {**({} if on_cpu else quick_start(versions, alone)), **(threads if on_cpu and executor == "uni" else {}), **settings.env}
    return settings.model_copy(update={"enforce_eager": eager, "distributed_executor_backend": executor, "env": env})


KERNELS = "flashinfer-jit-cache"  # FlashInfer's kernels, compiled


def quick_start(versions: Mapping[str, str], alone: bool = True) -> dict[str, str]:
    """Return the variables that spare a server on a GPU minutes of its first start, and seconds of later ones.

    `versions` are those of the packages of the server's environment; `alone` tells that one device has the whole model.
    """
    return {
        # FlashInfer's sampler is compiled for minutes at the first start, unless its kernels came as a package.
        **({} if KERNELS in versions else {"VLLM_USE_FLASHINFER_SAMPLER": "0"}),
        # The engine comes out of the API server, which has imported everything already; vLLM itself takes a new process
        # where that cannot be: where CUDA is in use, and in WSL.
        **({"VLLM_WORKER_MULTIPROC_METHOD": "fork"} if alone else {}),
        # A later start takes the size of the KV cache that the first one found, instead of measuring it again.
        "VLLM_ENABLE_STARTUP_PLAN": "1",
    }
