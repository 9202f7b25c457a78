"""Take secrets out of what is shown or kept. Pure."""

import re

KEY_PREFIX = "vllm-poc-"
SECRETS = re.compile(rf"\bhf_[A-Za-z0-9]{{8,}}|{KEY_PREFIX}[\w-]{{20,}}|\bsk-[\w-]{{16,}}|(?<=[Bb]earer )[\w.~+/-]{{8,}}=*")
HIDDEN = "[redacted]"


def redacted(text: str) -> str:
    """Return `text` with tokens of the hub, our own API keys and bearer credentials hidden."""
    return SECRETS.sub(HIDDEN, text)
