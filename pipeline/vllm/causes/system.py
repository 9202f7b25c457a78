"""Causes of death: shared memory, disk and network."""

from pipeline.vllm.causes.cause import ENDED, QUOTE, Cause

OF_SYSTEM = (
    Cause(
        "shm-full",
        r"Insufficient space in /dev/shm for|creating shared memory segment /dev/shm/|No space left on device: '/dev/shm"
        r"|unable to (?:write to file </torch_|allocate shared memory)|posix_fallocate failed|shared memory segment /dev/shm/nccl-"
        "|Fatal Python error: Bus error"
        f"|{ENDED.format('-7')}",
        "/dev/shm is too small",
        "give the container --shm-size=2g, or free /dev/shm",
    ),
    Cause(
        "disk-full",
        r"\[Errno 28\] No space left on device|Not enough free disk space to download the file",
        "the disk is full",
        "free some disk space",
    ),
    Cause(
        "port-taken",
        r"\[Errno 98\] |address already in use|EADDRINUSE",
        "the port was taken while the server loaded",
        "set another serve.port",
    ),
    Cause(
        "not-permitted",
        r"PermissionError: \[Errno 13\] Permission denied: '([^'\n]+)'",
        "{0} must not be read or written",
        'make it yours: sudo chown -R "$USER" on it, or name another folder (HF_HOME, VLLM_CACHE_ROOT in serve.env)',
    ),
    Cause(
        "too-many-files",
        r"\[Errno 24\] Too many open files",
        "the server may open too few files",
        "raise the limit where you start it: ulimit -n 65536",
    ),
    Cause(
        "nodes-apart",
        rf"Dist(?:Network|Store)Error: ({QUOTE})",
        "the server's processes do not reach each other: {0}",
        "serve.master_addr and its port must be reachable from every node; VLLM_HOST_IP in serve.env names a node's own address",
    ),
    Cause(
        "nccl",
        rf"NCCL error[^\n]*(?:\n[^\n]*){{0,2}}?\nLast error:\s*\n({QUOTE})",
        "the GPUs cannot talk to each other (NCCL: {0})",
        "--set serve.env.NCCL_DEBUG=INFO makes NCCL tell more; with one GPU set serve.tensor_parallel_size=1",
    ),
    Cause(
        "nccl",
        rf"NCCL error[^\n]*?: ({QUOTE})",
        "the GPUs cannot talk to each other (NCCL: {0})",
        "--set serve.env.NCCL_DEBUG=INFO makes NCCL tell more; with one GPU set serve.tensor_parallel_size=1",
    ),
)
