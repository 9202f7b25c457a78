"""What vLLM compiles with while it starts: Triton its launchers in C on GPUs, torch.compile the model in C++ on processors."""

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
    """Of a language: who needs it, the variable that names it, its names on the PATH, and how to install it with Python's headers."""

    language: str
    user: str
    variable: str
    names: tuple[str, ...]
    install: str

    def path(self, environment: Mapping[str, str]) -> str | None:
        """Return the one that a server with this environment takes; None without one."""
        named = environment.get(self.variable, "").split()[:1]  # "ccache gcc" begins with what must be there
        found = (shutil.which(name, path=environment.get("PATH")) for name in named or self.names)
        return next((path for path in found if path), None)

    def missing(self, environment: Mapping[str, str]) -> str:
        """Return the words for a machine without one."""
        named = environment.get(self.variable)
        looked = f"{self.variable}={named} is not there" if named else f"no {' or '.join(self.names)} on the PATH"
        return f"there is no {self.language} compiler, which {self.user} needs ({looked})"

    @property
    def headers_missing(self) -> str:
        """Return the words for a Python without its headers."""
        return f"the Python headers are missing (Python.h), which {self.user} needs"


# triton/runtime/build.py, _find_compiler (3.8): the variable, gcc, clang. Every start on a GPU has kernels of Triton's.
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
    """Return what a start with these settled settings compiles with; None where it compiles nothing."""
    if distribution != CPU_SET.distribution:
        return C_COMPILER
    return None if settings.enforce_eager is True else CPP_COMPILER


def has_headers(python: str, environment: Mapping[str, str]) -> bool:
    """Tell whether a program in C finds Python.h of this Python: in its own folder, or where the compiler looks anyway."""
    folders = [folder for name in ("CPATH", "C_INCLUDE_PATH") for folder in environment.get(name, "").split(os.pathsep) if folder]
    if any((Path(folder) / "Python.h").exists() for folder in folders):
        return True
    answer = subprocess.run([python, "-I", "-c", HEADERS_PROBE], capture_output=True, text=True)
    return answer.stdout.strip() == "True"
