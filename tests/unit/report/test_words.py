"""The report's languages: every text has its Turkish one, and none is left that nobody says."""

import ast
import re
from pathlib import Path

import jinja2
import pytest
import yaml
from jinja2 import nodes

from pipeline.config.layers import load_layers
from pipeline.message import Code, Digits, Message, _, plural
from pipeline.report.cells import glued, of_settings
from pipeline.report.words import DECIMAL, ENGLISH, SAID, Words, words

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = ROOT / "templates"
CATALOGUE: dict[str, str] = yaml.safe_load((TEMPLATES / "tr.yaml").read_text(encoding="utf-8"))
TR = words("tr", TEMPLATES)


def in_code() -> set[str]:
    """Return each text of the report's messages; each must stand there as it is."""
    found = set()
    for path in sorted((ROOT / "pipeline" / "report").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("_", "plural"):
                for text in call.args[: 2 if call.func.id == "plural" else 1]:
                    assert isinstance(text, ast.Constant), f"{path.name}:{call.lineno}: a message takes a text that stands there"
                    found.add(str(text.value))
    return found


def in_templates() -> set[str]:
    """Return each text that a template asks a translation of."""
    found = set()
    for path in sorted(TEMPLATES.glob("*.j2")):
        for call in jinja2.Environment().parse(path.read_text(encoding="utf-8")).find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "t":
                text = call.args[0]
                assert isinstance(text, nodes.Const), f"{path.name}:{call.lineno}: t() takes a text that stands there"
                found.add(str(text.value))
    return found


def in_settings() -> set[str]:
    """Return what config.yaml's own gates and alternatives say."""
    config = load_layers(ROOT / "config.yaml", {}).config(None)
    gates = [text for gate in config.gates.root.values() for text in (gate.label, gate.statistic)]
    return {of_settings(text).template for text in (*gates, *(entry.use_case for entry in config.alternatives.root)) if text}


def names(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w*)\}", text))


def test_every_text_has_its_turkish_one_and_none_is_left_over() -> None:
    asked = in_code() | in_templates() | in_settings() | set(SAID) | {DECIMAL}
    assert sorted(asked - set(CATALOGUE)) == []
    assert sorted(set(CATALOGUE) - asked) == []


@pytest.mark.parametrize("english", CATALOGUE)
def test_the_turkish_text_has_the_same_names_and_spaces(english: str) -> None:
    turkish = CATALOGUE[english]
    assert isinstance(turkish, str)
    assert set(names(turkish)) == set(names(english))
    assert (turkish[:1] == " ", turkish[-1:] == " ") == (english[:1] == " ", english[-1:] == " ")
    assert "`" not in english + turkish, "code is a value"


def test_no_text_stands_twice_in_the_catalogue() -> None:
    catalogue = yaml.compose((TEMPLATES / "tr.yaml").read_text(encoding="utf-8"))
    assert isinstance(catalogue, yaml.MappingNode)
    keys = [node.value for node, _ in catalogue.value]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []


def test_a_text_that_the_catalogue_lacks_is_an_error_and_never_silently_english() -> None:
    with pytest.raises(KeyError):
        TR("nobody says this")
    assert ENGLISH("nobody says this") == "nobody says this"


def test_what_a_user_wrote_is_shown_as_it_is_and_its_code_as_code() -> None:
    assert TR.text(of_settings("Mine, {braces} and all")) == "Mine, {braces} and all"
    assert TR.text(of_settings("Throughput")) == CATALOGUE["Throughput"]
    assert TR.text(of_settings("an odd ` and {0}")) == "an odd ` and {0}"
    assert list(TR.parts(of_settings("`/v1/chat/completions` answers"))) == ["", "/v1/chat/completions", " yanıt veriyor"]
    assert isinstance(list(ENGLISH.parts(of_settings("see `x`")))[1], Code)


@pytest.mark.parametrize(
    ("message", "english", "turkish"),
    [
        (_("Reason: {why}", why=_("not measured")), "Reason: not measured", "Neden: ölçülmedi"),
        (glued(_("not measured"), " ", Digits("-1.25"), " ", 2.5), "not measured -1.25 2.5", "ölçülmedi -1,25 2.5"),
        (plural("a gap", "{count} gaps", 1), "a gap", "bir boşluk"),
        (plural("a gap", "{count} gaps", 3), "3 gaps", "3 boşluk"),
        (_("Reason: {why}", why="{why}"), "Reason: {why}", "Neden: {why}"),
        (_("Reason: {why}", why=Code("a.b")), "Reason: `a.b`", "Neden: `a.b`"),
        (Message("{why}"), "{why}", "{why}"),
        (Digits("7"), "7", "7"),
        (_("by nobody {n}", n=1), "by nobody 1", "by nobody 1"),
    ],
)
def test_a_message_is_put_into_the_language_with_all_its_values(message: str, english: str, turkish: str) -> None:
    catalogue = {"Reason: {why}": "Neden: {why}", "not measured": "ölçülmedi", "a gap": "bir boşluk", "{count} gaps": "{count} boşluk"}
    assert ENGLISH.text(message) == english
    assert Words("tr", {**catalogue, DECIMAL: "{whole},{part}"}).text(message) == turkish


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("n = 10, at least 300 needed", "n = 10, en az 300 gerekli"),
        ("600 is not < 500", "600 < 500 değil"),
        ("bench never ran", "bench hiç çalışmadı"),
        ("the server died", "the server died"),
        ("the server at x is not what it was", "the server at x is not what it was"),
        ("waived until 2027-01-01: no card", "2027-01-01 tarihine kadar muaf: no card"),
    ],
)
def test_messages_of_other_rooms_are_put_together_anew_and_those_of_programs_stay(message: str, said: str) -> None:
    assert TR.text(message) == said
    assert ENGLISH.text(message) == message


def test_a_message_within_a_message_is_translated_too() -> None:
    inner = CATALOGUE["NVML library libnvidia-ml.so.1 not found: no NVIDIA driver is installed"]
    told = TR.text("no usable GPU: NVML library libnvidia-ml.so.1 not found: no NVIDIA driver is installed")
    assert told == CATALOGUE["no usable GPU: {reason}"].replace("{reason}", inner)


def said_in(folder: Path) -> str:
    """Return all texts of the code there, one a line, with {} for what is filled in."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        if path.name == "words.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
    return "\n".join(found)


CODE = said_in(ROOT / "pipeline")
# Texts with a choice within.
BY_PARTS = {"amid {n} other", "amid {n} others", "waived until {date}: {reason}", "unused waiver until {date}: {reason}"}


@pytest.mark.parametrize("template", [text for text in SAID if text not in BY_PARTS])
def test_every_message_that_is_recognised_is_still_said(template: str) -> None:
    pieces = [piece for piece in re.split(r"\{\w+\}", template) if piece.strip(" :,()")]
    assert all(piece in CODE for piece in pieces), template


def test_values_are_filled_in_and_their_braces_stay() -> None:
    assert Words("en")("a {name} b", name="{x}") == "a {x} b"
    assert Words("tr", {"a {name} b": "b {name} a"})("a {name} b", name="{x}") == "b {x} a"
