"""Downloads that break, files that are damaged, disks that are full."""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from pipeline.errors import ModelError
from tests.builders.hub import FILES, REPO, WEIGHTS, contents, fetch, trouble
from tests.fakes.fake_hub import FakeHub, HubFile


def test_broken_connection_goes_on_where_it_broke(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.break_after["model.safetensors"] = [5000]
    fetch(tmp_path)
    assert [request.range for request in hub.gets("model.safetensors")] == [None, "bytes=5000-"]
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def broken_off(hub: FakeHub, folder: Path) -> ModelError:
    """Return the error of a fetch whose connection breaks in the weights each time that it is made again."""
    hub.break_after["model.safetensors"] = [5000] * 6
    return trouble(folder)


def test_connection_that_breaks_again_and_again(hub: FakeHub, tmp_path: Path) -> None:
    error = broken_off(hub, tmp_path)
    assert error.message.startswith("the hub cannot be reached: peer closed connection")
    assert "run it again" in error.hint
    assert "model.safetensors" not in contents(tmp_path)


def test_run_after_a_broken_one_fetches_what_is_missing_only(hub: FakeHub, tmp_path: Path) -> None:
    broken_off(hub, tmp_path)
    arrived = set(contents(tmp_path))
    assert arrived == {"config.json", "merges.txt"}
    hub.requests.clear()
    assert fetch(tmp_path).commit == hub.branches["main"]
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS
    assert [hub.gets(path) for path in arrived] == [[], []]


def test_hint_after_a_broken_download_promises_only_what_the_next_run_does(hub: FakeHub, tmp_path: Path) -> None:
    """huggingface_hub 2.4 keeps whole files only; where a later one goes on inside a file, the hint may say so."""
    error = broken_off(hub, tmp_path)
    hub.requests.clear()
    fetch(tmp_path)
    goes_on_inside_the_file = hub.gets("model.safetensors")[0].range is not None
    assert ("resumes" in error.hint) == goes_on_inside_the_file


def test_answer_that_ends_early_without_an_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS, lfs=True, sent=WEIGHTS[:5000])})
    error = trouble(tmp_path)
    assert error.message.startswith(f"the download of {REPO} broke off: Consistency check failed")
    assert "run it again" in error.hint


def test_content_that_is_not_what_the_hub_states_is_removed_and_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS, lfs=True, sent=WEIGHTS[::-1])})
    error = trouble(tmp_path)
    assert error.message == f"{REPO}: model.safetensors does not have the sha256 that the hub states; removed it"
    assert error.hint == "run it again to fetch that file anew"
    assert "model.safetensors" not in contents(tmp_path)
    hub.commits[hub.branches["main"]] = FILES
    fetch(tmp_path)
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def test_file_that_was_damaged_since_is_found(hub: FakeHub, tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(WEIGHTS[::-1])
    assert "does not have the sha256" in trouble(tmp_path).message
    fetch(tmp_path)
    assert contents(tmp_path)["model.safetensors"] == WEIGHTS


def test_disk_that_cannot_hold_the_model_is_told_before_the_download(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**30))
    error = trouble(tmp_path, min_free_gib=1.5)
    assert error.message == f"{REPO} needs 0.0 GiB and 1.5 GiB to spare, 1.0 GiB are free"
    assert error.hint == "free some disk space, or choose a smaller model"
    assert [request.endpoint for request in hub.requests if request.endpoint] == ["info"]


def test_files_that_are_there_need_no_space(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100))
    fetch(tmp_path, min_free_gib=0)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "to spare" in trouble(tmp_path, min_free_gib=0).message


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a small file system of its own; skip where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(("size=64k", *options)), "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_that_fills_up_meanwhile(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit({**FILES, "model.safetensors": HubFile(WEIGHTS * 8, lfs=True)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    with mounted(tmp_path / "small"):
        error = trouble(tmp_path / "small")
        assert error.message == "the disk is full"
        assert "free some space, then run it again" in error.hint
        assert "model.safetensors" not in contents(tmp_path / "small")


def test_folder_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "ro"):
        error = trouble(tmp_path / "fixed", min_free_gib=0)
        assert os.strerror(errno.EROFS) in error.message
