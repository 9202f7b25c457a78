"""The pictures: well-formed, the same bytes each time, all inside the axes, and none of nothing."""

import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.drawing import plots
from pipeline.report.drawing.plots import (
    BUCKETS,
    LEFT,
    PLOT_HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Band,
    Bar,
    Line,
    MemoryLimit,
    has_parts,
    has_times,
    outline,
    steps,
)
from pipeline.report.words import ENGLISH

SVG = "{http://www.w3.org/2000/svg}"
POINTS = st.lists(st.tuples(st.floats(-1e5, 1e6), st.floats(0, 1e6)), min_size=2, max_size=300, unique_by=lambda point: round(point[0], 3))
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30)
EDGE = 0.051  # coordinates are rounded


def over_time(title: str, lines: list[Line], bands: list[Band], targets: list[MemoryLimit]) -> str:
    return plots.over_time(title, lines, bands, targets, ENGLISH)


def stacked(title: str, bars: list[Bar], target: MemoryLimit | None) -> str:
    return plots.stacked(title, bars, target, ENGLISH)


def tree(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def drawn(svg: str) -> list[tuple[float, float]]:
    """Return the coordinates of all lines' points."""
    paths = [path.attrib["d"] for path in tree(svg).iter(f"{SVG}path")]
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@given(POINTS, st.floats(0, 1e6))
def test_every_sample_and_the_target_are_inside_the_axes(points: list[tuple[float, float]], target: float) -> None:
    svg = over_time("Memory", [Line("VRAM", points)], [], [MemoryLimit("target", target)])
    seen = drawn(svg)
    assert len(seen) == len(points)
    assert all(LEFT - EDGE <= x <= WIDTH - RIGHT + EDGE and TOP - EDGE <= y <= TOP + PLOT_HEIGHT + EDGE for x, y in seen)
    (line,) = [line for line in tree(svg).iter(f"{SVG}line") if line.attrib["class"] == "target"]
    assert TOP - EDGE <= float(line.attrib["y1"]) <= TOP + PLOT_HEIGHT + EDGE


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=6).filter(any), st.floats(1, 1e5))
def test_every_part_and_the_target_are_inside_the_bars_axis(sizes: list[float], target: float) -> None:
    svg = stacked("Parts", [Bar("log", [(f"part {index}", size) for index, size in enumerate(sizes)])], MemoryLimit("target", target))
    parts = [
        box for box in tree(svg).iter(f"{SVG}rect") if re.fullmatch(r"f\d", box.attrib.get("class", "")) and box.attrib["height"] != "10.0"
    ]
    assert len(parts) == sum(size > 0 for size in sizes)
    at = float(LEFT)
    for box in parts:
        assert float(box.attrib["x"]) == pytest.approx(at, abs=0.2)
        at = float(box.attrib["x"]) + float(box.attrib["width"])
    assert at <= WIDTH - RIGHT + 0.2


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_is_shown_as_it_is(title: str, label: str, band: str) -> None:
    lines, bands = [Line(label, [(0.0, 1.0), (100.0, 2.0)])], [Band(band, 0.0, 100.0)]
    svg = over_time(title, lines, bands, [MemoryLimit(label, 3.0)])
    texts = [element.text or "" for element in tree(svg).iter(f"{SVG}text")]
    assert title in texts
    assert label in texts
    assert band in texts
    bars = tree(stacked(title, [Bar(label, [(band, 5.0)])], None))
    assert {title, label, band} <= {element.text or "" for element in bars.iter(f"{SVG}text")}


def test_the_same_input_gives_the_same_bytes() -> None:
    def made() -> str:
        points = [(number * 0.2, 4000.0 + number % 7) for number in range(5000)]
        return over_time("m", [Line("a", points), Line("b", points[::-1])], [Band("serve", 0, 500)], [MemoryLimit("t", 4768)])

    assert made() == made()


