"""Causes of a server's death as data: the text that shows each, what it means, and what a person can do."""

from dataclasses import dataclass

from pipeline.vllm.compilers import ON_GPU, ON_PROCESSOR


@dataclass(frozen=True)
class Cause:
    """A cause of death: its name, the text that shows it, and what a person can do; groups of `text` fill {0}, {1}."""

    name: str
    text: str
    says: str
    fix: str


SMALLER = "take a smaller model (--profile qwen2.5-1.5b)"
REINSTALL = "remove the folder venv-vllm and run `./inv install` again"
NO_SAMPLER = "--set serve.env.VLLM_USE_FLASHINFER_SAMPLER=0 makes FlashInfer compile no sampler"
CUDA_TOOLKIT = f"{NO_SAMPLER}; or install NVIDIA's CUDA toolkit and set CUDA_HOME to it"
# How long an unreadable line may get where it is quoted.
QUOTE = r"[^\n]{1,200}"
WORDS_END = r"(?= \[type=|\n|$)"  # pydantic's messages end with what they were given
# A worker's or engine's exit code in vLLM's own words: {'EngineCore': -9}, (exit code: -9).
ENDED = r"(?:Failed (?:core|frontend) proc\(s\): \{{[^}}\n]*: {0}\b|Worker proc \S+ died unexpectedly \(exit code: {0}\))"

