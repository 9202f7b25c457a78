"""Causes of death: the end of a process, where nothing else shows the reason."""

from pipeline.vllm.causes.cause import ENDED, Cause

OF_ENDS = (
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
