"""Which code counts for which record: rewording the report measures nothing again, and a section counts for the report."""

import json
from pathlib import Path

import pytest

from pipeline.dag import MEASURING, STAGES
from pipeline.engine.code import CodeDigests

ROOT = Path(__file__).resolve().parents[3]


def modules(name: str, cache: Path) -> set[str]:
    """Return the modules whose code counts for that stage's record."""
    digests = CodeDigests(ROOT / "pipeline", cache)
    digests.digest(next(stage for stage in STAGES if stage.name == name).function.__module__)
    digests.save()
    return set(json.loads(cache.read_text(encoding="utf-8")))


def test_four_stages_measure() -> None:
    assert MEASURING == ("test-router", "test-determinism", "bench", "measure-vram")


@pytest.mark.parametrize("name", MEASURING)
def test_no_code_of_the_report_counts_for_what_is_measured(name: str, tmp_path: Path) -> None:
    assert [module for module in modules(name, tmp_path / "code.json") if module.startswith("pipeline.report")] == []


def test_every_module_of_the_report_that_it_renders_with_counts_for_it(tmp_path: Path) -> None:
    found = modules("report", tmp_path / "code.json")
    aside = {"pipeline.report.drawing.ratios", "pipeline.report.formats.summary"}  # of `compare`, and of the job summary
    paths = [path for path in (ROOT / "pipeline" / "report").rglob("*.py") if path.name != "__init__.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    assert names - found == aside
