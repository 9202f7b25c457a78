"""Install hash-pinned requirements with uv, from where pip is configured to look. Standard library only: `./inv` runs it too."""

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

# pip's option -> uv's; uv reads none of pip's configuration.
OPTIONS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
NO_INDEX = "no-index"


def uv() -> str:
    """Return the path of the uv that `./inv` put beside this interpreter."""
    return str(Path(sys.executable).with_name("uv"))


def pythons(version: str) -> list[str]:
    """Return the paths of the installed Pythons of this version."""
    result = subprocess.run([uv(), "python", "list", "--only-installed", "--output-format", "json", version], capture_output=True)
    # uv lists the same Python once for each link and each PATH entry that leads to it.
    return list(dict.fromkeys(os.path.realpath(entry["path"]) for entry in json.loads(result.stdout))) if result.returncode == 0 else []


def pip_settings(environment: Mapping[str, str], files: list[Path]) -> dict[str, str]:
    """Return pip's settings for package locations by option name; the environment overrides files, later files override earlier ones."""
    options = (*OPTIONS, NO_INDEX)
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip reports it itself
        for section in ("global", "install"):
            for name, value in parser.items(section) if parser.has_section(section) else []:
                if name.replace("_", "-") in options:
                    settings[name.replace("_", "-")] = value
    for option in options:
        value = environment.get(f"PIP_{option.upper().replace('-', '_')}", "")
        if value.strip():
            settings[option] = value
    return settings


def pip_locations(environment: Mapping[str, str], files: list[Path]) -> dict[str, list[str]]:
    """Return pip's package locations by option name."""
    return {option: value.split() for option, value in pip_settings(environment, files).items() if option in OPTIONS}


def pip_files(environment: Mapping[str, str]) -> list[Path]:
    """Return where pip looks for its configuration on Linux and macOS, weakest first."""
    home = Path(environment.get("HOME", "/"))
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    explicit = environment.get("PIP_CONFIG_FILE")
    if explicit == os.devnull:
        return []
    users = [Path(explicit)] if explicit else [home / ".pip" / "pip.conf", config_home / "pip" / "pip.conf"]
    return [Path("/etc/pip.conf"), *users]


def location_arguments(environment: Mapping[str, str]) -> list[str]:
    """Return uv's arguments for pip's locations; hashes are pinned, so any location may provide any package."""
    arguments = ["--index-strategy", "unsafe-best-match"]
    if pip_settings(environment, pip_files(environment)).get(NO_INDEX, "").lower() in ("1", "true", "yes", "on"):
        arguments.append("--no-index")
    for option, places in pip_locations(environment, pip_files(environment)).items():
        for place in places:
            local = unquote(place.removeprefix("file://")) if place.startswith("file://") else place
            if "://" not in local and not Path(local).exists():
                continue  # uv stops at a missing folder, pip goes on
            arguments += [OPTIONS[option], place]
    return arguments


def install_command(python: Path, requirements: Path, environment: Mapping[str, str], *extra: str) -> list[str]:
    """Return the uv command that installs the hash-pinned `requirements` for `python`."""
    pinned = ["--require-hashes", "--no-deps", "--requirement", str(requirements)]
    return [uv(), "pip", "install", "--python", str(python), *location_arguments(environment), *pinned, *extra]


if __name__ == "__main__":
    # Bytecode is compiled here, once, so that every later start of `./inv` is quick.
    sys.exit(
        subprocess.run(install_command(Path(sys.executable), Path(sys.argv[1]), os.environ, "--compile-bytecode", "--quiet")).returncode
    )
