"""Whether a model's folder tells how messages become a prompt."""

import json
from pathlib import Path

from pipeline.values import Lenient

# The texts of all messages, one below the other: what a model can take that was trained on text alone.
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{{ '\\n' }}{% endfor %}"
# Files that hold a chat template, or a tokenizer of Mistral's own, which needs none.
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")
# Models for which vLLM brings a template or an encoder of its own (vllm/transformers_utils/chat_templates and config/model.py, 0.32).
OWN_TEMPLATE = ("blip", "clip", "colpali", "deepseek", "inkling", "kimi", "minicpmv", "paligemma", "siglip", "unlimited")


class TokenizerConfig(Lenient):
    """The part of tokenizer_config.json that tells of a chat template."""

    chat_template: object = None


def lacks_chat_template(folder: Path) -> bool:
    """Tell whether the folder's tokenizer is known to have no chat template, so that vLLM would refuse every chat completion."""
    if any((folder / name).exists() for name in TEMPLATE_FILES) or any(folder.glob("tokenizer.model.v*")):
        return False
    try:
        config = TokenizerConfig.model_validate_json((folder / "tokenizer_config.json").read_bytes())
        kind = str(json.loads((folder / "config.json").read_bytes()).get("model_type", ""))
    except (OSError, ValueError, AttributeError):  # vLLM says what is wrong with them
        return False
    return not config.chat_template and not kind.replace("-", "").startswith(OWN_TEMPLATE)
