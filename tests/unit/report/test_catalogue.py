"""Gettext catalogues and numbers, by Babel: plural forms are read, and nothing of Babel is imported for an English report."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.message import plural
from pipeline.report.catalogue import number_in, read_catalogue
from pipeline.report.words import Words

PO = """\
msgid ""
msgstr ""
"Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n<5 ? 1 : 2);\\n"
"Content-Type: text/plain; charset=utf-8\\n"

#: somewhere.py
msgid "said"
msgstr "söylendi"

msgid "not translated yet"
msgstr ""

msgid "{count} kernel"
msgid_plural "{count} kernels"
msgstr[0] "{count} a"
msgstr[1] "{count} b"
msgstr[2] "{count} c"
"""


def test_a_gettext_catalogue_is_read_with_its_plural_forms(tmp_path: Path) -> None:
    (tmp_path / "xx.po").write_text(PO, encoding="utf-8")
    known = Words("xx", read_catalogue(tmp_path / "xx.po"))
    assert known("said") == "söylendi"
    assert [known.text(plural("{count} kernel", "{count} kernels", count)) for count in (1, 2, 7)] == ["1 a", "2 b", "7 c"]
    with pytest.raises(KeyError):
        known("not translated yet")


def test_numbers_are_written_as_the_language_writes_them() -> None:
    assert [number_in("tr", "0.5"), number_in("tr", "-7"), number_in("en", "0.5")] == ["0,5", "-7", "0.5"]


def test_an_english_report_imports_nothing_of_babel() -> None:
    code = "import sys, pipeline.dag, pipeline.report.words as l; l.words('en', None); print([n for n in sys.modules if 'babel' in n])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
