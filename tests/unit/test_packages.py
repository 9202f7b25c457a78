"""pip's package locations, as uv's arguments."""

import os
from pathlib import Path

import pytest

from pipeline import packages
from pipeline.packages import install_command, location_arguments, pip_files, pip_locations, uv

STRATEGY = ["--index-strategy", "unsafe-best-match"]


@pytest.fixture(autouse=True)
def only_our_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own pip configuration out; `pip_files` here is still the real one."""
    monkeypatch.setattr(packages, "pip_files", lambda environment: [Path(environment["PIP_CONFIG_FILE"])])


def conf(folder: Path, text: str, name: str = "pip.conf") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def setting(name: str, place: str) -> str:
    """Return a line of pip's configuration."""
    return f"{name} = {place}"


def arguments(folder: Path, text: str = "", **environment: str) -> list[str]:
    """Return uv's arguments with `text` as pip's only configuration."""
    return location_arguments({"PIP_CONFIG_FILE": str(conf(folder, text)), **environment})


@pytest.mark.parametrize(
    ("option", "uvs"), [("index-url", "--default-index"), ("extra-index-url", "--index"), ("find-links", "--find-links")]
)
def test_option_of_the_file_becomes_uvs(tmp_path: Path, option: str, uvs: str) -> None:
    assert arguments(tmp_path, f"[global]\n{option} = https://a.example/packages\n") == [*STRATEGY, uvs, "https://a.example/packages"]


@pytest.mark.parametrize(
    ("variable", "uvs"), [("PIP_INDEX_URL", "--default-index"), ("PIP_EXTRA_INDEX_URL", "--index"), ("PIP_FIND_LINKS", "--find-links")]
)
def test_variable_becomes_uvs(tmp_path: Path, variable: str, uvs: str) -> None:
    assert arguments(tmp_path, **{variable: "https://a.example/packages"}) == [*STRATEGY, uvs, "https://a.example/packages"]


@pytest.mark.parametrize("separator", [" ", "\n    "])
def test_several_places_each_get_their_option(tmp_path: Path, separator: str) -> None:
    made = arguments(tmp_path, f"[global]\n{setting('extra-index-url', 'https://a.example')}{separator}https://b.example\n")
    assert made == [*STRATEGY, "--index", "https://a.example", "--index", "https://b.example"]


def test_variable_beats_the_file(tmp_path: Path) -> None:
    made = arguments(tmp_path, f"[global]\n{setting('index-url', 'https://file.example')}\n", PIP_INDEX_URL="https://env.example")
    assert made == [*STRATEGY, "--default-index", "https://env.example"]


def test_empty_variable_does_not_hide_the_file(tmp_path: Path) -> None:
    assert "https://file.example" in arguments(tmp_path, f"[global]\n{setting('index-url', 'https://file.example')}\n", PIP_INDEX_URL="")


def test_install_section_beats_global(tmp_path: Path) -> None:
    path = conf(
        tmp_path,
        f"[install]\n{setting('index-url', 'https://install.example')}\n[global]\n{setting('index-url', 'https://global.example')}\n",
    )
    assert pip_locations({}, [path]) == {"index-url": ["https://install.example"]}


def test_later_file_beats_earlier(tmp_path: Path) -> None:
    first = conf(tmp_path, f"[global]\n{setting('index-url', 'https://a.example')}\nfind-links = https://links.example\n", "a.conf")
    second = conf(tmp_path, f"[global]\n{setting('index-url', 'https://b.example')}\n", "b.conf")
    assert pip_locations({}, [first, second]) == {"index-url": ["https://b.example"], "find-links": ["https://links.example"]}


@pytest.mark.parametrize("option", ["index_url", "INDEX-URL"])
def test_option_is_read_however_pip_would_read_it(tmp_path: Path, option: str) -> None:
    assert pip_locations({}, [conf(tmp_path, f"[global]\n{option} = https://a.example\n")]) == {"index-url": ["https://a.example"]}


def test_missing_local_folder_is_skipped(tmp_path: Path) -> None:
    here = tmp_path / "wheels"
    here.mkdir()
    made = arguments(tmp_path, PIP_FIND_LINKS=f"{tmp_path}/nowhere {here} file://{tmp_path}/nowhere file://{here}")
    assert made == [*STRATEGY, "--find-links", str(here), "--find-links", f"file://{here}"]


def test_nothing_configured_gives_only_the_strategy(tmp_path: Path) -> None:
    assert arguments(tmp_path) == STRATEGY


@pytest.mark.parametrize("content", [b"no section\n", b"\xff\xfe\x00", b"[global\n", b"[global]\nindex-url = a\nindex-url = b\n"])
def test_broken_file_is_left_to_pip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pip.conf"
    path.write_bytes(content)
    assert pip_locations({}, [path]) == {}


def test_percent_signs_are_taken_as_they_are(tmp_path: Path) -> None:
    path = conf(tmp_path, f"[global]\n{setting('index-url', 'https://u:p%40ss@a.example/packages')}\n")
    assert pip_locations({}, [path]) == {"index-url": ["https://u:p%40ss@a.example/packages"]}


def test_missing_file_is_nothing(tmp_path: Path) -> None:
    assert pip_locations({}, [tmp_path / "nowhere"]) == {}


def test_files_follow_home_and_xdg() -> None:
    assert pip_files({"HOME": "/h"})[-2:] == [Path("/h/.pip/pip.conf"), Path("/h/.config/pip/pip.conf")]
    assert pip_files({"HOME": "/h", "XDG_CONFIG_HOME": "/x"})[-1] == Path("/x/pip/pip.conf")


def test_named_file_stands_in_for_the_users_and_adds_to_the_machines() -> None:
    files = pip_files({"HOME": "/h", "PIP_CONFIG_FILE": "/mine.conf"})  # as pip does, see pip config debug
    assert files[0] == Path("/etc/pip.conf")
    assert files[-1] == Path("/mine.conf")
    assert not any(file.is_relative_to("/h") for file in files)


def test_devnull_as_configuration_switches_all_off() -> None:
    assert pip_locations({}, pip_files({"PIP_CONFIG_FILE": os.devnull, "HOME": "/h"})) == {}


def test_install_is_hash_pinned_and_without_dependencies(tmp_path: Path) -> None:
    command = install_command(Path("/v/bin/python"), Path("r.txt"), {"PIP_CONFIG_FILE": str(conf(tmp_path, ""))}, "--quiet")
    assert command[:5] == [uv(), "pip", "install", "--python", "/v/bin/python"]
    assert {"--require-hashes", "--no-deps", "--quiet"} <= set(command)
    assert command[command.index("--requirement") + 1] == "r.txt"


@pytest.mark.parametrize("value", ["1", "true", "Yes", "on"])
def test_no_index_is_passed_on(tmp_path: Path, value: str) -> None:
    assert arguments(tmp_path, f"[global]\nno-index = {value}\n") == [*STRATEGY, "--no-index"]
    assert arguments(tmp_path, PIP_NO_INDEX=value) == [*STRATEGY, "--no-index"]


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_an_index_that_is_not_forbidden_is_asked(tmp_path: Path, value: str) -> None:
    assert arguments(tmp_path, PIP_NO_INDEX=value) == STRATEGY
