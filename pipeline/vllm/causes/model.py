"""Causes of death: the model and the flags."""

from pipeline.vllm.causes.cause import QUOTE, Cause

WORDS_END = r"(?= \[type=|\n|$)"  # pydantic appends the rejected input to its messages

OF_MODEL = (
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
        r"put size is not aligned with the quantized weight shape|is not divisible\s+by\s+(?:min_thread_[nk]|group_size)"
        r"|is not a multiple of the group size|must be divisible by group_size",
        "a device's share of the weights does not fit their quantisation",
        "lower serve.tensor_parallel_size, or take the model in another quantisation",
    ),
    Cause(
        "parts-do-not-divide",
        r"AssertionError: (\d+) is not divisible by (\d+)(?!\S)|size (\d+) must be divisible by tensor-parallel size (\d+)",
        "a part of the model of {0}{2} does not divide by {1}{3} devices",
        "set serve.tensor_parallel_size to a number that divides {0}{2}",
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
        r"is not supported for the current GPU. Minimum capability|type fp8e\w+ not supported in this architecture",
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
        "quantization-mismatch",
        r"Quantization method specified in the model config \((\w+)\) does not match the quantization method specified in the "
        r"`quantization` argument \((\w+)\)",
        "the model is quantised with {0}, and --quantization asks for {1}",
        "take --quantization out of serve.extra_args: vLLM reads it from the model",
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
        "attention-unsupported",
        r"(FlashAttention only supports \w+ GPUs or newer|FlashInfer requires GPUs with [^\n.]{1,80})",
        "this GPU is too old for the attention backend: {0}",
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
        rf"(?:Value error, |ValueError: |KeyError: |AssertionError: )([^\n]*\b(?:rope_|RoPE)[^\n]*?){WORDS_END}",
        "this vLLM cannot read the rope settings of the model's config.json: {0}",
        "take the model's newest revision, or mend them in its config.json (rope_parameters with a rope_type)",
    ),
    Cause(
        "config-unreadable",
        r"config file at '([^']+)' is not a valid JSON file|Could not detect config format for no config file found"
        r"|does not appear to have a file named config\.json|Unrecognized model in|No supported config format found",
        "the model's config.json is missing or damaged",
        "run `./inv download-model --force`",
    ),
    Cause("gated", r"Cannot access gated repo for url", "the model is gated", "accept its licence on the hub and set HF_TOKEN"),
    Cause(
        "repo-not-found",
        r"Invalid repository ID or local directory specified:|Repository Not Found for url"
        r"|is not a local folder and is not a valid model identifier|HFValidationError",
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
        r"|We couldn't connect to '[^']+' to load the files|outgoing traffic has been disabled"
        r"|LocalEntryNotFoundError|Cannot find the requested files|Cannot reach https?://",
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
        "weights-of-another-form",
        rf"(There is no module or parameter named {QUOTE}|Tried to load weights of size torch\.Size{QUOTE})",
        "the weights are not of the form that config.json describes: {0}",
        "run `./inv download-model --force`; else take another revision of the model, or a newer vLLM (install.set)",
    ),
    Cause(
        "chat-template-missing",
        r"supplied chat template (?:string )?\(([^)\n]+)\) appears path-like, but doesn't exist",
        "the chat template {0} is not there",
        "mend --chat-template in serve.extra_args",
    ),
    Cause(
        "tokenizer-unreadable",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Tokenizer class \w+ does not exist"
        r"|did not match any variant of untagged enum|Please provide a valid tokenizer path|Error parsing line b'"
        r"|(?:sentencepiece|tiktoken)`? (?:is required|and `tiktoken` must be installed)|Unrecognized configuration class [^\n]*Tokenizer",
        "the model's tokenizer is missing, or this vLLM cannot read it",
        "run `./inv download-model --force`, or take another model or a newer vLLM (install.set)",
    ),
)
