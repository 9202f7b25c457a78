"""report.html in a real headless Chromium: nothing is fetched, nothing complains, keyboard and screen readers get all of it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.engine.record import SWEEP_NOTE, Outcome
from pipeline.measure.statistics import percentile_figure
from pipeline.report.drawing.plots import Band, Line, MemoryLimit, over_time
from pipeline.report.formats.html import render_html
from pipeline.report.parts import Picture
from pipeline.report.sections.memory_pictures import OVER_TIME, charts
from pipeline.report.sections.speed_charts import speed_charts
from pipeline.report.sections.sweep import sweep_part
from pipeline.report.words import ENGLISH
from tests.builders.house import outcomes_of
from tests.builders.records import bench_result, memory_use, outcome
from tests.builders.sweeps import cell, sweep
from tests.builders.views import scenarios, sweep_of, sweep_rows, view

TEMPLATES = Path(__file__).resolve().parents[3] / "templates"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (360, 1280)


def found() -> str:
    """Return the browser; without one skip, or fail in CI, which has to have it."""
    path = next((path for name in NAMES if (path := shutil.which(name))), "")
    if not path:
        reason = f"no Chromium on PATH ({', '.join(NAMES)}); Debian and Ubuntu: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = found()
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with something in every place, its charts drawn."""
    values = {
        "ttft_ms": [30.0 + number % 17 for number in range(64)],
        "ttft_warm_ms": [20.0 + number % 13 for number in range(64)],
        "itl_ms": [14.0 + (number * 7 % 50) / 10 for number in range(600)],
    }
    figures = {f"{name}_p50": percentile_figure(found, 0.5, "ms") for name, found in values.items()}
    samples = [{"t": float(at), "processes": 1, "pss_mib": 2000.0 + at, "rss_mib": 2100.0} for at in range(60)]
    lines = [Line("PSS", [(sample["t"], sample["pss_mib"]) for sample in samples])]
    drawn = [Picture(OVER_TIME, partial(over_time, "Memory over time", lines, [Band("serve", 0, 40)], [MemoryLimit("target", 2100)]))]
    first, second, speed, memory = scenarios()
    speed = replace(speed, charts=speed_charts(bench_result().model_copy(update={"figures": figures}), values))
    memory = replace(memory, charts=charts(outcomes_of({"measure-vram": outcome("measure-vram", memory_use())}), samples, drawn))
    plot = sweep_part(Outcome(SWEEP_NOTE, sweep(cell("a=1", 80, 300), cell("a=2", 90, 310)), None), []).charts
    shown = view(scenarios=[first, second, speed, memory], sweep=sweep_of(*sweep_rows(), charts=plot))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(TEMPLATES, shown, ENGLISH), encoding="utf-8")
    return path


def opened(browser: Browser, report: Path, **settings: Any) -> Page:
    page = browser.new_page(**settings)
    page.goto(report.as_uri())
    return page


def test_it_fetches_nothing_but_itself_and_nothing_complains(chromium: Browser, report: Path) -> None:
    page = chromium.new_page()
    heard: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("() => document.querySelectorAll('thead button').forEach((button) => button.click())")
    assert heard == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.title() == "NOT PASSED: vLLM PoC, SmolLM2"
    page.close()


def test_every_link_leads_to_a_place_in_the_page(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report)
    links = page.locator('a[href^="#"]')
    assert links.count() > 10
    astray = page.evaluate(
        """() => [...document.querySelectorAll("a")].map((a) => a.getAttribute("href"))
        .filter((href) => !href.startsWith("#") || !document.getElementById(href.slice(1)))"""
    )
    assert astray == []
    page.locator('nav a[href="#definitions"]').click()
    assert page.evaluate("location.hash") == "#definitions"
    assert page.locator("#definitions").evaluate("e => e.getBoundingClientRect().top < innerHeight")
    page.close()


def test_sorting_and_skipping_work_by_keyboard(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    table = page.locator("table.matrix")
    first = table.locator("tbody tr").locator("th")
    assert first.all_text_contents() == ["a", "b"]
    button = table.locator("thead button").nth(1)
    button.focus()
    for state, order in (("ascending", ["b", "a"]), ("descending", ["a", "b"]), ("ascending", ["b", "a"])):
        page.keyboard.press("Enter")
        assert table.locator("thead th").nth(1).get_attribute("aria-sort") == state
        assert first.all_text_contents() == order
        assert button.evaluate("e => e === document.activeElement")
    page.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing(chromium: Browser, report: Path, scheme: Any, width: int) -> None:
    page = opened(chromium, report, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    outcome = page.evaluate("() => axe.run()")
    told = [(rule["id"], node["html"][:200], node["failureSummary"]) for rule in outcome["violations"] for node in rule["nodes"]]
    assert told == []
    assert len(outcome["passes"]) > 20
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_but_tables_and_charts_scrolls_sideways(chromium: Browser, report: Path, width: int) -> None:
    page = opened(chromium, report, viewport={"width": width, "height": 800})
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hidden = page.evaluate(
        "() => [...document.querySelectorAll('.scroll')].filter((b) => b.scrollWidth > b.clientWidth && b.tabIndex < 0).length"
    )
    assert hidden == 0
    page.close()


def test_printed_it_is_light_whole_and_a_pdf(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report, color_scheme="dark", viewport={"width": 720, "height": 1000})
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".scroll, pre")].filter((box) => getComputedStyle(box).overflowX !== "visible").length"""
    )
    assert cut == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    shut = page.evaluate(
        "() => [...document.querySelectorAll('details table')].filter((t) => !t.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert shut == 0
    page.close()


def test_without_scripts_all_is_there_but_sorting(chromium: Browser, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("thead button").count() == 0
    assert page.locator("svg[role=img]").count() >= 5
    page.locator("summary").first.click()
    assert page.locator("details").first.locator("pre, table").first.is_visible()
    context.close()
