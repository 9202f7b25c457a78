"""Layers: config.yaml, the profile, the environment and --set, merged into settings; each value keeps its origin."""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, RootModel, ValidationError

from pipeline.config.schema import Config
from pipeline.errors import ConfigError

ENVIRONMENT_PREFIX = "VLLM_POC__"
# libyaml parses config.yaml in 5 ms, plain Python in 90; pyyaml ships both nearly everywhere.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Layer:
    """Values from one source, and the origin of each path of keys."""

    values: dict[str, Any]
    origins: dict[tuple[str, ...], str]


@dataclass(frozen=True)
class Layers:
    """The sources of settings, before a profile is chosen."""

    base: Layer
    profiles: dict[str, Layer]
    overrides: tuple[Layer, ...]
    assignments: tuple[str, ...] = ()  # KEY=VALUE, weakest first, without the profile

    @property
    def profile(self) -> tuple[str, str]:
        """Return the requested profile (possibly "auto") and its origin."""
        for layer in (*reversed(self.overrides), self.base):
            if "profile" in layer.values:
                return str(layer.values["profile"]), layer.origins[("profile",)]
        return "auto", "default"

    def config(self, profile: str | None) -> Config:
        """Return the validated settings with `profile` merged in; ConfigError names file, line and the nearest name."""
        if profile is not None and profile not in self.profiles:
            requested, origin = self.profile
            near = nearest(profile, self.profiles)
            where = f"{origin}: " if requested == profile else ""
            raise ConfigError(f"{where}no profile {profile!r}{near}", f"profiles: {', '.join(sorted(self.profiles))}, auto")
        values: dict[str, Any] = {}
        origins: dict[tuple[str, ...], str] = {}
        for layer in self._layers(profile):
            values = merge(values, layer.values)
            origins.update(layer.origins)
        if profile is not None:
            values["profile"] = profile
        try:
            config = Config.model_validate(values)
        except ValidationError as error:
            raise config_error(error, origins) from error
        gates = config.gates.root
        for name in config.waivers.root:
            if name not in gates:
                where = nearest_origin(origins, ("waivers", name))
                raise ConfigError(f"{where}: waivers.{name}: unknown gate{nearest(name, gates)}", f"gates: {', '.join(gates)}")
        return config

    def places(self, path: tuple[str, ...], profile: str | None) -> dict[str, str]:
        """Return where the mapping at `path` is defined, under "", and where stronger layers redefine its keys."""
        found: dict[str, str] = {}
        for layer in self._layers(profile):
            values: Any = layer.values
            for key in path:
                values = values.get(key) if isinstance(values, dict) else None
            if isinstance(values, dict):
                suffix = f" (profile {profile})" if profile is not None and layer is self.profiles[profile] else ""
                found |= {key: f"{nearest_origin(layer.origins, (*path, key))}{suffix}" for key in (values if found else ("",))}
        return found

    def _layers(self, profile: str | None) -> list[Layer]:
        """Return the layers in force, weakest first."""
        return [self.base, *([self.profiles[profile]] if profile is not None else []), *self.overrides]


def load_layers(
    path: Path,
    environment: Mapping[str, str],
    sets: Iterable[str] = (),
    profile: str | None = None,
) -> Layers:
    """Read `path`, the VLLM_POC__ variables and the key=value `sets`; ConfigError names what cannot be read."""
    base = read_yaml(path)
    raw_profiles = base.values.pop("profiles", None) or {}
    if not isinstance(raw_profiles, dict):
        raise ConfigError(f"{base.origins[('profiles',)]}: profiles: expected a mapping of names to settings")
    profiles = {}
    for raw_name, values in raw_profiles.items():
        name = str(raw_name)
        if ("profiles", name) not in base.origins:
            raise ConfigError(f"{base.origins[('profiles',)]}: profiles: YAML reads a name as {raw_name!r}", "put it in quotes")
        if not isinstance(values, dict):
            raise ConfigError(f"{base.origins[('profiles', name)]}: profiles.{name}: expected a mapping of settings")
        skip = ("profiles", name)
        origins = {key[2:]: where for key, where in base.origins.items() if key[:2] == skip and len(key) > 2}
        profiles[name] = Layer(values, origins)
    texts = list(override_texts(environment, sets))
    overrides = [single_value(key, text, origin) for key, text, origin in texts]
    assignments = tuple(f"{key}={text}" for key, text, _ in texts if key != "profile")
    if profile is not None:
        overrides.append(Layer({"profile": profile}, {("profile",): "--profile"}))
    return Layers(base, profiles, tuple(overrides), assignments)


