"""What counts as a change of code."""

from pathlib import Path

import pytest

from pipeline.engine.code import CONTRACT, CodeDigests

STAGE = '''"""Doc."""
from toy.helper import help_out


def stage(a: int) -> int:
    """Doc."""
    return help_out(a, 1)
'''
FILES = {
    "stage": STAGE,
    "helper": "from toy.deep import constant\n\n\ndef help_out(a, b):\n    return a + b + constant\n",
    "deep": "constant = 1\n",
    "stranger": "x = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "toy"
    root.mkdir()
    for name, text in FILES.items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    return root


def digest(package: Path, module: str = "toy.stage") -> str:
    return CodeDigests(package, package / "no-cache.json").digest(module)


def change(package: Path, name: str, text: str) -> None:
    (package / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        STAGE.replace("    return", "    # why\n    return"),
        STAGE.replace('"""Doc."""', '"""Other words."""'),
        STAGE.replace('"""Doc."""\n', "", 1),
        STAGE.replace("help_out(a, 1)", "help_out(\n        a,\n        1,\n    )"),
        STAGE + "\n\n\n",
    ],
    ids=["comment", "docstring", "no docstring", "layout", "blank lines"],
)
def test_change_that_does_nothing_leaves_the_digest(package: Path, text: str) -> None:
    before = digest(package)
    assert text != STAGE
    change(package, "stage", text)
    assert digest(package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("stage", "help_out(a, 1)", "help_out(a, 2)"), ("stage", "a: int", "a: float"), ("helper", "a + b", "a - b"), ("deep", "1", "2")],
)
def test_change_of_the_stage_or_of_a_helper_changes_the_digest(package: Path, name: str, old: str, new: str) -> None:
    before = digest(package)
    change(package, name, FILES[name].replace(old, new))
    assert digest(package) != before


def test_string_that_is_no_docstring_counts(package: Path) -> None:
    change(package, "stage", "x = 'a'\n")
    before = digest(package)
    change(package, "stage", "x = 'b'\n")
    assert digest(package) != before


def test_module_that_is_not_imported_does_not_count(package: Path) -> None:
    before = digest(package)
    change(package, "stranger", "x = 2\n")
    assert digest(package) == before


@pytest.mark.parametrize(
    "statement",
    ["import toy.stranger", "import toy.stranger as s", "from toy import stranger", "from toy.stranger import x"],
)
def test_lazily_imported_helper_counts(package: Path, statement: str) -> None:
    change(package, "stage", f"def stage():\n    {statement}\n")
    before = digest(package)
    change(package, "stranger", "x = 2\n")
    assert digest(package) != before


def test_circle_of_imports_ends(package: Path) -> None:
    change(package, "deep", "from toy.helper import help_out\n")
    assert digest(package) != digest(package, "toy.deep")


@pytest.mark.parametrize("module", sorted(CONTRACT))
def test_contract_modules_do_not_count(tmp_path: Path, module: str) -> None:
    root = tmp_path / "pipeline"
    root.mkdir()
    (root / "stage.py").write_text(f"from {module} import x\n", encoding="utf-8")
    contract = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    contract.parent.mkdir(parents=True, exist_ok=True)
    contract.write_text("x = 1\n", encoding="utf-8")
    before = digest(root, "pipeline.stage")
    contract.write_text("x = 2\n", encoding="utf-8")
    assert digest(root, "pipeline.stage") == before


def test_other_stages_do_not_count_but_a_stage_itself_does(tmp_path: Path) -> None:
    root = tmp_path / "pipeline"
    (root / "stages").mkdir(parents=True)
    one, other = root / "stages" / "one.py", root / "stages" / "other.py"
    one.write_text("from pipeline.stages.other import Other\n", encoding="utf-8")
    other.write_text("class Other: ...\n", encoding="utf-8")
    before = digest(root, "pipeline.stages.one"), digest(root, "pipeline.stages.other")
    other.write_text("class Other: x = 1\n", encoding="utf-8")
    assert digest(root, "pipeline.stages.one") == before[0]
    assert digest(root, "pipeline.stages.other") != before[1]


def test_contract_modules_exist() -> None:
    root = Path(__file__).resolve().parents[3]
    assert all(root.joinpath(*module.split(".")).with_suffix(".py").is_file() for module in CONTRACT)


def test_cache_gives_the_same_digest(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "code.json"
    first = CodeDigests(package, cache)
    before = first.digest("toy.stage")
    first.save()
    assert cache.is_file()
    assert CodeDigests(package, cache).digest("toy.stage") == before == digest(package)


def test_cache_does_not_hide_a_change(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "code.json"
    first = CodeDigests(package, cache)
    before = first.digest("toy.stage")
    first.save()
    change(package, "deep", "constant = 22\n")
    assert CodeDigests(package, cache).digest("toy.stage") not in (before, "")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_broken_cache_is_made_again(package: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "code.json"
    cache.write_bytes(content)
    digests = CodeDigests(package, cache)
    assert digests.digest("toy.stage") == digest(package)
    digests.save()
    assert CodeDigests(package, cache).digest("toy.stage") == digest(package)
