"""A digest of the code behind a stage; comments, layout and docstrings do not count."""

import ast
import hashlib
import json
from contextlib import suppress
from pathlib import Path

# These modules give a stage only text, or values (settings, records, paths) that are compared themselves.
CONTRACT = frozenset(
    {
        "pipeline.config.gates",
        "pipeline.config.layers",
        "pipeline.config.schema",
        "pipeline.config.section",
        "pipeline.contexts",
        "pipeline.engine.context",
        "pipeline.engine.migrations",
        "pipeline.engine.outcomes",
        "pipeline.engine.record",
        "pipeline.engine.workspace",
        "pipeline.errors",
        "pipeline.message",
        "pipeline.redact",
    }
)
STAGES = "pipeline.stages."  # the results of other stages arrive as records


class CodeDigests:
    """Digests of the modules below one package folder, cached by size and modification time."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self.cache = cache
        self._known: dict[str, tuple[list[int], str, list[str]]] = {}
        with suppress(OSError, ValueError):  # an unreadable cache is rebuilt
            known = json.loads(cache.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}
        self._changed = False
        self._seen: dict[str, tuple[str, list[str]]] = {}  # each file is read once: the code that runs was loaded at the start

    def digest(self, module: str) -> str:
        """Return 16 hex digits for `module` and every project module that it imports, directly or indirectly."""
        digests: dict[str, str] = {}
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name in digests or name in CONTRACT or (name.startswith(STAGES) and name != module):
                continue
            if name not in self._seen:
                self._seen[name] = self._module(name)
            digests[name], imports = self._seen[name]
            waiting.extend(imports)
        return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]

    def save(self) -> None:
        """Write the cache if it has changed."""
        if self._changed:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            self.cache.write_text(json.dumps(self._known), encoding="utf-8")
            self._changed = False

    def _module(self, name: str) -> tuple[str, list[str]]:
        path = self._path(name)
        if path is None:
            return "", []
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            tree = ast.parse(path.read_bytes())
            known = (stamp, tree_digest(tree), project_imports(tree, self.root.name))
            self._known[name] = known
            self._changed = True
        return known[1], known[2]

    def _path(self, name: str) -> Path | None:
        base = self.root.parent.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
        return None


def tree_digest(tree: ast.Module) -> str:
    """Return a digest of the syntax tree without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def project_imports(tree: ast.Module, package: str) -> list[str]:
    """Return the modules of `package` that the tree imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return sorted(name for name in names if name.startswith(f"{package}."))
