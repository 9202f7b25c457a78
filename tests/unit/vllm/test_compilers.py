"""What a start compiles with, and whether it is there."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.config.schema import ServeConfig
from pipeline.vllm.compilers import C_COMPILER, CPP_COMPILER, Compiler, compiler_for, has_headers
from pipeline.vllm.sets import CPU_SET


def on_path(folder: Path, *names: str) -> dict[str, str]:
    """Return an environment on whose PATH there are programs of these names."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(
    ("compiler", "there", "more", "found"),
    [
        (C_COMPILER, ("gcc", "clang"), {}, "gcc"),
        (C_COMPILER, ("clang",), {}, "clang"),
        (C_COMPILER, ("cc", "g++"), {}, None),  # Triton looks for neither
        (C_COMPILER, ("gcc", "icc"), {"CC": "icc"}, "icc"),
        (C_COMPILER, ("gcc",), {"CC": "icc"}, None),
        (C_COMPILER, ("gcc", "ccache"), {"CC": "ccache gcc"}, "ccache"),
        (CPP_COMPILER, ("g++",), {}, "g++"),
        (CPP_COMPILER, ("gcc", "clang++"), {}, None),
        (CPP_COMPILER, ("clang++",), {"CXX": "clang++"}, "clang++"),
    ],
)
def test_the_compiler_is_the_one_that_is_looked_for(
    tmp_path: Path, compiler: Compiler, there: tuple[str, ...], more: Mapping[str, str], found: str | None
) -> None:
    environment = {**on_path(tmp_path, *there), **more}
    assert compiler.path(environment) == (str(tmp_path / found) if found else None)


def test_what_was_looked_for_is_told() -> None:
    assert C_COMPILER.missing({}) == "there is no C compiler, which Triton needs (no gcc or clang on the PATH)"
    assert CPP_COMPILER.missing({"CXX": "icpc"}) == "there is no C++ compiler, which torch.compile needs (CXX=icpc is not there)"


def test_a_gpu_always_needs_one_and_a_processor_where_it_compiles() -> None:
    assert compiler_for(ServeConfig(enforce_eager=True), "vllm") == C_COMPILER
    assert compiler_for(ServeConfig(enforce_eager=False), CPU_SET.distribution) == CPP_COMPILER
    assert compiler_for(ServeConfig(enforce_eager=True), CPU_SET.distribution) is None


def test_headers_are_the_pythons_own_or_where_the_compiler_looks_anyway(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho False\n", encoding="utf-8")
    python.chmod(0o755)
    assert not has_headers(str(python), {})
    assert not has_headers(str(python), {"CPATH": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    assert has_headers(str(python), {"CPATH": f":/nowhere:{tmp_path}"})
    assert has_headers(str(python), {"C_INCLUDE_PATH": str(tmp_path)})


def test_the_headers_of_this_python_are_looked_for_where_they_would_be() -> None:
    import sysconfig

    there = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()
    assert has_headers(sys.executable, {}) == there