def override_texts(environment: Mapping[str, str], sets: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Yield (dotted key, text, origin), weakest first."""
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), environment[name], f"environment {name}"
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: expected key=value", "for example --set serve.port=8001")
        yield key.strip(), value, f"--set {key.strip()}"


def single_value(key: str, text: str, origin: str) -> Layer:
    """Return the layer that sets the dotted `key` to YAML `text`."""
    try:
        value: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise ConfigError(f"{origin}: {text!r} is not a YAML value") from error
    path = tuple(key.split("."))
    values = value
    for part in reversed(path):
        values = {part: values}
    return Layer(values, {path[: depth + 1]: origin for depth in range(len(path))})


def read_yaml(path: Path) -> Layer:
    """Return the file's values with file:line for each key; ConfigError for bad YAML, a repeated key or anything but a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path.name}: {error.strerror}", "restore it with `git checkout config.yaml`") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    try:
        loader = LOADER(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path.name}:{line}: {error.problem or 'not YAML'}", "check indentation, colons and quotes") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    if node is None:
        return Layer({}, {})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path.name}:1: expected settings as `key: value`")
    origins: dict[tuple[str, ...], str] = {}
    try:
        note_lines(node, (), path.name, origins)
        values = loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{path.name}: an alias contains itself", "remove the `*name` that stands inside its own `&name`") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise ConfigError(f"{path.name}: {error}") from error
    return Layer(values, origins)


def note_lines(node: yaml.Node, at: tuple[str, ...], file: str, origins: dict[tuple[str, ...], str]) -> None:
    """Fill `origins` with file:line for each key below `node`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, str(key.value))
            where = f"{file}:{key.start_mark.line + 1}"
            if path in origins:
                raise ConfigError(f"{where}: {'.'.join(path)}: given twice (first at {origins[path]})", "keep one of them")
            origins[path] = where
            note_lines(value, path, file, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            origins[(*at, str(index))] = f"{file}:{value.start_mark.line + 1}"
            note_lines(value, (*at, str(index)), file, origins)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `under` overlaid with `over`; mappings are merged, everything else is replaced."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def config_error(error: ValidationError, origins: Mapping[tuple[str, ...], str]) -> ConfigError:
    """Return a one-line error for pydantic's first complaint."""
    # A misspelt key may also be reported as missing; show what the person typed first.
    first, *rest = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    path = tuple(str(part) for part in first["loc"])
    where = nearest_origin(origins, path)
    more = f" (and {len(rest)} more)" if rest else ""
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        names = field_names(path[:-1])
        return ConfigError(f"{where}: {name}: unknown setting{nearest(path[-1], names)}{more}", f"known here: {', '.join(names)}")
    complaint = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return ConfigError(f"{where}: {name}: {complaint[0].lower()}{complaint[1:]}{got}{more}")


def nearest_origin(origins: Mapping[tuple[str, ...], str], path: tuple[str, ...]) -> str:
    """Return the origin of `path`, or of the nearest key above it."""
    return next((origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), "config.yaml")


def field_names(path: tuple[str, ...]) -> list[str]:
    """Return the names of the settings below `path`."""
    kind: Any = Config
    for part in path:
        if isinstance(kind, type) and issubclass(kind, RootModel):
            kind = kind.model_fields["root"].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
        else:
            kind = typing.get_args(kind)[-1] if len(typing.get_args(kind)) != 2 or kind.__origin__ is dict else typing.get_args(kind)[0]
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def nearest(word: str, words: Iterable[str]) -> str:
    """Return a hint with the closest known name, or an empty text."""
    import difflib  # takes 8 ms, needed only for a wrong setting

    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
