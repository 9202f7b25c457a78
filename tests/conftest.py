"""What costs time and proves nothing is done once: Python's and Jinja's compiling."""

import os
import sys

import pytest

from tests.fakes.templates import compile_once

# Whatever the shell says: each worker, and each process that a test starts, would compile all modules anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def templates_are_compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    compile_once(tmp_path_factory.mktemp("templates"))
