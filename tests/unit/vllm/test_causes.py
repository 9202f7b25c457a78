"""Causes of death, from logs as vLLM 0.32 and 0.33 write them: a log for each row of the table."""

import json
import re
from pathlib import Path

import pytest

from pipeline.vllm.causes.memory import OF_MEMORY
from pipeline.vllm.causes.table import CAUSES
from pipeline.vllm.diagnosis import diagnose
from pipeline.vllm.ladder import MEMORY_CAUSES
from tests.builders.logs import CORE, log_of

# One log per row of CAUSES, in that order: (name, telling lines, what the words or the fix must hold).
LOGS = [
    (
        "driver-too-old",
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
        "CUDA 12020",
    ),
    ("driver-too-old", "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version", "580 or newer"),
    (
        "driver-mismatch",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: "
        "system has unsupported display driver / cuda driver combination",
        "restart the machine",
    ),
    (
        "driver-mismatch",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on non supported HW",
        "LD_LIBRARY_PATH",
    ),
    (
        "driver-not-ready",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "fabricmanager",
    ),
    (
        "driver-not-ready",
        "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
        "CUDA_VISIBLE_DEVICES after program start.",
        "nvidia_uvm",
    ),
    ("no-driver", "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "nvidia-smi"),
    ("device-busy", "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", "check-gpu"),
    ("no-such-device", "torch.AcceleratorError: CUDA error: invalid device ordinal", "CUDA_VISIBLE_DEVICES"),
    (
        "no-such-device",
        "ValueError: invalid literal for int() with base 10: 'MIG-9f0c1d22-aaaa-bbbb-cccc-0123456789ab'",
        "(MIG-9f0c1d22-aaaa",
    ),
    (
        "too-few-devices",
        "  Value error, World size (4) is larger than the number of available GPUs (2) in this node. If this is intentional",
        "ask for 4 GPUs, and vLLM sees 2",
    ),
    ("too-few-devices", "AssertionError: DP adjusted local rank 3 is out of bounds.", "serve.data_parallel_size"),
    (
        "no-device",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
        "--profile cpu",
    ),
    ("no-device", "RuntimeError: No CUDA GPUs are available", "CUDA finds no GPU"),
    (
        "no-kernels",
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "vllm-cuda12 for an older",
    ),
    ("gpu-fault", "torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "failed on the GPU: an illegal memory"),
    ("no-pinned-memory", "RuntimeError: UVA is not available", "VLLM_WSL2_ENABLE_PIN_MEMORY=1"),
    ("driver-silent", "vllm.third_party.pynvml.NVMLError_NotSupported: Not Supported", "wsl --update"),
    (
        "free-vram",
        "ValueError: Free memory on device cuda:0 (2.11/5.77 GiB) on startup is less than desired GPU memory utilization (0.75, 4.33 GiB).",
        "serve.gpu_memory_utilization",
    ),
    (
        "vram-changed",
        "AssertionError: Error in memory profiling. Initial free memory 4.1 GiB, current free memory 4.9 GiB. This happens when",
        "start it again",
    ),
    (
        "free-ram",
        "ValueError: Available memory on node 0 (0.91/7.75 GiB) on startup is less than desired CPU memory utilization (0.4, 3.1 GiB).",
        "VLLM_CPU_KVCACHE_SPACE",
    ),
    ("free-ram", "OSError: [Errno 12] Cannot allocate memory", "main memory ran out"),
    (
        "kv-below-context",
        "ValueError: To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, which is larger "
        "than the available KV cache memory (0.58 GiB). Based on the available memory, the estimated maximum model length is 10864.",
        "serve.max_model_len=10864",
    ),
    (
        "kv-below-context",
        "ValueError: To serve at least one request with the model's max seq len (4096), (0.14 GiB KV cache is needed, which is larger than "
        "the available KV cache memory (0.01 GiB).",
        "one request of 4096 tokens",
    ),
    (
        "no-kv-room",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        "raise serve.gpu_memory_utilization",
    ),
    (
        "no-kv-room",
        "ValueError: The worker already uses 3.2 GiB (model weights and runtime), more than the 3.1 GiB of CPU memory reserved for it on "
        "node 0, leaving none for the KV cache. On the CPU backend, the flag controls the fraction of CPU memory reserved.",
        "VLLM_CPU_KVCACHE_SPACE",
    ),
    (
        "warm-up-oom",
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 292.00 MiB.\n{CORE}RuntimeError: CUDA out of memory occurred when "
        "warming up sampler with 128 dummy requests. Please try lowering `max_num_seqs`",
        "128 requests at once",
    ),
    (
        "gpu-oom",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 298.00 MiB. GPU 0 has a total capacity of 5.77 GiB",
        "serve.max_num_seqs",
    ),
    (
        "context-too-long",
        "  Value error, User-specified max_model_len (65536) is greater than the derived max_model_len (max_position_embeddings=8192.0 or "
        "model_max_length=None in model's config.json).",
        "serve.max_model_len=8192 or less",
    ),
    (
        "context-too-long",
        "  Value error, User-specified max_model_len 65536 is greater than the derived maximum",
        "lower serve.max_model_len",
    ),
    (
        "batch-too-small",
        "  Value error, max_num_batched_tokens (1024) is smaller than max_model_len (3072). This effectively limits the maximum",
        "serve.max_num_batched_tokens=3072 or more",
    ),
    (
        "batch-too-small",
        "  Value error, max_num_batched_tokens (8) must be greater than or equal to max_num_seqs (16).",
        "8 is less than serve.max_num_seqs 16",
    ),
    (
        "heads-do-not-divide",
        "  Value error, Total number of attention heads (9) must be divisible by tensor parallel size (2). [type=value_error]",
        "a number that divides 9",
    ),
    (
        "weights-do-not-divide",
        "ValueError: The output_size of gate's and up's weight = 320 is not divisible by weight quantization block_n = 128.",
        "blocks of 128",
    ),
    (
        "weights-do-not-divide",
        "ValueError: The input size is not aligned with the quantized weight shape. This can be caused by too large tensor parallel size.",
        "lower serve.tensor_parallel_size",
    ),
    ("parts-do-not-divide", "AssertionError: 14 is not divisible by 4", "a part of the model of 14 does not divide by 4"),
    (
        "bf16-on-turing",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has 7.5.",
        "serve.dtype=float16",
    ),
    (
        "dtype-unsupported",
        "  Value error, torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        "serve.dtype=float16",
    ),
    (
        "quantization-unsupported",
        "ValueError: The quantization method awq_marlin is not supported for the current GPU. Minimum capability: 80. Current: 75.",
        "GPTQ",
    ),
    ("quantization-unsupported", "  Value error, Unknown quantization method: foo4. Must be one of ['awq', 'gptq'].", "quantisation foo4"),
    (
        "quantization-mismatch",
        "  Value error, Quantization method specified in the model config (awq) does not match the quantization method specified in the "
        "`quantization` argument (gptq). [type=value_error]",
        "quantised with awq, and --quantization asks for gptq",
    ),
    (
        "attention-unsupported",
        "ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=80, dtype=torch.float16). Reasons: "
        "{FLASH_ATTN: [head_size not supported], TRITON_ATTN: [sink not supported]}.",
        "(head_size not supported)",
    ),
    (
        "attention-unsupported",
        "ValueError: Selected backend AttentionBackendEnum.FLASHINFER is not valid for this configuration. Reason: ['sink not supported']",
        "FLASHINFER does not run",
    ),
    ("attention-unsupported", "RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "too old for the attention backend"),
    (
        "architecture-unknown",
        "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys([...])",
        "['FooForCausalLM']",
    ),
    (
        "architecture-unknown",
        "  Value error, The checkpoint you are trying to load has model type `foo9` but Transformers does not recognize this architecture.",
        "model type foo9",
    ),
    (
        "own-code",
        "  Value error, The repository models/foo contains custom code which must be executed to correctly load the model.",
        "serve.trust_remote_code=true",
    ),
    (
        "config-unreadable",
        "  Value error, rope_scaling should have a 'rope_type' key [type=value_error, input_value=x]",
        ": rope_scaling should",
    ),
    (
        "config-unreadable",
        "OSError: It looks like the config file at 'models/foo/config.json' is not a valid JSON file.",
        "download-model --force",
    ),
    (
        "gated",
        "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.2-3B-Instruct/resolve/main/config.json.",
        "HF_TOKEN",
    ),
    ("repo-not-found", "OSError: Invalid repository ID or local directory specified: 'models/nowhere'", "download-model"),
    ("weights-no-safetensors", "safetensors_rust.SafetensorError: Error while deserializing header: header too large", "git lfs pull"),
    (
        "weights-cut",
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered",
        "download-model --force",
    ),
    ("weights-missing", "RuntimeError: Cannot find any model weights with `models/foo`", "download-model --force"),
    ("weights-missing", "ValueError: Following weights were not initialized from checkpoint: {'lm_head.weight'}", "lm_head.weight"),
    (
        "weights-of-another-form",
        "ValueError: There is no module or parameter named 'model.layers.0.mlp.w1' in LlamaForCausalLM",
        "of the form that config.json describes",
    ),
    (
        "chat-template-missing",
        "ValueError: The supplied chat template (my/template.jinja) appears path-like, but doesn't exist!",
        "chat template my/template.jinja is not there",
    ),
    (
        "tokenizer-unreadable",
        "OSError: Can't load tokenizer for 'models/foo'. If you were trying to load it from the hub",
        "tokenizer is missing",
    ),
    ("shm-full", "OSError: Insufficient space in /dev/shm for shared memory buffer", "--shm-size"),
    ("disk-full", "OSError: [Errno 28] No space left on device: '/home/ayse/.cache/vllm'", "free some disk space"),
    ("port-taken", "OSError: [Errno 98] Address already in use", "serve.port"),
    ("not-permitted", "PermissionError: [Errno 13] Permission denied: '/home/user/.cache/vllm'", "/home/user/.cache/vllm must not be"),
    ("too-many-files", "OSError: [Errno 24] Too many open files", "ulimit -n 65536"),
    (
        "nodes-apart",
        "torch.distributed.DistNetworkError: The client socket has timed out while trying to connect to (10.0.0.9, 29501).",
        "10.0.0.9",
    ),
    (
        "nccl",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error, NCCL version 2.28.9\n"
        f"{CORE}ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
        f"{CORE}Last error:\n{CORE}socketStartConnect: Connect to 10.0.0.9 failed",
        "NCCL: socketStartConnect",
    ),
    ("nccl", "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "NCCL_DEBUG=INFO"),
    ("no-ninja", "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", "ninja-build"),
    ("no-nvcc", "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "CUDA_HOME"),
    (
        "nvcc-too-old",
        f"RuntimeError: Ninja build failed. Ninja output:\n{CORE}nvcc fatal   : Unsupported gpu architecture 'compute_103a'",
        "compute_103a",
    ),
    (
        "nvcc-and-gcc",
        "host_config.h:151:2: error: #error -- unsupported GNU version! gcc versions later than 14 are not supported!",
        "gcc 14",
    ),
    ("compiler-killed", "g++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
    ("no-python-headers", "/tmp/x/main.cpp:1:10: fatal error: Python.h: No such file or directory", "python3-dev"),
    ("no-cuda-headers", "sampling.cuh:20:10: fatal error: curand_kernel.h: No such file or directory", "header curand_kernel.h"),
    ("no-headers", "/tmp/x/main.c:3:10: fatal error: stdio.h: No such file or directory", "header stdio.h"),
    ("no-compiler", "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.", "apt install gcc python3-dev"),
    (
        "no-compiler",
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
        "dnf install gcc-c++",
    ),
    ("no-library", "/usr/bin/ld: cannot find -lcudart: No such file or directory", "library -lcudart"),
    ("no-library", "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory", "venv-vllm"),
    (
        "system-too-old",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by vllm/_C.abi3.so)",
        "GLIBC_2.34",
    ),
    ("bad-argument", "api_server.py: error: unrecognized arguments: --no-such-flag", "unrecognized arguments: --no-such-flag"),
    ("bad-argument", "TypeError: Error: --enable-log-outputs requires --enable-log-requests", ": --enable-log-outputs requires"),
    (
        "bad-argument",
        "KeyError: 'invalid tool call parser: qwen9 (chose from { hermes,mistral })'",
        "no tool call parser of the name qwen9",
    ),
    ("package-missing", "ModuleNotFoundError: No module named 'mamba_ssm'", "missing in vLLM's environment: mamba_ssm"),
    (
        "libraries-apart",
        "ImportError: vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa",
        "undefined symbol _ZN3c104cuda9SetDeviceEa",
    ),
    ("driver-silent", "vllm.third_party.pynvml.NVMLError_GpuIsLost: GPU is lost", "NVML: GpuIsLost GPU is lost"),
    ("wrong-processor", "Fatal Python error: Illegal instruction", "newer processor"),
    ("killed", "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}", "dmesg"),
    ("crashed", "Fatal Python error: Segmentation fault", "another vLLM"),
]
OTHER_TEXTS = [
    ("driver-too-old", "torch.AcceleratorError: CUDA error: the provided PTX was compiled with an unsupported toolchain."),
    ("driver-too-old", "RuntimeError: Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain."),
    ("driver-mismatch", "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 500: named symbol not found"),
    ("no-such-device", "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 101: invalid device ordinal"),
    ("no-kernels", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ("gpu-fault", "torch.AcceleratorError: CUDA error: device-side assert triggered"),
    (
        "free-ram",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory: you tried to allocate 9",
    ),
    ("free-ram", "RuntimeError: unable to mmap 4976698672 bytes from file </m/model-1.safetensors>: Cannot allocate memory (12)"),
    (
        "kv-below-context",
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be stored in KV cache",
    ),
    ("gpu-oom", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ("gpu-oom", "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ("weights-do-not-divide", "ValueError: Weight input_size_per_partition=14784 is not divisible by group_size=128. This happens when"),
    (
        "weights-do-not-divide",
        "ValueError: Weight output_size_per_partition = 7396 is not divisible by  min_thread_n = 64. Consider reducing",
    ),
    ("weights-do-not-divide", "ValueError: Weight output_partition_size = 64 is not divisible by weight quantization block_n = 128."),
    ("parts-do-not-divide", "ValueError: Shared-expert intermediate size 1000 must be divisible by tensor-parallel size 16."),
    ("quantization-unsupported", "ValueError: type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e5',)"),
    ("config-unreadable", "OSError: models/foo does not appear to have a file named config.json."),
    ("config-unreadable", "  Value error, Unrecognized model in models/foo. Should have a `model_type` key in its config.json. [type=x]"),
    ("config-unreadable", "ValueError: Unknown RoPE scaling type longropes"),
    ("config-unreadable", "  Value error, `rope_scaling`'s factor field must be a float >= 1, got 0.5 [type=value_error]"),
    ("repo-not-found", "OSError: models/foo is not a local folder and is not a valid model identifier listed on the hub"),
    ("weights-missing", "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache"),
    (
        "weights-of-another-form",
        "AssertionError: Tried to load weights of size torch.Size([8, 4])to a parameter of size torch.Size([4, 4])",
    ),
    ("weights-cut", "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer"),
    ("weights-no-safetensors", "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
    ("tokenizer-unreadable", "ValueError: Tokenizer class Qwen9Tokenizer does not exist or is not currently imported."),
    ("tokenizer-unreadable", "Exception: data did not match any variant of untagged enum ModelWrapper at line 1251003 column 3"),
    ("shm-full", "RuntimeError: unable to write to file </torch_4242_1_0>: No space left on device (28)"),
    ("shm-full", "NCCL WARN Call to posix_fallocate failed : No space left on device"),
    ("port-taken", "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use"),
    (
        "port-taken",
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29501, code: -98, "
        "name: EADDRINUSE",
    ),
    ("bad-argument", "KeyError: \"Tool parser 'qwen9' not found.\""),
    ("bad-argument", "KeyError: \"Reasoning parser 'r9' not found. Available parsers: deepseek_r1, qwen3\""),
    ("bad-argument", "KeyError: 'invalid reasoning parser: r9 (chose from { deepseek_r1,qwen3 })'"),
    ("package-missing", "ImportError: Please install bitsandbytes>=0.49.2 via `pip install bitsandbytes>=0.49.2` to use it."),
    (
        "package-missing",
        "ImportError: This modeling file requires the following packages that were not found in your environment: flash_attn, einops. Run",
    ),
    ("driver-mismatch", "vllm.third_party.pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch"),
    ("no-driver", "AssertionError: libcuda.so cannot found!"),
    ("no-such-device", "ValueError: invalid literal for int() with base 10: 'GPU-9f0c1d22-aaaa'"),
    ("no-such-device", "ValueError: Non-integer device ID 'GPU-9f0c1d22-aaaa' is not supported by rocm."),
    ("too-few-devices", "AssertionError: local_rank 1 is out of bounds for the available devices"),
    ("free-vram", "ValueError: Free memory on device (2.1/6.0 GiB) on startup is less than desired GPU memory utilization (0.9, 5.4 GiB)."),
    ("free-ram", "ValueError: Available memory on node 0 (1.2/7.8 GiB) allocation is less than requested memory for kv (4.0 GiB)"),
    ("free-ram", "MemoryError"),
    ("kv-below-context", "ValueError: To serve at least one request with the models's max seq len (8192), (0.5 GiB KV cache is needed"),
    ("gpu-oom", "RuntimeError: Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization"),
    ("gpu-oom", "torch.AcceleratorError: CUDA error: out of memory"),
    ("gpu-oom", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ("context-too-long", "User-specified max_model_len (9000) is greater than the derived max_model_len (8192 or sliding_window=None)"),
    ("own-code", "ValueError: ... is not local. Please pass the argument `trust_remote_code=True` to allow custom code to be run."),
    ("repo-not-found", "401 Client Error. Repository Not Found for url: https://huggingface.co/api/models/no/such."),
    ("weights-missing", "FileNotFoundError: No such file or directory: models/foo/model-00002-of-00003.safetensors"),
    ("weights-cut", "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ("disk-full", "UserWarning: Not enough free disk space to download the file. The expected file size is: 5000.00 MB."),
    ("shm-full", "Error while creating shared memory segment /dev/shm/nccl-Qw12Er (size 9637888), error: No space left on device (28)"),
    ("shm-full", "Fatal Python error: Bus error"),
    ("no-nvcc", "/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found"),
    ("no-nvcc", "FileNotFoundError: [Errno 2] No such file or directory: '/opt/cuda/bin/nvcc'"),
    ("no-nvcc", "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root."),
    ("no-ninja", "RuntimeError: Ninja is required to load C++ extensions (pip install ninja to get it)"),
    ("nvcc-too-old", "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'"),
    ("compiler-killed", "nvcc error   : 'cicc' died due to signal 9 (Kill signal)"),
    ("no-python-headers", "main.c:1:10: fatal error: 'Python.h' file not found"),
    ("no-cuda-headers", "In file included from x.cu:1: cuda_fp16.h:4:10: fatal error: cuda/std/limits: No such file or directory"),
    ("no-headers", "main.c:1:10: fatal error: 'stdlib.h' file not found"),
    ("no-compiler", "gcc: fatal error: cannot execute 'cc1plus': execvp: No such file or directory"),
    ("no-compiler", "FileNotFoundError: [Errno 2] No such file or directory: 'g++'"),
    ("no-library", "/usr/bin/ld: cannot find -lcuda"),
    ("bad-argument", "vllm serve: error: argument --dtype: invalid choice: 'int3' (choose from 'auto', 'half')"),
    ("bad-argument", "vllm: error: unrecognized arguments: --no-such-flag"),
    ("bad-argument", "main.py serve: error: unrecognized arguments: --no-such-flag"),
    ("bad-argument", "headless.py: error: unrecognized arguments: --no-such-flag"),
    ("killed", "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP1': -9}"),
    ("killed", "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."),
    ("crashed", "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -11}"),
    ("wrong-processor", "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -4}"),
    (
        "no-compiler",
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
    ),
]


@pytest.mark.parametrize(("name", "line", "told"), LOGS, ids=[f"{number}-{row[0]}" for number, row in enumerate(LOGS)])
def test_cause_is_found_with_its_figures_filled_in(name: str, line: str, told: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    assert found.name == name
    assert told in f"{found.says}\n{found.fix}"
    assert "{" not in found.says + found.fix


@pytest.mark.parametrize(("name", "line"), OTHER_TEXTS)
def test_other_text_of_the_same_cause_is_found(name: str, line: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    assert found.name == name


def test_every_row_is_covered_in_order() -> None:
    assert [name for name, _, _ in LOGS] == [cause.name for cause in CAUSES]


@pytest.mark.parametrize(("number", "line"), list(enumerate(line for _, line, _ in LOGS)))
def test_each_log_is_told_by_its_own_row(number: int, line: str) -> None:
    found = diagnose(log_of(line))
    assert found is not None
    own = diagnose_by_row(number, line)
    assert (found.says, found.fix) == own


def diagnose_by_row(number: int, line: str) -> tuple[str, str]:
    cause = CAUSES[number]
    match = re.search(cause.text, line.replace(CORE, ""))
    assert match, "the row's own text does not match its log"
    groups = [(group or "").strip() for group in match.groups()]
    return cause.says.format(*groups), cause.fix.format(*groups)


WHOLE = [json.loads(line) for line in (Path(__file__).parent / "data" / "startup-logs.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", WHOLE, ids=lambda row: str(row["log"]))
def test_a_whole_log_names_its_cause_and_what_to_do(row: dict[str, object]) -> None:
    assert isinstance(row["lines"], list)
    found = diagnose("\n".join(row["lines"]))
    assert found is not None
    assert found.name == row["cause"]
    assert found.fix
    assert "see its log" not in found.fix


def test_memory_causes_enter_the_ladder() -> None:
    assert {cause.name for cause in OF_MEMORY} - set(MEMORY_CAUSES) == {"vram-changed"}
    assert "killed" in MEMORY_CAUSES
