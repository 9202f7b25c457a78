"""Causes of death: the driver and its devices."""

from pipeline.vllm.causes.cause import Cause

OF_DEVICES = (
    Cause(
        "driver-too-old",
        r"The NVIDIA driver on your system is too old \(found version (\d+)\)",
        "the NVIDIA driver is too old for this vLLM (it offers CUDA {0})",
        "set install.set=vllm-cuda12, or update the driver to 580 or newer",
    ),
    Cause(
        "driver-too-old",
        r"CUDA driver version is insufficient for CUDA runtime version|PTX was compiled with an unsupported toolchain"
        r"|CUDA_ERROR_UNSUPPORTED_PTX_VERSION|Error 36: API call is not supported",
        "the NVIDIA driver is too old for this vLLM's CUDA",
        "set install.set=vllm-cuda12, or update the driver to 580 or newer",
    ),
    Cause(
        "driver-mismatch",
        r"system has unsupported display driver / cuda driver combination|Driver/library version mismatch|NVMLError_LibRmVersionMismatch"
        r"|Error 500: named symbol not found",
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
        r"(?:CUDA error|Error 101): invalid device ordinal|visible device ordinal \d+ is out of range",
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
        r"no kernel image is available for execution|device kernel image is invalid|CUDA_ERROR_NO_BINARY_FOR_GPU"
        r"|is not compatible with the current PyTorch installation",
        "this vLLM has no kernels for this GPU, which is older or newer than those it was built for",
        "set install.set=vllm-cuda12 for an older GPU, vllm-cuda13 for a newer one; --profile cpu runs without it",
    ),
    Cause(
        "gpu-fault",
        r"CUDA error: (an illegal memory access[^\n]*|an illegal instruction[^\n]*|device-side assert[^\n]*|misaligned address"
        r"|unspecified launch failure|uncorrectable ECC[^\n]*)",
        "a kernel failed on the GPU: {0}",
        "start it again; if it fails again, --set serve.enforce_eager=true, or another vLLM (install.set); `sudo dmesg | grep Xid` tells "
        "of broken hardware",
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
)
