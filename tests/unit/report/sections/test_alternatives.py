"""The guide's models, and what was measured of them."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.config.schema import ReportConfig
from pipeline.contexts import Invocation
from pipeline.engine.record import SWEEP_NOTE, Artifact, Failure
from pipeline.report.formats.markdown import TableCells
from pipeline.report.gates import Judged
from pipeline.report.inputs import Inputs
from pipeline.report.sections.alternatives import alternatives
from pipeline.report.sweep import CellRecord
from tests.builders.house import ALTERNATIVES, outcomes_of
from tests.builders.records import (
    all_good,
    outcome,
)
from tests.builders.sweeps import cell, failed, skipped, sweep

ROOT = Path(__file__).resolve().parents[4]


def measured_of(at: int, results: Mapping[str, Artifact | Failure | None] | None = None, *cells: CellRecord) -> str:
    """Return what the row of one of the guide's models says was measured."""
    made = all_good() | dict(results or {}) | ({SWEEP_NOTE: sweep(*cells)} if cells else {})
    judged = Judged([], 0, outcomes_of({name: outcome(name, result) for name, result in made.items()}))
    inputs = Inputs(ReportConfig(), ALTERNATIVES, Invocation(profile="cpu"), judged, ROOT)
    row = alternatives(inputs)[at]
    known = ALTERNATIVES[at]
    assert (row.model, row.size, row.vram, row.use_case) == (known.model, known.size, known.vram, known.use_case)
    return TableCells().figure(row.measured)


def test_alternative_of_this_profile_shows_what_was_measured() -> None:
    assert measured_of(0) == "NOT_MEASURED, **55 tok/s** (n = 100; 95 %: ≥ 52)"


def test_alternative_of_another_profile_says_how_to_measure_it() -> None:
    assert measured_of(1) == "not measured in this run; `./inv all --profile large`"


def test_alternative_without_profile_is_not_measured() -> None:
    assert measured_of(2) == "not measured in this run"


def test_alternative_of_this_profile_without_records_is_not_measured() -> None:
    assert measured_of(0, {"bench": None, "measure-vram": None}) == "NOT_MEASURED"


def test_alternative_of_another_profile_points_to_the_cells_of_it_in_the_sweep() -> None:
    cells = [one.model_copy(update={"profile": "large"}) for one in (cell("a"), failed("b"))]
    assert measured_of(1, {}, *cells, skipped("c")) == "not measured in this run; in the sweep below: 1 measured, 1 failed"
    assert measured_of(1, {}, skipped("c")) == "not measured in this run; `./inv all --profile large`"
