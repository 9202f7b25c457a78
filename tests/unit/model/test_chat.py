"""Whether a model's folder tells how messages become a prompt."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pipeline.model.chat import PLAIN_TEMPLATE, lacks_chat_template


def folder(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


@pytest.mark.parametrize("tokenizer", [{}, {"chat_template": None}, {"chat_template": ""}])
def test_a_tokenizer_without_a_template_lacks_it(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    assert lacks_chat_template(folder(tmp_path, {"config.json": {"model_type": "llama"}, "tokenizer_config.json": tokenizer}))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": "{{ messages }}"}},
        {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "{{ messages }}"}]}},
        {"tokenizer_config.json": {}, "chat_template.jinja": "{{ messages }}"},
        {"tokenizer_config.json": {}, "tekken.json": "{}"},
        {"tokenizer_config.json": {}, "tokenizer.model.v3": ""},
        {"tokenizer_config.json": {}, "config.json": {"model_type": "deepseek_v32"}},
        {"tokenizer_config.json": {}, "config.json": {"model_type": "blip-2"}},
        {"tokenizer_config.json": "{"},
        {"tokenizer_config.json": {}, "config.json": "[]"},
        {},
    ],
)
def test_a_template_elsewhere_and_what_cannot_be_read_is_left_to_vllm(tmp_path: Path, files: dict[str, Any]) -> None:
    assert not lacks_chat_template(folder(tmp_path, {"config.json": {"model_type": "llama"}, **files}))


def test_the_plain_template_puts_the_texts_one_below_the_other() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    assert jinja2.Environment().from_string(PLAIN_TEMPLATE).render(messages=messages) == "Be brief.\nHello.\n"
