"""Causes of death: compilation and libraries at the start, and arguments that vLLM rejects."""

from pipeline.vllm.causes.cause import NO_SAMPLER, QUOTE, Cause
from pipeline.vllm.compilers import C_COMPILER, CPP_COMPILER

REINSTALL = "remove the folder venv-vllm and run `./inv install` again"
CUDA_TOOLKIT = f"{NO_SAMPLER}; or install NVIDIA's CUDA toolkit and set CUDA_HOME to it"

OF_BUILDS = (
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
        f"{CPP_COMPILER.install}; without a GPU --set serve.enforce_eager=true compiles nothing",
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
        f"{CPP_COMPILER.install}; or the package that brings that header",
    ),
    Cause(
        "no-compiler",
        r"Failed to find C compiler",
        "no C compiler, which Triton needs",
        C_COMPILER.install,
    ),
    Cause(
        "no-compiler",
        r"Failed to find C\+\+ compiler|No working C\+\+ compiler found|InvalidCxxCompiler|cannot execute .?cc1plus"
        r"|No such file or directory: '(?:[^'\n]*/)?(?:gcc|g\+\+|cc|c\+\+|clang(?:\+\+)?)'"
        r"|\b(?:gcc|g\+\+|cc|c\+\+): (?:command )?not found",
        "no C/C++ compiler, which torch.compile and Triton need",
        f"{CPP_COMPILER.install}; without a GPU --set serve.enforce_eager=true compiles nothing",
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
        r"(?i:invalid (tool call|reasoning) parser: (\S+)|\b(tool|reasoning) parser '([^'\n]+)' not found)",
        "vLLM has no {0}{2} parser of the name {1}{3}",
        "check serve.extra_args; the log lists the names that there are",
    ),
    Cause(
        "package-missing",
        r"No module named '([^'\n]+)'|(?:Import|PackageNotFound)Error: [^\n]*?[Pp]lease install `?(\w[\w.-]*)"
        r"|packages that were not found in your environment: ([\w, -]+)",
        "a package is missing in vLLM's environment: {0}{1}{2}",
        f"where the model needs it, install it there (uv pip install --python venv-vllm/bin/python …); else {REINSTALL}",
    ),
    Cause(
        "libraries-apart",
        r"undefined symbol: (\S+)",
        "libraries of vLLM's environment do not fit each other (undefined symbol {0})",
        f"{REINSTALL}; leave other versions off LD_LIBRARY_PATH",
    ),
    Cause(
        "driver-silent",
        rf"NVMLError_(\w+)(?:: ({QUOTE}))?",
        "the driver refuses what vLLM asks (NVML: {0} {1})",
        "see whether `nvidia-smi` works, then what `./inv check-gpu` says",
    ),
)
