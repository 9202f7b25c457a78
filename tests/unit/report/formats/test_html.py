"""report.html's pure parts: what is marked up and what is escaped, sorting keys, and the same bytes each time."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.message import Code, Digits, _
from pipeline.report.cells import Amount, Cell, Measured, Ruling, Target, Verbatim, glued, source
from pipeline.report.definitions import Definition
from pipeline.report.drawing.charts import inlined
from pipeline.report.formats.html import Html, digest, numeric, render_html, shade
from pipeline.report.parts import Chart, SweepPart
from pipeline.report.sections.speed_charts import speed_charts
from pipeline.report.view import View
from pipeline.report.words import Words, words
from tests.builders.records import bench_result
from tests.builders.views import HEADER, scenarios, sweep_of, sweep_rows, text_in_every_place, view

TEMPLATES = Path(__file__).resolve().parents[4] / "templates"
EN = words("en", TEMPLATES)
EVIL = "<script>alert(1)</script>"
CELLS: list[Cell] = [
    EVIL,
    Code(EVIL),
    Digits(EVIL),
    _("{a} and {b}", a=EVIL, b=Code(EVIL)),
    Measured(1.0, EVIL, 1, aside=EVIL),
    Measured(None, reason=EVIL),
    Target("<", 1.0, EVIL, (EVIL,)),
    Ruling("FAIL", EVIL, EVIL),
    source(EVIL, EVIL),
    Amount(EVIL, 1.0),
    Verbatim(EVIL),
    (Measured(1.0, EVIL), Measured(2.0, EVIL)),
]


def markup(cell: Cell) -> str:
    return str(Html(EN).markup(cell))


def test_code_is_an_element_that_may_break_after_a_slash_and_backticks_of_others_are_none() -> None:
    assert markup(glued("a ", Code("b/c"), " `d`")) == "a <code>b/<wbr>c</code> `d`"
    assert markup(source("bench", "x")) == "<code>artifacts/<wbr>bench.json</code> → <code>x</code>"


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
def test_no_cell_lets_markup_of_others_through(cell: Cell) -> None:
    bare = re.sub(r"</?(?:code|wbr)>", "", markup(cell))
    assert "alert" in bare
    assert not set(bare) & set("<>")


@given(st.text())
def test_any_text_is_escaped(text: str) -> None:
    assert not set(markup(_("{text} and {code}", text=text, code=text))) & set("<>")


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (Measured(46.4, "ms", 3), "46.4"),
        (Measured(None), ""),
        (Target("<", 500.0, "ms"), "500"),
        (Target("<", "plan"), ""),
        (Amount("0.08, 0.21 ms", 0.08), "0.08"),
        (Digits("-1.6"), "-1.6"),
        (7, "7"),
        ("7 of 9", ""),
    ],
)
def test_a_cell_is_sorted_by_its_value(cell: Cell, key: str) -> None:
    assert Html(EN).key(cell) == key


def test_a_column_is_numeric_where_each_cell_is_a_number_or_empty() -> None:
    rows: list[list[Cell]] = [[Amount("1 s", 1.0), "yes", "–"], ["–", 2, "–"]]
    assert [numeric(rows, column) for column in range(3)] == [True, False, False]


def test_shade_is_the_share_of_the_row() -> None:
    assert [shade(count, [0, 1, 8]) for count in (0, 1, 8)] == [0, 1, 8]
    assert shade(0, [0, 0]) == 0


def page(shown: View | None = None, said: Words = EN) -> str:
    return render_html(TEMPLATES, shown or view(), said)


class Echo(dict[str, str]):
    """A catalogue in which every text stands for itself."""

    def __missing__(self, text: str) -> str:
        return text


def test_the_same_records_give_the_same_bytes() -> None:
    assert page() == page()


def test_the_title_says_the_verdict_and_the_language_is_told() -> None:
    assert "<title>NOT PASSED: vLLM PoC, SmolLM2</title>" in page()
    assert '<html lang="en">' in page()
    assert '<html lang="tr">' in page(said=Words("tr", Echo()))


def test_the_policy_allows_this_style_and_script_alone() -> None:
    text = page()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    (style,), (script,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL), re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy.startswith("default-src &#39;none&#39;")
    assert digest(style) in policy.replace("&#43;", "+")
    assert digest(script) in policy.replace("&#43;", "+")
    assert "style=" not in text.replace("font-style=", "")


def test_every_link_of_the_page_leads_somewhere_and_no_id_is_there_twice() -> None:
    shown = scenarios()
    shown[2] = replace(shown[2], charts=speed_charts(bench_result(), {}))
    text = page(view(scenarios=shown))
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^" ]+)"', text)) <= set(ids)


def test_without_a_gate_or_a_figure_the_page_still_stands() -> None:
    text = page(
        view(targets=[], criteria=[], failures=[], alternatives=[], environment=[], command="", proofs=[], not_measured=[], definitions=[])
    )
    assert "Nothing was left out." in text


def test_a_sweep_is_a_table_with_its_picture_and_without_one_the_page_says_how_to_have_one() -> None:
    chart = Chart("sweep-plot", "Plot", drawings=[inlined(lambda _words: "<svg><style>x</style><circle/></svg>")], wide=True)
    text = page(view(sweep=sweep_of(*sweep_rows(), charts=[chart])))
    part = text.split('<h3 id="sweep">')[1].split("</section>")[0]
    assert "Recommendation: a=1." in part
    assert "The rule: the best" in part
    assert "<svg><circle/></svg>" in part
    head, *rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in re.findall(r"<tr>.*?</tr>", part, re.DOTALL)]
    assert head == f"Cell State Verdict {' '.join(HEADER)} Model Source"
    assert rows[0].startswith("a=1 measured today PASS (2 of 2 gates) 5 MiB 9 MiB n = 2; PSS 60 tok/s n = 9; 95 %: 40 to 80 ")
    assert rows[0].endswith("n = 9; 95 %: 40 to 80 Small a/ r.json")
    assert rows[1] == f"a=2 skipped: cannot fit{' NOT MEASURED' * 8} Large no report"
    assert rows[2].startswith("a=3 measured today NOT PASSED (1 of 2 gates) 5 MiB")
    none = page(view(sweep=SweepPart("Sweep", glued("no sweep is on record. ", Code("./inv sweep"), " runs it"))))
    assert "no sweep is on record. <code>./<wbr>inv sweep</code> runs it" in none
    assert "Recommendation" not in none


def test_whatever_others_wrote_is_escaped_wherever_it_stands() -> None:
    text = page(replace(text_in_every_place(EVIL), definitions=[Definition("ttft", EVIL, EVIL)]))
    assert text.count("<script>") == 1
    assert text.count("alert(1)") > 40
