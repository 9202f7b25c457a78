"""How many prompts a level takes, so that it lasts long enough whatever its warm-up said; no request is sent here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.client.answer import Answer
from pipeline.client.endpoint import Endpoint
from pipeline.config.schema import BenchConfig
from pipeline.engine.workspace import Workspace
from pipeline.load import phases
from pipeline.load.phases import LoadPhases
from pipeline.load.spread import Batch, Least
from pipeline.terminal import Silent


def scripted(patch: pytest.MonkeyPatch, paces: Sequence[float], least_s: float) -> LoadPhases:
    """Return phases whose loops answer so many requests per second, one loop after the other."""
    told = iter(paces)

    def loop(_target: Endpoint, payloads: Sequence[Any], concurrency: int, *rest: Any) -> Batch:
        pace, least = next(told), rest[-1]
        count = len(payloads)
        if isinstance(least, Least):
            count = min(count, max(least.requests, round(pace * least.seconds)))
        return Batch([Answer(0, 1, 2, [1, 2], tokens=2)] * count, count / pace, 0.0)

    patch.setattr(phases, "loop", loop)
    settings = BenchConfig(requests_per_level=8, level_min_s=least_s)
    return LoadPhases("m", Endpoint(""), settings, Workspace(Path(), Silent()))


def names(made: LoadPhases) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in made.lines:
        counts[line["phase"]] = counts.get(line["phase"], 0) + 1
    return counts


@pytest.mark.parametrize(
    ("paces", "warmups", "requests"),
    [((10, 10), 4, 100), ((10, 30), 4, 300), ((1, 100, 100), 4 + 40, 1000), ((0.1, 100, 100), 4 + 8, 1000), ((10, 0.1), 4, 8)],
    ids=["steady", "faster", "kernels compiled", "hardly started", "slower than ever"],
)
def test_a_level_lasts_whatever_its_warm_up_said(
    paces: tuple[float, ...], warmups: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scripted(monkeypatch, paces, 10)
    batch = made.level(4)
    assert (batch.warmups, len(batch.answers)) == (warmups, requests)
    assert batch.wall_s >= 10
    assert names(made) == {"warm-up c4": warmups, "closed loop c4": requests}
    assert made.answered == warmups + requests, "the ledger counts every request"


def test_a_level_without_a_least_time_has_its_least_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scripted(monkeypatch, (10, 10), 0)
    assert len(made.level(4).answers) == 8
    assert len(scripted(monkeypatch, (10, 10), 0).level(16).answers) == 16, "a loop is full at least once"
