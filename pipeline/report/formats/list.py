"""The files that a report is written to. Nothing else lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import ReportConfig
from pipeline.report.formats.document import Document, places, text_of
from pipeline.report.formats.html import render_html
from pipeline.report.formats.junit import junit
from pipeline.report.formats.markdown import render
from pipeline.report.formats.openmetrics import openmetrics
from pipeline.report.view import View
from pipeline.report.words import Words


@dataclass(frozen=True)
class Content:
    """What a format makes its text of: the report for people, in their language, and the report for programs."""

    view: View
    document: Document
    words: Words
    settings: ReportConfig
    templates: Path


@dataclass(frozen=True)
class Format:
    """One file of a report: where it goes, relative to the project, and its text."""

    path: Callable[[ReportConfig], str]
    text: Callable[[Content], str]


FORMATS: tuple[Format, ...] = (
    Format(lambda settings: settings.document, lambda of: text_of(of.document)),
    Format(lambda settings: settings.output, lambda of: render(of.templates, of.view, of.words, places(text_of(of.document)))),
    Format(lambda settings: settings.page, lambda of: render_html(of.templates, of.view, of.words)),
    Format(
        lambda _settings: "artifacts/junit.xml",
        lambda of: junit(of.document, of.settings.junit_inconclusive, of.settings.junit_not_measured),
    ),
    Format(lambda _settings: "artifacts/metrics.prom", lambda of: openmetrics(of.document)),
)
