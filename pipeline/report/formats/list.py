"""The files that a report is written to. Nothing else lists them."""

from pipeline.report.formats.content import Format
from pipeline.report.formats.document import places, text_of
from pipeline.report.formats.html import render_html
from pipeline.report.formats.junit import junit
from pipeline.report.formats.markdown import render
from pipeline.report.formats.openmetrics import openmetrics

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