@pytest.mark.parametrize("lines", [[], [Line("a", [])], [Line("a", [(1.0, 2.0)])], [Line("a", [(1.0, 2.0), (1.0, 3.0)])]])
def test_nothing_measured_no_picture_over_time(lines: list[Line]) -> None:
    assert not has_times(lines)


@pytest.mark.parametrize("bars", [[], [Bar("log", [])], [Bar("log", [("weights", 0.0), ("rest", -5.0)])]])
def test_nothing_known_no_picture_of_the_parts(bars: list[Bar]) -> None:
    assert not has_parts(bars)


def test_a_line_without_samples_is_not_in_the_legend() -> None:
    svg = over_time("m", [Line("VRAM", []), Line("host", [(0.0, 1.0), (1.0, 1.0)])], [], [])
    texts = [element.text for element in tree(svg).iter(f"{SVG}text")]
    assert "host" in texts
    assert "VRAM" not in texts


def test_a_gap_breaks_the_line() -> None:
    even = [(float(at), 5.0) for at in range(20)]
    (whole,) = tree(over_time("m", [Line("a", even)], [], [])).iter(f"{SVG}path")
    (broken,) = tree(over_time("m", [Line("a", [*even[:8], *even[12:]])], [], [])).iter(f"{SVG}path")
    assert (whole.attrib["d"].count("M"), broken.attrib["d"].count("M")) == (1, 2)


def test_stages_are_cut_to_the_picture_and_those_outside_left_out() -> None:
    bands = [Band("before", -9, -1), Band("serve", -5, 50), Band("engine", 10, 20, phase=True), Band("after", 101, 110)]
    svg = over_time("m", [Line("a", [(0.0, 1.0), (100.0, 1.0)])], bands, [])
    boxes = {box[0].text: box.attrib for box in tree(svg).iter(f"{SVG}rect") if box.attrib["class"] in ("band", "phase")}
    assert set(boxes) == {"serve, 50.0 s", "engine, 10.0 s"}
    assert float(boxes["serve, 50.0 s"]["x"]) == LEFT
    assert boxes["engine, 10.0 s"]["y"] != boxes["serve, 50.0 s"]["y"]


def test_a_stage_too_narrow_for_its_name_is_named_beneath() -> None:
    bands = [Band("bench", 0, 90), Band("measure-vram", 90, 99.6), Band("engine", 0, 1, phase=True)]
    svg = over_time("m", [Line("a", [(0.0, 1.0), (100.0, 1.0)])], bands, [])
    texts = [element.text for element in tree(svg).iter(f"{SVG}text")]
    assert "bench" in texts
    assert "not named above: measure-vram 90–100 s" in texts
    assert "not named above" not in over_time("m", [Line("a", [(0.0, 1.0), (100.0, 1.0)])], bands[:1], [])


@given(st.integers(2 * BUCKETS + 1, 3000), st.integers())
def test_a_long_line_keeps_its_highest_and_lowest(n: int, seed: int) -> None:
    source = random.Random(seed)
    values = [source.uniform(0, 1e4) for _ in range(n)]
    points = [(float(at), value) for at, value in enumerate(values)]
    kept = outline(points)
    assert len(kept) <= 2 * BUCKETS
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert {min(values), max(values)} <= {value for _, value in kept}


@given(st.floats(1e-3, 1e7))
def test_ticks_reach_the_top_in_few_even_steps(top: float) -> None:
    ticks = steps(top)
    assert ticks[0] == 0
    assert ticks[-2] < top <= ticks[-1] * (1 + 1e-9)
    assert 3 <= len(ticks) <= 10


def test_a_picture_has_colours_for_dark_and_light() -> None:
    svg = over_time("m", [Line("a", [(0.0, 1.0), (1.0, 1.0)])], [], [])
    light, dark = svg.split("@media (prefers-color-scheme:dark){")
    for part in (".back{fill:", "text{", ".s0{stroke:", ".grid{stroke:", ".target{stroke:"):
        assert part in light
        assert part in dark
