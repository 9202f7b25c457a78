"""Make a model folder with the shape of Qwen2.5-3B-Instruct and no weights, for `load_format: dummy`.

`python -m benchmarks.shape` writes models/qwen2.5-3b-shape: the published config.json's sizes, and the embedded model's
tokenizer with filler tokens up to the vocabulary, so that every token that random weights choose can be written out.
Run `./inv download-model --profile gpu-embedded` first.
"""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "models" / "smollm2-135m-instruct-bf16"
TARGET = ROOT / "models" / "qwen2.5-3b-shape"
# config.json of Qwen/Qwen2.5-3B-Instruct, as published.
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COPIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def padded(tokenizer: dict[str, object], size: int) -> dict[str, object]:
    """Return the tokenizer with its BPE vocabulary filled up to `size` tokens that no merge makes."""
    model = tokenizer["model"]
    assert isinstance(model, dict)
    vocabulary = dict(model["vocab"])
    added = tokenizer["added_tokens"]
    assert isinstance(added, list)
    taken = {*vocabulary.values(), *(token["id"] for token in added)}
    vocabulary |= {f" filler{number}": number for number in range(size) if number not in taken}
    return {**tokenizer, "model": {**model, "vocab": vocabulary}}


def main() -> None:
    """Write the folder."""
    TARGET.mkdir(parents=True, exist_ok=True)
    (TARGET / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    tokenizer = json.loads((SOURCE / "tokenizer.json").read_text(encoding="utf-8"))
    made = padded(tokenizer, int(str(CONFIG["vocab_size"])))
    (TARGET / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    for name in COPIED:
        if (SOURCE / name).exists():
            shutil.copyfile(SOURCE / name, TARGET / name)
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
