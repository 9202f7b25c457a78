"""The list of report formats. Nothing else lists them."""

from pipeline.report.formats.content import Format
from pipeline.report.formats.document import places, text_of
from pipeline.report.formats.html import render_html
from pipeline.report.formats.junit import junit
from pipeline.report.formats.markdown import render
from pipeline.report.formats.openmetrics import openmetrics

FORMATS: tuple[Format, ...] = (
    Format(lambda settings: settings.document, lambda content: text_of(content.document)),
    Format(
        lambda settings: settings.output,
        lambda content: render(content.templates, content.view, content.words, places(text_of(content.document))),
    ),
    Format(lambda settings: settings.page, lambda content: render_html(content.templates, content.view, content.words)),
    Format(
        lambda _settings: "artifacts/junit.xml",
        lambda content: junit(content.document, content.settings.junit_inconclusive, content.settings.junit_not_measured),
    ),
    Format(lambda _settings: "artifacts/metrics.prom", lambda content: openmetrics(content.document)),
)
