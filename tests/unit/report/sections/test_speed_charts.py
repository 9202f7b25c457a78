"""The charts of speed: the values behind the figures, or why they cannot be drawn."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from pipeline.measure.figures import not_measured
from pipeline.measure.statistics import percentile_figure
from pipeline.report.drawing.charts import BOTTOM, LEFT, RIGHT, TOP
from pipeline.report.sections.speed_charts import speed_charts, throughput_chart
from pipeline.report.words import ENGLISH
from tests.builders.records import bench_result


def bench(**changes: Any) -> Any:
    return bench_result().model_copy(update=changes)


def spoken(svg: str) -> str:
    tree = ElementTree.fromstring(svg)
    return " ".join(child.text or "" for child in tree if child.tag in ("title", "desc"))


def test_a_latency_chart_shows_the_values_behind_the_figure() -> None:
    values = [float(value) for value in range(40, 104)]
    data = bench(figures={"ttft_ms_p50": percentile_figure(values, 0.5, "ms"), "ttft_warm_ms_p50": not_measured("ms", "no hit")})
    chart = speed_charts(data, {"ttft_ms": values})[0]
    assert chart.keys == ["cold prefix cache"]
    assert chart.note == "warm prefix cache: no hit."
    assert "n = 64, from 40 to 103 ms, median 71 ms" in spoken(chart.drawings[0](ENGLISH))
    assert chart.tables[0].rows == [["cold prefix cache", 64, "40", "43", "55", "71", "87", "100", "103", "103"]]
    assert sum(int(str(row[1])) for row in chart.tables[1].rows) == 64
    for drawing in chart.drawings:
        ((path,),) = [[each.attrib["d"] for each in ElementTree.fromstring(drawing(ENGLISH)).iter("path")]]
        points = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
        assert all(LEFT <= x <= RIGHT and TOP - 0.1 <= y <= BOTTOM for x, y in points)


def test_a_chart_without_its_stamps_says_so() -> None:
    data = bench(figures={"ttft_ms_p50": percentile_figure([1.0, 2.0], 0.5, "ms")})
    ttft, itl, *_ = speed_charts(data, {})
    assert ttft.drawings == []
    assert "the raw stamps (artifacts/raw/bench.jsonl) are gone or cannot be read" in ttft.note
    assert itl.note == "Not drawn: concurrency 1: not measured."


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.5], [8.0, 9.0]])
def test_stamps_of_another_run_are_not_drawn(values: list[float]) -> None:
    data = bench(figures={"ttft_ms_p50": percentile_figure([1.0, 2.0, 2.0], 0.5, "ms")})
    assert "are not those of the figures" in speed_charts(data, {"ttft_ms": values})[0].note


def test_a_far_tail_is_told_not_drawn() -> None:
    values = [10.0 + number / 100 for number in range(400)] + [900.0]
    chart = speed_charts(bench(figures={"itl_ms_p50": percentile_figure(values, 0.5, "ms")}), {"itl_ms": values})[1]
    assert chart.note.startswith("1 values beyond 27.9 ms are not drawn, the highest 900 ms")
    assert len(chart.drawings) == 2


def test_throughput_leaves_out_what_is_invalid_and_says_so() -> None:
    (level,) = bench().levels
    levels = [
        level.model_copy(update={"concurrency": 1, "throughput_tok_s": 55.0}),
        level,
        level.model_copy(update={"concurrency": 8, "invalid": "slow"}),
    ]
    chart = throughput_chart(bench(levels=levels))
    assert chart.note == "Left out as INVALID: concurrency 8."
    assert [row[:2] for row in chart.tables[0].rows] == [[1, "55"], [4, "110"]]
    assert "whole loop: 1: 55 tok/s, 4: 110 tok/s" in spoken(chart.drawings[0](ENGLISH))
    assert throughput_chart(bench(levels=levels[2:])).drawings == []
    assert throughput_chart(bench(levels=[])).note.startswith("Not drawn")
