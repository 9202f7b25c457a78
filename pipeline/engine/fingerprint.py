"""Digests of files for fingerprints, and the differences between two fingerprints in words."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engine.record import digest


def content_digest(path: Path) -> str:
    """Return a digest of the file, or of every file below the folder with its name; "missing" if there is none."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        return "missing"
    return digest([(str(file.relative_to(path)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the differences between two fingerprints, each as in "serve.port changed: 8000 → 8123"."""
    words: list[str] = []
    for key in [*new, *(key for key in old if key not in new)]:
        name = f"{prefix}.{key}" if prefix else key
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        opaque = name == "code" or key == "digest" or " file " in name
        if isinstance(before, dict) and isinstance(after, dict):
            words += differences(before, after, name)
        elif before is None:
            words.append(f"{name} is new" + ("" if opaque else f": {after}"))
        elif after is None:
            words.append(f"{name} is gone" + ("" if opaque else f" (was {before})"))
        elif opaque:
            words.append(f"{name.removesuffix('.digest')} changed")
        else:
            words.append(f"{name} changed: {before} → {after}")
    return words