# The most telling first. Texts as they stand in the sources of vLLM 0.32 and 0.33, torch 2.14, Triton 3.8 and FlashInfer 0.7;
# those without a device, of 0.19, and of starts on H100s as they were printed.
CAUSES = (
    # The driver and its devices.
    Cause(
        "driver-too-old",
        r"The NVIDIA driver on your system is too old \(found version (\d+)\)",
        "the NVIDIA driver is too old for this vLLM (it offers CUDA {0})",
        "set install.set=vllm-cuda12, or update the driver to 580 or newer",
    ),
    Cause(
        "driver-too-old",
        r"CUDA driver version is insufficient for CUDA runtime version|PTX was compiled with an unsupported toolchain",
        "the NVIDIA driver is too old for this vLLM's CUDA",
        "set install.set=vllm-cuda12, or update the driver to 580 or newer",
    ),
    Cause(
        "driver-mismatch",
        r"system has unsupported display driver / cuda driver combination|Driver/library version mismatch|NVMLError_LibRmVersionMismatch",
        "the NVIDIA driver in the kernel and its libraries have different versions",
        "restart the machine to finish a driver update; in a container, start it anew and leave CUDA's compat folder off LD_LIBRARY_PATH",
    ),
    Cause(
        "driver-mismatch",
        r"forward compatibility was attempted on non supported HW",
        "a CUDA compatibility library stands in for the driver's own, which this GPU does not support",
        "leave CUDA's compat folder off LD_LIBRARY_PATH, or restart the machine to finish a driver update",
    ),
    Cause(
        "driver-not-ready",
        r"Error 802: system not yet initialized",
        "the GPUs are not ready: their fabric manager does not run",
        "start it: sudo systemctl start nvidia-fabricmanager",
    ),
    Cause(
        "driver-not-ready",
        r"CUDA unknown error|Error 999: unknown error",
        "CUDA does not start (unknown error), as after the machine slept",
        "reload the driver's module (sudo rmmod nvidia_uvm; sudo modprobe nvidia_uvm), or restart the machine",
    ),
    Cause(
        "no-driver",
        r"libcuda\.so\.1: cannot open shared object file|libcuda\.so cannot found",
        "the NVIDIA driver's library libcuda.so.1 is missing",
        "install the NVIDIA driver (`nvidia-smi` must work); give a container `--gpus all`; without a GPU use --profile cpu",
    ),
    Cause(
        "device-busy",
        r"CUDA-capable device\(s\) is/are busy or unavailable|all CUDA-capable devices are busy or unavailable",
        "another program has the GPU to itself",
        "end it (`./inv check-gpu` lists who is there), or let programs share the GPU: sudo nvidia-smi -c 0",
    ),
    Cause(
        "no-such-device",
        r"CUDA error: invalid device ordinal|visible device ordinal \d+ is out of range",
        "a device is asked for that does not exist",
        "`nvidia-smi -L` lists the devices: mend or unset CUDA_VISIBLE_DEVICES",
    ),
    Cause(
        "no-such-device",
        r"invalid literal for int\(\) with base 10: '((?:MIG|GPU)-[^']*)'|Non-integer device ID '([^']*)' is not supported",
        "this vLLM does not take a UUID as CUDA_VISIBLE_DEVICES ({0}{1})",
        "name the device by its number (`nvidia-smi -L`); of a GPU in MIG mode it then takes the first instance",
    ),
    Cause(
        "too-few-devices",
        r"World size \((\d+)\) is larger than the number of available GPUs \((\d+)\)",
        "the settings ask for {0} GPUs, and vLLM sees {1}",
        "lower serve.tensor_parallel_size or serve.pipeline_parallel_size, or mend CUDA_VISIBLE_DEVICES",
    ),
    Cause(
        "too-few-devices",
        r"[Ll]ocal[_ ]rank \d+ is out of bounds|device_id \d+ is out of range for assigned_physical_gpu_ids",
        "the settings ask for more GPUs than vLLM sees",
        "lower serve.tensor_parallel_size, serve.pipeline_parallel_size or serve.data_parallel_size, or mend CUDA_VISIBLE_DEVICES",
    ),
    Cause(
        "no-device",
        r"Failed to infer device type",
        "vLLM finds no device that it can run on",
        "run `./inv check-gpu`; without a GPU use --profile cpu with install.set at auto, which installs the CPU build",
    ),
    Cause(
        "no-device",
        r"No CUDA GPUs are available|no CUDA-capable device is detected",
        "CUDA finds no GPU",
        "run `./inv check-gpu`; unset CUDA_VISIBLE_DEVICES to use every device; without a GPU use --profile cpu",
    ),
    Cause(
        "no-kernels",
        r"no kernel image is available for execution on the device|device kernel image is invalid",
        "this vLLM has no kernels for this GPU, which is older or newer than those it was built for",
        "set install.set=vllm-cuda12 for an older GPU, vllm-cuda13 for a newer one; --profile cpu runs without it",
    ),
    Cause(
        "no-pinned-memory",
        r"UVA is not available",
        "vLLM's newer model runner needs pinned memory, which is off here, as under WSL2",
        "--set serve.env.VLLM_WSL2_ENABLE_PIN_MEMORY=1, or the older runner: --set serve.env.VLLM_USE_V2_MODEL_RUNNER=0",
    ),
    Cause(
        "driver-silent",
        r"NVMLError_NotSupported|NVMLError_FunctionNotFound",
        "the driver does not tell vLLM about this GPU (NVML: not supported)",
        "update the driver (under WSL2 that of Windows, then `wsl --update`); of a GPU in MIG mode name its number, not a UUID",
    ),
    # Memory.
    Cause(
        "free-vram",
        r"Free memory on device .*?on startup is less than",
        "other programs hold too much of the GPU's memory",
        "close them (`invoke check-gpu` lists them), or lower serve.gpu_memory_utilization",
    ),
    Cause(
        "vram-changed",
        r"Error in memory profiling\. Initial free memory",
        "another program freed the GPU's memory while vLLM measured it",
        "start it again, and leave the GPU alone meanwhile",
    ),
    Cause(
        "free-ram",
        r"Available memory on node .* (?:is less than desired CPU memory utilization|allocation is less than requested memory for kv)",
        "too little free main memory",
        "close other programs, or lower VLLM_CPU_KVCACHE_SPACE in serve.env",
    ),
    Cause(
        "free-ram",
        r"\[Errno 12\] Cannot allocate memory|std::bad_alloc|can't allocate memory: you tried to allocate|(?m:^MemoryError\b)",
        "the main memory ran out",
        "close other programs, take a smaller model, or lower VLLM_CPU_KVCACHE_SPACE in serve.env",
    ),
    Cause(
        "kv-below-context",
        r"estimated maximum model length is (\d+)",
        "the KV cache is too small for serve.max_model_len",
        "set serve.max_model_len={0}, or give it more memory",
    ),
    Cause(
        "kv-below-context",
        r"To serve at least one request with the models?'s max seq len \((\d+)\)",
        "the KV cache is too small for one request of {0} tokens",
        "lower serve.max_model_len, or give it more memory",
    ),
    Cause(
        "no-kv-room",
        r"No available memory for the cache blocks",
        "the weights leave no memory for the KV cache",
        f"raise serve.gpu_memory_utilization, or {SMALLER}",
    ),
    Cause(
        "no-kv-room",
        r"The worker already uses .* leaving none for the KV cache",
        "the weights leave no main memory for the KV cache",
        "set VLLM_CPU_KVCACHE_SPACE (GiB) in serve.env, raise serve.gpu_memory_utilization, or take a smaller model",
    ),
    Cause(
        "warm-up-oom",
        r"CUDA out of memory occurred when warming up \w+ with (\d+) dummy requests",
        "the GPU ran out of memory as vLLM tried {0} requests at once",
        "lower serve.max_num_seqs, or serve.gpu_memory_utilization",
    ),
    Cause(
        "gpu-oom",
        r"CUDA out of memory|Failed to load model - not enough GPU memory|CUDA (?:driver )?error: out of memory|CUDA_ERROR_OUT_OF_MEMORY"
        r"|\bOutOfMemoryError\b|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|Error 2: out of memory",
        "the GPU ran out of memory",
        f"{SMALLER}, or lower serve.max_num_seqs and serve.max_model_len",
    ),
    # The model and the flags.
    Cause(
        "context-too-long",
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \((?:[a-z_]+=)?(\d+)",
        "serve.max_model_len {0} is more than the model's {1}",
        "set serve.max_model_len={1} or less",
    ),
    Cause(
        "context-too-long",
        r"User-specified max_model_len .* is greater than the derived",
        "serve.max_model_len is more than the model has",
        "lower serve.max_model_len",
    ),
    Cause(
        "batch-too-small",
        r"max_num_batched_tokens \((\d+)\) is smaller than max_model_len \((\d+)\)",
        "serve.max_num_batched_tokens {0} is less than serve.max_model_len {1}",
        "set serve.max_num_batched_tokens={1} or more, or lower serve.max_model_len",
    ),
    Cause(
        "batch-too-small",
        r"max_num_batched_tokens \((\d+)\) must be greater than or equal to max_num_seqs \((\d+)\)",
        "serve.max_num_batched_tokens {0} is less than serve.max_num_seqs {1}",
        "set serve.max_num_batched_tokens={1} or more, or lower serve.max_num_seqs",
    ),
    Cause(
        "heads-do-not-divide",
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        "the model's {0} attention heads do not divide by serve.tensor_parallel_size {1}",
        "set serve.tensor_parallel_size to a number that divides {0}",
    ),
    Cause(
        "weights-do-not-divide",
        r"is not divisible by weight quantization block_[nk] = (\d+)",
        "a device's share of the weights is no multiple of their quantisation's blocks of {0}",
        "lower serve.tensor_parallel_size, or take the model in another quantisation",
    ),
    Cause(
        "weights-do-not-divide",
        r"put size is not aligned with the quantized weight shape|is not divisible by\s+min_thread_[nk]",
        "a device's share of the weights does not fit their quantisation",
        "lower serve.tensor_parallel_size, or take the model in another quantisation",
    ),
    Cause(
        "bf16-on-turing",
        r"Bfloat16 is only supported on GPUs with compute capability of at least 8.0",
        "this GPU cannot compute in bfloat16",
        "set serve.dtype=float16",
    ),
    Cause(
        "dtype-unsupported",
        r"torch\.(\w+) is not supported for quantization method (\w+)\. Supported dtypes: \[?(?:torch\.)?(\w+)",
        "the quantisation {1} does not compute in {0}",
        "set serve.dtype={2}",
    ),
    Cause(
        "quantization-unsupported",
        r"is not supported for the current GPU. Minimum capability",
        "this GPU is too old for the model's quantisation",
        "take an unquantised or GPTQ model",
    ),
    Cause(
        "quantization-unsupported",
        r"Unknown quantization method: (\w+)",
        "this vLLM does not know the quantisation {0}",
        "take the model in another quantisation (AWQ, GPTQ), or a newer vLLM (install.set)",
    ),
    Cause(
        "attention-unsupported",
        r"No valid attention backend found for .*?Reasons: \{(?:\w+: \[([^\]\n]*)\])?",
        "no attention kernels of this vLLM run this model on this device ({0})",
        "take another model; or change serve.dtype, or --kv-cache-dtype in serve.extra_args, where the reason names them",
    ),
    Cause(
        "attention-unsupported",
        r"Selected backend (\S+) is not valid for this configuration\. Reason: ([^\n]+)",
        "the attention backend {0} does not run this model on this device: {1}",
        "leave the choice to vLLM: take --attention-backend out of serve.extra_args",
    ),
    Cause(
        "architecture-unknown",
        r"Model architectures (\[.*?\]) are not supported for now",
        "this vLLM does not know the architecture {0}",
        "take another model, or a newer vLLM (install.set)",
    ),
    Cause(
        "architecture-unknown",
        r"has model type `([^`]+)` but Transformers does not recognize this architecture",
        "this vLLM's Transformers does not know the model type {0}",
        "take another model, or a newer vLLM (install.set)",
    ),
    Cause(
        "own-code",
        r"contains custom code which must be executed|`trust_remote_code=True`"
        r"|requires you to execute the (?:configuration|tokenizer) file",
        "the model brings code of its own, which vLLM runs only where it is allowed",
        "read that code, then --set serve.trust_remote_code=true; or take another model",
    ),
    Cause(
        "config-unreadable",
        rf"(?:Value error, |ValueError: |KeyError: |AssertionError: )([^\n]*\brope_[^\n]*?){WORDS_END}",
        "this vLLM cannot read the rope settings of the model's config.json: {0}",
        "take the model's newest revision, or mend them in its config.json (rope_parameters with a rope_type)",
    ),
    Cause(
        "config-unreadable",
        r"config file at '([^']+)' is not a valid JSON file|Could not detect config format for no config file found",
        "the model's config.json is missing or damaged",
        "run `./inv download-model --force`",
    ),
    Cause("gated", r"Cannot access gated repo for url", "the model is gated", "accept its licence on the hub and set HF_TOKEN"),
    Cause(
        "repo-not-found",
        r"Invalid repository ID or local directory specified:|Repository Not Found for url",
        "the model's folder or repository is not there",
        "run `invoke download-model`",
    ),
    Cause(
        "weights-no-safetensors",
        r"SafetensorError: [^\n]*(?:header too large|header too small|HeaderTooLarge|HeaderTooSmall|invalid header|InvalidHeader)",
        "a file of the weights holds no weights: it is a pointer of Git LFS, or damaged",
        "run `./inv download-model --force`; in a clone of the model's repository: git lfs pull",
    ),
    Cause(
        "weights-cut",
        rf"SafetensorError: ({QUOTE})|PytorchStreamReader failed|safetensors[^\n]*unexpected end of file",
        "a file of the weights is damaged or incomplete",
        "run `./inv download-model --force`",
    ),
    Cause(
        "weights-missing",
        r"Cannot find any model weights with|No such file or directory: '?\"?[^'\"\n]*\.(?:safetensors|bin)\b"
        r"|We couldn't connect to '[^']+' to load the files|outgoing traffic has been disabled",
        "files of the model are missing on disk, and the server asks no hub",
        "run `./inv download-model --force`",
    ),
    Cause(
        "weights-missing",
        r"weights were not initialized from checkpoint: \{?([^}\n]{1,200})",
        "the files lack weights that the model has: {0}",
        "run `./inv download-model --force`, or take another revision of the model",
    ),
    Cause(
        "tokenizer-unreadable",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Tokenizer class \w+ does not exist"
        r"|did not match any variant of untagged enum",
        "the model's tokenizer is missing, or this vLLM cannot read it",
        "run `./inv download-model --force`, or take another model or a newer vLLM (install.set)",
    ),
    # Shared memory, disk, network.
    Cause(
        "shm-full",
        r"Insufficient space in /dev/shm for|creating shared memory segment /dev/shm/|No space left on device: '/dev/shm"
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
    Cause("port-taken", r"\[Errno 98\] Address already in use", "the port was taken while the server loaded", "set another serve.port"),
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
    # What is compiled at the start.
    Cause(
        "no-ninja",
        r"No such file or directory: '(?:[^'\n]*/)?ninja'|\bninja: (?:command )?not found|Ninja is required to load C\+\+ extensions",
        "ninja is missing, which FlashInfer builds its kernels with",
        f"{NO_SAMPLER}; or install it (Debian, Ubuntu: sudo apt install ninja-build)",
    ),
    Cause(
        "no-nvcc",
        r"Could not find nvcc|\bnvcc(?:: | )(?:command )?not found|nvcc: No such file or directory"
        r"|No such file or directory: '(?:[^'\n]*/)?nvcc'"
        r"|CUDA_HOME environment variable is not set|Failed to find nvcc",
        "nvcc is missing, the CUDA compiler that FlashInfer builds its kernels with",
        CUDA_TOOLKIT,
    ),
    Cause(
        "nvcc-too-old",
        r"nvcc fatal\s*: Unsupported gpu architecture '([^']+)'|ptxas[^\n]*Value '(sm_\w+)' is not defined for option 'gpu-name'",
        "nvcc is too old for this GPU: it does not know {0}{1}",
        f"update NVIDIA's CUDA toolkit, or take the old nvcc off the PATH and unset CUDA_HOME; {NO_SAMPLER}",
    ),
    Cause(
        "nvcc-and-gcc",
        r"#error -- unsupported GNU version! gcc versions later than (\d+) are not supported",
        "this nvcc takes no gcc newer than {0}",
        f"install gcc {{0}} and name it in CC, CXX and CUDAHOSTCXX (serve.env), or update the CUDA toolkit; {NO_SAMPLER}",
    ),
    Cause(
        "compiler-killed",
        r"Killed signal terminated program|died due to signal 9",
        "a compiler was killed: too little free main memory for all of them at once",
        f"--set serve.env.MAX_JOBS=1, or close other programs; {NO_SAMPLER}",
    ),
    Cause(
        "no-python-headers",
        r"fatal error: '?Python\.h",
        "the Python headers are missing, which Triton and torch.compile need",
        f"{ON_PROCESSOR.install}; without a GPU --set serve.enforce_eager=true compiles nothing",
    ),
    Cause(
        "no-cuda-headers",
        r"fatal error: '?((?:cuda|cublas|cusparse|cusolver|curand|cudnn|cufft|nccl|nvrtc|nvtx|nvToolsExt|cub/|thrust/|cuda/|crt/)[\w/.]*)",
        "the CUDA header {0} is missing",
        CUDA_TOOLKIT,
    ),
    Cause(
        "no-headers",
        r"fatal error: '?([\w/.+-]+)'?: No such file or directory|fatal error: '([^'\n]+)' file not found",
        "the header {0}{1} is missing, which a kernel is compiled with",
        f"{ON_PROCESSOR.install}; or the package that brings that header",
    ),
    Cause(
        "no-compiler",
        r"Failed to find C compiler",
        "no C compiler, which Triton needs",
        ON_GPU.install,
    ),
    Cause(
        "no-compiler",
        r"Failed to find C\+\+ compiler|No working C\+\+ compiler found|InvalidCxxCompiler|cannot execute .?cc1plus"
        r"|No such file or directory: '(?:[^'\n]*/)?(?:gcc|g\+\+|cc|c\+\+|clang(?:\+\+)?)'"
        r"|\b(?:gcc|g\+\+|cc|c\+\+): (?:command )?not found",
        "no C/C++ compiler, which torch.compile and Triton need",
        f"{ON_PROCESSOR.install}; without a GPU --set serve.enforce_eager=true compiles nothing",
    ),
    Cause(
        "no-library",
        r"cannot find (-l[\w.:+-]*\w)",
        "the linker does not find the library {0}",
        "of CUDA's (-lcudart, -lcublas) the toolkit's lib64 belongs on LIBRARY_PATH; -lcuda is the driver's, in a folder "
        f"that `ldconfig -p` lists; {NO_SAMPLER}",
    ),
    Cause(
        "no-library",
        r"\b(lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        "the library {0} is missing",
        f"{REINSTALL} where its name begins with libcu, libnv or libtorch; else install the package that has it",
    ),
    Cause(
        "system-too-old",
        r"version `(GLIBC(?:XX)?_[\d.]+)' not found",
        "this system's C library is too old for vLLM: it lacks {0}",
        "run it on a newer system, Debian 12 or Ubuntu 22.04 for example",
    ),
    Cause(
        "bad-argument",
        r"(?:(?:api_server|main|headless)\.py|\bvllm[\w.]*)(?: serve)?: error: ([^\n]+)",
        "vLLM does not take these arguments: {0}",
        "check serve.extra_args",
    ),
    Cause(
        "bad-argument",
        r"\w+Error: Error: (--[a-z][^\n]+)",
        "vLLM does not take these arguments: {0}",
        "check serve.extra_args",
    ),
    Cause(
        "bad-argument",
        r"invalid (tool call|reasoning) parser: (\S+)",
        "vLLM has no {0} parser of the name {1}",
        "check serve.extra_args; the log lists the names that there are",
    ),
    Cause(
        "driver-silent",
        rf"NVMLError_(\w+)(?:: ({QUOTE}))?",
        "the driver refuses what vLLM asks (NVML: {0} {1})",
        "see whether `nvidia-smi` works, then what `./inv check-gpu` says",
    ),
    # The end of a process, where nothing above tells why.
    Cause(
        "wrong-processor",
        f"Fatal Python error: Illegal instruction|{ENDED.format('-4')}",
        "this processor lacks an instruction that vLLM was built for",
        "run it on a newer processor (AVX2 at least), or in a virtual machine that passes its instructions on",
    ),
    Cause(
        "killed",
        ENDED.format("-9"),
        "its engine was killed while it loaded (SIGKILL: by hand, or by the kernel for lack of main memory)",
        "close other programs or take a smaller model; `sudo dmesg` tells whether it was the kernel",
    ),
    Cause(
        "crashed",
        f"Fatal Python error: Segmentation fault|{ENDED.format('-(?:11|6)')}",
        "its engine crashed (a fault in compiled code)",
        "the log ends with where it stood; try another vLLM (install.set)",
    ),
)
