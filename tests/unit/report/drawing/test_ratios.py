"""The picture of a comparison: well-formed, the same bytes each time, all inside its axes, and none of nothing."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.drawing.plots import WIDTH
from pipeline.report.drawing.ratios import FURTHEST, MOST_TICKS, VERDICTS, Ratio, ratios, span, ticks

SVG = "{http://www.w3.org/2000/svg}"
POSITIVE = st.floats(0, 1e300)
ROWS = st.lists(
    st.builds(
        Ratio,
        label=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30),
        ratio=POSITIVE,
        low=st.none() | POSITIVE,
        high=st.none() | POSITIVE,
        noise=st.floats(0, 100),
        verdict=st.sampled_from(VERDICTS),
    ),
    min_size=1,
    max_size=9,
)
WORSE = Ratio("bench.ttft_ms_p50", 1.5, 1.4, 1.6, 0.1, "worse")
SAME = Ratio("bench.decode_tok_s_p50", 1.0, 0.98, 1.02, 0.1, "same")


def tree(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def numbers(node: ElementTree.Element, *names: str) -> list[float]:
    return [float(node.attrib[name]) for name in names]


@given(rows=ROWS, left_out=st.integers(0, 9))
def test_it_is_well_formed_the_same_each_time_and_inside_the_picture(rows: list[Ratio], left_out: int) -> None:
    made = ratios("A <title> & more", rows, left_out)
    assert made == ratios("A <title> & more", rows, left_out)
    root = tree(made)
    height = float(root.attrib["height"])
    for line in root.iter(f"{SVG}line"):
        assert all(0 <= x <= WIDTH for x in numbers(line, "x1", "x2"))
        assert all(0 <= y <= height for y in numbers(line, "y1", "y2"))
    for rect in root.iter(f"{SVG}rect"):
        assert all(size >= 0 for size in numbers(rect, "width", "height"))
    assert len(list(root.iter(f"{SVG}circle"))) == len(rows)
    assert ("without a ratio" in made) == (left_out > 0)


def test_nothing_makes_no_picture() -> None:
    assert ratios("A", [], 3) == ""


def test_each_row_stands_where_its_ratio_is_and_says_what_it_shows() -> None:
    root = tree(ratios("B against A", [WORSE, SAME], 2))
    worse, same = root.iter(f"{SVG}circle")
    (one,) = [line for line in root.iter(f"{SVG}line") if line.attrib["class"] == "axis"]
    (at_one,) = numbers(one, "x1")
    assert numbers(same, "cx") == [at_one]
    assert numbers(worse, "cx")[0] > at_one
    assert (worse.attrib["class"], same.attrib["class"]) == ("f1", "f0")
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"B against A", "bench.ttft_ms_p50", "1.500 worse", "1.000 same"} <= set(texts)
    assert next(worse.iter(f"{SVG}title")).text == "bench.ttft_ms_p50: 1.500 (1.400 to 1.600), noise 10 %, worse"


def test_halved_and_doubled_are_as_far_from_one() -> None:
    rows = [Ratio("down", 0.5, None, None, 0.1, "worse"), Ratio("up", 2.0, None, None, 0.1, "better")]
    root = tree(ratios("A", rows, 0))
    down, up = (numbers(circle, "cx")[0] for circle in root.iter(f"{SVG}circle"))
    (one,) = [numbers(line, "x1")[0] for line in root.iter(f"{SVG}line") if line.attrib["class"] == "axis"]
    assert one - down == pytest.approx(up - one, abs=0.21)


def test_an_interval_is_a_line_with_ends_and_without_one_there_is_only_the_dot() -> None:
    def coloured(row: Ratio) -> int:
        return len(re.findall(r'class="line s\d"', ratios("A", [row], 0)))

    assert coloured(WORSE) == 3
    assert coloured(Ratio("x", 1.5, None, None, 0.1, "worse")) == 0


@pytest.mark.parametrize("ratio", [0.0, 1e9])
def test_what_lies_too_far_out_stands_at_the_edge_with_its_number(ratio: float) -> None:
    low, high = span([Ratio("x", ratio, None, None, 0.0, "worse")])
    assert 1 / FURTHEST / 2 < low < high < FURTHEST * 2
    assert f"{ratio:.3f} worse" in ratios("A", [Ratio("x", ratio, None, None, 0.0, "worse")], 0)


@given(low=st.floats(1e-4, 0.85), high=st.floats(1.18, 1e4))
def test_ticks_are_few_round_rising_and_have_one_among_them(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1.0 in found
    assert found == sorted(found)
    assert len(found) <= MOST_TICKS
    assert all(low <= tick <= high for tick in found)
    assert all(math.isclose(float(f"{tick:g}"), tick) for tick in found)
