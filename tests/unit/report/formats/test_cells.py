"""Cells in Markdown: figures, and what others wrote."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.measure.digits import number
from pipeline.measure.figures import Figure, not_measured
from pipeline.message import Code
from pipeline.report.cells import glued, measured
from pipeline.report.formats.markdown import TableCells
from tests.builders.records import (
    figure,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0, "0"),
        (1, "1"),
        (0.5, "0.5"),
        (55.449, "55.4"),
        (99.96, "100"),
        (100, "100"),
        (1234.6, "1235"),
        (1e6, "1000000"),
        (0.00123, "0.00123"),
        (-55.449, "-55.4"),
        (-1234.6, "-1235"),
    ],
)
def test_number_has_three_significant_digits_and_is_whole_from_100(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(1e-9, 1e9))
@example(1.234e-5)
def test_number_is_never_in_powers_of_ten_and_close(value: float) -> None:
    assert "e" not in number(value)
    assert float(number(value)) == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (figure(40, "ms"), "**40 ms** (n = 100)"),
        (figure(40, "ms", high=45), "**40 ms** (n = 100; 95 %: ≤ 45)"),
        (figure(40, "ms", low=35), "**40 ms** (n = 100; 95 %: ≥ 35)"),
        (figure(40, "ms", 64, 35, 45), "**40 ms** (n = 64; 95 %: 35 to 45)"),
        (figure(0, "%"), "**0 %** (n = 100)"),
        (not_measured("ms", "why"), "NOT_MEASURED"),
        (None, "NOT_MEASURED"),
    ],
)
def test_measured_words(made: Figure | None, words: str) -> None:
    assert TableCells().figure(measured(made)) == words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("a\\|b", "a\\\\\\|b"),
        ("<details>", "&lt;details>"),
        ("</td>", "&lt;/td>"),
        (5, "5"),
        ("< 500", "< 500"),
        (Code("a|<b>"), "`a\\|<b>`"),
        (glued("`x` ", Code("y")), "\\`x\\` `y`"),
        (glued("<", "b>"), "&lt;b>"),
    ],
)
def test_cell_keeps_its_content_in_the_cell(value: str | int, shown: str) -> None:
    assert TableCells().cell(value) == shown


@given(st.text())
@example("a\rb")
@example("a\\|b")
def test_cell_is_one_line_without_an_open_pipe(text: str) -> None:
    shown = TableCells().cell(text)
    assert not set(shown) & {"\n", "\r"}  # both end a line in CommonMark
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")
