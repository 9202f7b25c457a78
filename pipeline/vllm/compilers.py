"""The compilers that a start of vLLM needs: C for Triton's launchers on GPUs, C++ for torch.compile on processors."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import ServeConfig
from pipeline.vllm.sets import CPU_SET

HEADERS_PROBE = "import os, sysconfig; print(os.path.exists(os.path.join(sysconfig.get_path('include', 'posix_prefix'), 'Python.h')))"


@dataclass(frozen=True)
class Compiler:
    """A compiler: its language, who needs it, the variable that names it, its names on the PATH, and how to install it and Python.h."""

    language: str
    user: str
    variable: str
    names: tuple[str, ...]
    install: str

    def path(self, environment: Mapping[str, str]) -> str | None:
        """Return the path of the compiler that a server with this environment uses; None without one."""
        choice = environment.get(self.variable, "").split()[:1]  # of "ccache gcc" only the first word must exist
        paths = (shutil.which(name, path=environment.get("PATH")) for name in choice or self.names)
        return next((path for path in paths if path), None)

    def missing(self, environment: Mapping[str, str]) -> str:
        """Return the message for a machine without this compiler."""
        choice = environment.get(self.variable)
        where = f"{self.variable}={choice} is not there" if choice else f"no {' or '.join(self.names)} on the PATH"
        return f"there is no {self.language} compiler, which {self.user} needs ({where})"

    @property
    def headers_missing(self) -> str:
        """Return the message for a Python without its headers."""
        return f"the Python headers are missing (Python.h), which {self.user} needs"


# triton/runtime/build.py, _find_compiler (3.8): the variable, then gcc, then clang. Every start on a GPU uses Triton's kernels.
C_COMPILER = Compiler(
    *("C", "Triton", "CC", ("gcc", "clang")),
    "Debian, Ubuntu: sudo apt install gcc python3-dev; Fedora: sudo dnf install gcc python3-devel",
)
# torch/_inductor/config.py (2.14), cpp.cxx.
CPP_COMPILER = Compiler(
    *("C++", "torch.compile", "CXX", ("g++",)),
    "Debian, Ubuntu: sudo apt install g++ python3-dev; Fedora: sudo dnf install gcc-c++ python3-devel",
)


def compiler_for(settings: ServeConfig, distribution: str) -> Compiler | None:
    """Return the compiler that a start with these settled settings needs; None where it compiles nothing."""
    if distribution != CPU_SET.distribution:
        return C_COMPILER
    return None if settings.enforce_eager is True else CPP_COMPILER


def has_headers(python: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a C compiler finds this Python's Python.h: in its include folder, or in CPATH or C_INCLUDE_PATH."""
    folders = [folder for name in ("CPATH", "C_INCLUDE_PATH") for folder in environment.get(name, "").split(os.pathsep) if folder]
    if any((Path(folder) / "Python.h").exists() for folder in folders):
        return True
    answer = subprocess.run([python, "-I", "-c", HEADERS_PROBE], capture_output=True, text=True)
    return answer.stdout.strip() == "True"
