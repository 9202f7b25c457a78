"""The matrix: axes of settings, and their combinations as cells. Pure.

In `--grid 'profile=cpu,quick;serve.max_num_seqs=16,32'`, `;` separates axes and `,` separates values, except inside quotes and
brackets. Values are YAML.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config.layers import nearest
from pipeline.config.schema import Config
from pipeline.errors import ConfigError

PROFILE = "profile"
EXAMPLE = "for example --grid 'profile=cpu,quick;serve.max_num_seqs=16,32'"
OPEN, CLOSE = "([{", ")]}"
FOLDER_CHARACTERS = 60
# Keys that the sweep sets itself, and sections that do not affect a measurement.
NOT_AXES = {"serve.port": "each cell gets a free port of its own"}
NOT_SECTIONS = ("sweep", "report", "publish", "runs", "alternatives", "waivers", "watch")


@dataclass(frozen=True)
class Cell:
    """One combination: a (key, value) pair for each axis, in the axes' order."""

    values: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Return the cell's name for a person."""
        return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.values)

    @property
    def folder(self) -> str:
        """Return the name of the cell's folder: a readable part, and a digest that makes it unique."""
        plain = "_".join(f"{key}-{value}" for key, value in self.values)
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)[:FOLDER_CHARACTERS]
        return f"{safe}.{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

    @property
    def sets(self) -> tuple[str, ...]:
        """Return the values as --set takes them, without the profile."""
        return tuple(f"{key}={json.dumps(value)}" for key, value in self.values if key != PROFILE)

    @property
    def profile(self) -> str | None:
        return next((str(value) for key, value in self.values if key == PROFILE), None)


def parse_axes(text: str) -> dict[str, tuple[Any, ...]]:
    """Return the axes in `text`; ConfigError names the part that is none."""
    axes: dict[str, tuple[Any, ...]] = {}
    for part in split(text, ";"):
        key, equals, values = part.strip().partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--grid {part.strip() or repr(text)}: expected key=value,value", EXAMPLE)
        if key.strip() in axes:
            raise ConfigError(f"--grid: {key.strip()} is given twice", "name each axis once, with all its values")
        axes[key.strip()] = tuple(value(key.strip(), word) for word in split(values, ","))
    return axes


def value(key: str, text: str) -> Any:
    """Return one value of an axis; ConfigError if it is empty or not YAML."""
    if not text.strip():
        raise ConfigError(f"--grid {key}: an empty value", EXAMPLE)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--grid {key}: {text.strip()!r} is not a YAML value", EXAMPLE) from error


def split(text: str, mark: str) -> list[str]:
    """Split `text` at each `mark` outside quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in OPEN:
            depth += 1
        elif letter in CLOSE:
            depth -= 1
        if letter == mark and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def cells(axes: Mapping[str, Sequence[Any]], origin: str, most: int) -> list[Cell]:
    """Return every combination, the last axis varying fastest; ConfigError for a wrong axis or too many cells."""
    if not axes:
        raise ConfigError(f"{origin}: no axis", EXAMPLE)
    for key, values in axes.items():
        check_axis(key, values, origin)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > most:
        raise ConfigError(f"{origin}: {count} cells, at most {most} are run", "take fewer values, or raise sweep.max_cells")
    names = list(axes)
    return [Cell(tuple(zip(names, combination, strict=True))) for combination in itertools.product(*axes.values())]


def check_axis(key: str, values: Sequence[Any], origin: str) -> None:
    """Raise ConfigError if the key cannot be an axis, or if it has no value or the same one twice."""
    section = key.partition(".")[0]
    if key in NOT_AXES:
        raise ConfigError(f"{origin}: {key} cannot be an axis: {NOT_AXES[key]}", EXAMPLE)
    if key != PROFILE and "." not in key:
        near = nearest(key, (PROFILE, *(f"{name}.…" for name in Config.model_fields if name not in NOT_SECTIONS)))
        hint = "a model is chosen by its profile: --grid 'profile=qwen2.5-1.5b,rtx4050-6gb'"
        raise ConfigError(f"{origin}: {key}: neither `profile` nor a setting with its section{near}", hint)
    if section in NOT_SECTIONS:
        raise ConfigError(f"{origin}: {key} cannot be an axis: it changes nothing that is measured", EXAMPLE)
    if not values or any(value is None or value == "" for value in values):
        raise ConfigError(f"{origin}: {key}: an empty value", EXAMPLE)
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    duplicate = next((text for text in texts if texts.count(text) > 1), None)
    if duplicate is not None:
        raise ConfigError(f"{origin}: {key}: {duplicate} is given twice", "name each value once")
