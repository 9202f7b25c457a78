"""The interface of a report format: the path of its file, and a function from the report to text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import ReportConfig
from pipeline.report.formats.document import Document
from pipeline.report.view import View
from pipeline.report.words import Words


@dataclass(frozen=True)
class Content:
    """The inputs of a format: the report for people in their language, and the report for programs."""

    view: View
    document: Document
    words: Words
    settings: ReportConfig
    templates: Path


@dataclass(frozen=True)
class Format:
    """One file of a report: its path, relative to the project, and its text."""

    path: Callable[[ReportConfig], str]
    text: Callable[[Content], str]
