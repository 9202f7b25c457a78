"""Which direction of a figure is better: every figure that a stage makes is listed, once, with what it is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.client.tokens import Asker
from pipeline.config.schema import DeterminismConfig
from pipeline.contexts import RequestLimits
from pipeline.load.capacity import capacity_figure
from pipeline.load.spread import Batch
from pipeline.measure.directions import DIRECTIONS, direction_of
from pipeline.measure.figures import Figure
from pipeline.measure.memory import Budget, States, series_figures
from pipeline.stages import bench, test_determinism, test_router
from pipeline.suite import BOUND, FREE
from tests.builders.records import bench_result, determinism, memory_use, router_result

ROOT = Path(__file__).resolve().parents[3]
STAGES = {"bench", "test-router", "test-determinism", "measure-vram"}


def on_record(content: object, stage: str) -> Iterator[tuple[str, str]]:
    """Yield (metric, unit) of each figure in the JSON of a record or a report."""
    if isinstance(content, list):
        for entry in content:
            yield from on_record(entry, stage)
    if isinstance(content, dict):
        figures = content.get("figures")
        if isinstance(figures, list):
            yield from ((f"{figure['stage']}.{figure['name']}", figure["unit"]) for figure in figures)
        elif isinstance(figures, dict) and stage:
            yield from ((f"{stage}.{name}", figure["unit"]) for name, figure in figures.items())
        for entry in content.values():
            yield from on_record(entry, stage)


def made() -> dict[str, str]:
    """Return each figure that stages make and that records and reports hold, with its unit."""
    found: dict[str, str] = {}
    for path in [*sorted((ROOT / "tests" / "records").rglob("*.json")), ROOT / "report.json"]:
        stage = {"soak": "measure-vram"}.get(path.stem, path.stem)
        found |= on_record(json.loads(path.read_text(encoding="utf-8")), stage if stage in STAGES else "")
    built = {"bench": bench_result(), "test-router": router_result(), "test-determinism": determinism(), "measure-vram": memory_use()}
    parts: dict[str, dict[str, Figure]] = {stage: record.figures for stage, record in built.items()}
    arms = [f"{arm}{form}" for arm in (FREE, BOUND) for form in ("", "_unary")]
    router = {f"{arm}_{name}": figure for arm in arms for name, figure in test_router.router_figures([]).items()}
    none, limits, record = Batch([], 1, 0), RequestLimits(), bench_result()
    parts["bench"] = {
        **bench.lone_figures(none, none, [], []),
        **bench.warm_figures(none, 1),
        **bench.closed_figures(record.levels[0], {4: none}, limits),
        **bench.open_figures({"poisson": none, "constant": none}, limits),
        **bench.offered_figures(record.open_levels),
        "capacity_req_s": capacity_figure([]),
    }
    parts["test-router"] = {**parts["test-router"], **router, **test_router.constraint_cost([], [])}
    asker = Asker(Endpoint(""), "", DeterminismConfig())
    for constrained in (False, True):
        parts["test-determinism"] |= test_determinism.series_figures(test_determinism.Series(asker, {}, constrained), [], [])
    for series in ("vram", "host_pss", "host_rss"):
        parts["measure-vram"] |= series_figures(series, [], [(0, 1)], [], Budget(mib=64, horizon_h=24), "no sample")
    parts["measure-vram"] |= States().figures("no driver")
    return found | {f"{stage}.{name}": figure.unit for stage, figures in parts.items() for name, figure in figures.items()}


MADE = made()


@pytest.mark.parametrize("metric", sorted(MADE))
def test_every_figure_is_listed_once_with_a_kind_of_its_unit_or_why_it_has_none(metric: str) -> None:
    entries = [entry for entry in DIRECTIONS if re.fullmatch(entry.pattern, metric)]
    assert entries == [direction_of(metric)]
    (entry,) = entries
    assert (entry.better is None) == (entry.kind is None) == bool(entry.why)
    assert entry.kind is None or entry.kind.unit == MADE[metric]
