"""What a format is: where its file goes, and the text that it makes of a report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import ReportConfig
from pipeline.report.formats.document import Document
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
