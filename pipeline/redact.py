"""Remove secrets from what is shown or stored. Pure."""

import re

KEY_PREFIX = "vllm-poc-"
SECRETS = re.compile(rf"\bhf_[A-Za-z0-9]{{8,}}|{KEY_PREFIX}[\w-]{{20,}}|\bsk-[\w-]{{16,}}|(?<=[Bb]earer )[\w.~+/-]{{8,}}=*")
HIDDEN = "[redacted]"


def redacted(text: str) -> str:
    """Return `text` with the hub's tokens, API keys and bearer credentials hidden."""
    return SECRETS.sub(HIDDEN, text)
