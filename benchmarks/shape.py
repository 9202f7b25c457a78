"""Make a model folder with the shape of a published model and no weights, for `load_format: dummy`.

`python -m benchmarks.shape [REPOSITORY ...]` writes a folder for each named repository, as models/qwen2.5-3b-shape for
Qwen/Qwen2.5-3B-Instruct (the default): the sizes of the published config.json, and the embedded model's tokenizer with filler tokens up
to the vocabulary's size, so that every token that random weights choose can be decoded. Run
`./inv download-model --profile gpu-embedded` first.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pipeline.model.published import CONFIGS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "smollm2-135m-instruct-bf16"
# What vLLM needs of config.json besides the sizes, as published; the token ids are those of the embedded model's tokenizer.
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    **TOKENS,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    **TOKENS,
}
FAMILIES = {"Qwen": QWEN, "meta-llama": LLAMA}
AWQ = {"zero_point": True, "version": "gemm", "modules_to_not_convert": None}
COPIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def config_of(repo: str) -> dict[str, Any]:
    """Return the config.json of a known repository; KeyError for any other."""
    sizes = CONFIGS[repo]
    config = {**FAMILIES[repo.partition("/")[0]], **sizes}
    packed = sizes.get("quantization_config")
    return {**config, "quantization_config": {**packed, **AWQ}} if packed and packed["quant_method"] == "awq" else config


def folder_of(repo: str, models: Path) -> Path:
    """Return the folder for the shape of a repository."""
    return models / f"{repo.partition('/')[2].replace('-Instruct', '').lower()}-shape"


def padded(tokenizer: dict[str, object], size: int) -> dict[str, object]:
    """Return the tokenizer with its BPE vocabulary filled up to `size`, with tokens that no merge produces."""
    model = tokenizer["model"]
    assert isinstance(model, dict)
    vocabulary = dict(model["vocab"])
    added = tokenizer["added_tokens"]
    assert isinstance(added, list)
    used_ids = {*vocabulary.values(), *(token["id"] for token in added)}
    vocabulary |= {f" filler{number}": number for number in range(size) if number not in used_ids}
    return {**tokenizer, "model": {**model, "vocab": vocabulary}}


def make(repo: str, models: Path) -> Path:
    """Write the folder of a repository's shape below `models`, with the tokenizer of the embedded model there, and return it."""
    config, source, target = config_of(repo), models / SOURCE, folder_of(repo, models)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    padded_tokenizer = padded(tokenizer, int(config["vocab_size"]))
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (target / "tokenizer.json").write_text(json.dumps(padded_tokenizer, ensure_ascii=False), encoding="utf-8")
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    return target


def main(words: list[str]) -> None:
    """Write the folders."""
    known = [repo for repo in CONFIGS if repo.partition("/")[0] in FAMILIES]
    for repo in words or ["Qwen/Qwen2.5-3B-Instruct"]:
        if repo not in known:
            raise SystemExit(f"no shape of {repo} is known; known: {', '.join(known)}")
        print(f"wrote {make(repo, ROOT / 'models').relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
