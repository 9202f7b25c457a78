"""Causes of death: too little memory."""

from pipeline.vllm.causes.cause import Cause

SMALLER = "take a smaller model (--profile qwen2.5-1.5b)"

OF_MEMORY = (
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
        r"\[Errno 12\] Cannot allocate memory|std::bad_alloc|(?:can't allocate|not enough) memory: you tried to allocate"
        r"|Cannot allocate memory \(12\)|(?m:^MemoryError\b)",
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
        r"To serve at least one request with the models?'s max seq len \((\d+)\)"
        r"|The model's max seq len \((\d+)\) is larger than the maximum number of tokens that can be stored in KV cache",
        "the KV cache is too small for one request of {0}{1} tokens",
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
        r"|\bOutOfMemoryError\b|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|Error 2: out of memory"
        r"|Cuda failure (?:2 )?'out of memory'|CUBLAS_STATUS_NOT_INITIALIZED",
        "the GPU ran out of memory",
        f"{SMALLER}, or lower serve.max_num_seqs and serve.max_model_len",
    ),
)
