"""Jinja's compiler run once for each template: it takes most of the time of a report, and the tests make hundreds."""

from pathlib import Path
from typing import Any

import jinja2


class Compiled(jinja2.FileSystemBytecodeCache):
    """Compiled templates in a folder, known by name and content wherever the template lies."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        return super().get_cache_key(name)


def compile_once(folder: Path) -> None:
    """Let every environment of this process keep what it compiles in `folder`."""
    compiled, begin = Compiled(str(folder)), jinja2.Environment.__init__

    def begin_with_it(self: jinja2.Environment, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **{"bytecode_cache": compiled, **options})

    jinja2.Environment.__init__ = begin_with_it  # type: ignore[method-assign]
