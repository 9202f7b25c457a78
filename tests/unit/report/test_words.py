"""The report's languages: every text has its Turkish one, none is left that nobody says, and messages keep what they know."""

import ast
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.gpu.nvml import TROUBLES, Gpu
from pipeline.load.capacity import capacity_figure
from pipeline.measure.answers import FENCE
from pipeline.measure.drift import Slope
from pipeline.measure.figures import Figure
from pipeline.measure.memory import Budget, Gaps, stable
from pipeline.measure.verdicts import judge
from pipeline.message import Code, Digits, Message, _, plural
from pipeline.report.cells import glued, of_settings
from pipeline.report.words import ENGLISH, Words, words
from pipeline.server.stop import Closing
from pipeline.vllm.plan import NOTHING_PLANNED, plan_error_figure
from pipeline.vllm.remedies import NoRemedy, remedy_for
from tests.builders.texts import KEYWORDS, TEMPLATES, Text, extracted, forms

ROOT = Path(__file__).resolve().parents[3]
TEXTS = extracted()
TR = words("tr", TEMPLATES)


def turkish(text: Text) -> Sequence[str]:
    """Return the Turkish forms of a text; none of one that has none."""
    assert TR.catalogue is not None
    one = forms(text)[0]
    return TR.catalogue.forms.get(one) or [TR.catalogue.texts[form] for form in forms(text) if form in TR.catalogue.texts]


def test_every_text_has_its_turkish_one_and_none_is_left_over() -> None:
    assert TR.catalogue is not None
    assert [text for text in TEXTS if len(turkish(text)) != len(forms(text))] == []
    assert {*TR.catalogue.texts, *TR.catalogue.forms} - {form for text in TEXTS for form in forms(text)} == set()


def test_every_text_stands_where_it_is_said() -> None:
    """A text that is put together elsewhere would be in no catalogue."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        if path.name in ("message.py", "words.py"):
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in KEYWORDS:
                texts = call.args[:2] if call.func.id == "plural" else call.args[:1]
                assert all(isinstance(text, ast.Constant) for text in texts), f"{path.name}:{call.lineno}"


def names(text: str) -> set[str]:
    return set(re.findall(r"\{(\w*)\}", text))


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_the_turkish_text_has_the_same_names_code_and_spaces(text: Text) -> None:
    for english, translated in zip(forms(text), turkish(text), strict=True):
        assert names(translated) == names(english)
        assert (translated[:1] == " ", translated[-1:] == " ") == (english[:1] == " ", english[-1:] == " ")
        assert "`" not in english + translated, "code is a value"


def test_a_text_that_the_catalogue_lacks_is_an_error_and_never_silently_english() -> None:
    with pytest.raises(KeyError):
        TR("nobody says this")
    assert ENGLISH("nobody says this") == "nobody says this"


def test_what_a_user_wrote_is_shown_as_it_is_and_its_code_as_code() -> None:
    assert TR.text(of_settings("Mine, {braces} and all")) == "Mine, {braces} and all"
    assert TR.text(of_settings("Throughput")) == TR("Throughput") != "Throughput"
    assert TR.text(of_settings("an odd ` and {0}")) == "an odd ` and {0}"
    assert list(TR.parts(of_settings("`/v1/chat/completions` answers"))) == ["", "/v1/chat/completions", " yanıt veriyor"]
    assert isinstance(list(ENGLISH.parts(of_settings("see `x`")))[1], Code)


@pytest.mark.parametrize(
    ("message", "english", "said"),
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
def test_a_message_is_put_into_the_language_with_all_its_values(message: str, english: str, said: str) -> None:
    catalogue = {"Reason: {why}": "Neden: {why}", "not measured": "ölçülmedi", "a gap": "bir boşluk", "{count} gaps": "{count} boşluk"}
    assert ENGLISH.text(message) == english
    assert Words("tr", catalogue).text(message) == said


def test_values_are_filled_in_and_their_braces_stay() -> None:
    assert Words("en")("a {name} b", name="{x}") == "a {x} b"
    assert Words("tr", {"a {name} b": "b {name} a"})("a {name} b", name="{x}") == "b {x} a"
    assert Words("tr", {"a {name} b": "b {name} a"}).text(_("a {name} b", name="{x}")) == "b {x} a"


def figure(value: float | None, **more: float | int | str) -> Figure:
    return Figure.model_validate({"value": value, "unit": "MiB", "n": 10, **more})


def judged(made: Figure | None, min_n: int = 1, by_bound: bool = True, simulated: bool = False) -> str:
    return judge(made, "<", 500, min_n, by_bound, simulated).reason


def steadiness(low: float, high: float, missing_s: float = 0, halves: tuple[float, float] = (5, 5)) -> str:
    slope = Slope((low + high) / 2, low, high, 0.01, 0.1, halves)
    gaps = Gaps(count=1, longest_s=missing_s, total_s=missing_s)
    return stable(slope, 9, gaps, 400, Budget(mib=240, horizon_h=24)).reason


def residual(others: list[float | None] | None, after: float = 200) -> str:
    made = Closing(
        launch_id="1",
        was_running=True,
        asked_nicely=True,
        killed=[],
        took_s=1,
        port_free=True,
        gpu_used_before_mib=[100],
        gpu_used_after_mib=[after],
        gpu_others_mib=others,
    )
    found = made.residual()
    assert found is not None
    return found.reason


def no_remedy(attached: str | None = None) -> str:
    old = Gpu(index=0, uuid="u", name="Tesla T4", total_mib=1, free_mib=1, compute_capability="7.5", processes=[])
    found = remedy_for("vllm", [old], attached)
    assert isinstance(found, NoRemedy)
    return found.reason


NOT_REAL = "not measured on a server proven to be a real vLLM"
NO_DRIVER = TROUBLES["NVMLError_LibraryNotFound"].reason
UNTOLD = "100 MiB more are held, by the server or by others: the driver does not tell"
SHORT = "the load was too short to say so: between -48 and 480 MiB in 24 h; about 44000 s of load after one start would tell"
NEVER = "the load was too short to say so: between 0 and 480 MiB in 24 h; no load of less than 24 h would tell"
TOO_SHORT = "yük bunu söylemek için çok kısaydı"
SETTLING = "it rose by 5 MiB in the first half of the load and by 1 in the second: it may still be settling"
SETTLING_TR = "yükün ilk yarısında 5 MiB, ikinci yarısında 1 MiB arttı: henüz yerine oturuyor olabilir"
OLD_CARD = "VLLM_BATCH_INVARIANT=1 needs compute capability 8.0, and Tesla T4 has 7.5"
NOT_OURS = "the server at http://x is not ours to start with another environment"


@pytest.mark.parametrize(
    ("message", "english", "said"),
    [
        (judged(None), "no such figure on record", "kayıtta böyle bir değer yok"),
        (judged(figure(None)), "no value", "değer yok"),
        (judged(figure(math.inf)), "inf is no measured value", "inf ölçülmüş bir değer değil"),
        (judged(figure(600)), "600 is not < 500", "600 < 500 değil"),
        (judged(figure(10), min_n=300), "n = 10, at least 300 needed", "n = 10, en az 300 gerekli"),
        (judged(figure(10)), "n = 10 is too small for a confidence bound", "n = 10 bir güven sınırı için çok küçük"),
        (judged(figure(10, high=600)), "the 95 % bound 600 is not < 500", "%95 sınırı 600 < 500 değil"),
        (judged(figure(10), simulated=True), NOT_REAL, TR(NOT_REAL)),
        (
            steadiness(20, 30),
            "rises by at least 480 MiB in 24 h of load; 240 are allowed",
            "24 saat yükte en az 480 MiB artıyor; 240 MiB'a izin var",
        ),
        (steadiness(0, 1, missing_s=40), "samples are missing for 40 s of 400 s of load", "400 s yükün 40 saniyesinde örnek yok"),
        (
            steadiness(-2, 20),
            SHORT,
            f"{TOO_SHORT}: 24 saatte -48 ile 480 MiB arasında; tek bir başlatmadan sonra yaklaşık 44000 s yük bunu gösterir",
        ),
        (steadiness(0, 20), NEVER, f"{TOO_SHORT}: 24 saatte 0 ile 480 MiB arasında; 24 saatten kısa hiçbir yük bunu göstermez"),
        (steadiness(20, 30, halves=(5, 1)), SETTLING, SETTLING_TR),
        (residual(None), UNTOLD, "100 MiB daha tutuluyor; sunucu mu başka programlar mı, sürücü söylemiyor"),
        (residual([900.0]), "other programs took 800 MiB meanwhile", "bu sırada başka programlar 800 MiB aldı"),
        (residual([100.0], after=0), "other programs freed 100 MiB meanwhile", "bu sırada başka programlar 100 MiB boşalttı"),
        (plan_error_figure(None, figure(1)).reason, NOTHING_PLANNED, TR(NOTHING_PLANNED)),
        (capacity_figure([]).reason, "bench.find_capacity is false", "bench.find_capacity false"),
        (no_remedy(), OLD_CARD, "VLLM_BATCH_INVARIANT=1 için compute capability 8.0 gerekir, Tesla T4 ise 7.5 sunuyor"),
        (no_remedy("http://x"), NOT_OURS, "http://x adresindeki sunucuyu başka bir ortamla başlatamayız"),
        (FENCE, "fence", "kod çiti"),
        (_("no usable GPU: {reason}", reason=NO_DRIVER), f"no usable GPU: {NO_DRIVER}", f"kullanılabilir GPU yok: {TR(NO_DRIVER)}"),
        (plural("amid {count} other", "amid {count} others", 3), "amid 3 others", "3 başka isteğin arasında"),
        ("the server at x is not what it was", "the server at x is not what it was", "the server at x is not what it was"),
    ],
)
def test_a_message_of_another_room_is_said_in_the_reports_language(message: str, english: str, said: str) -> None:
    assert message == english
    assert ENGLISH.text(message) == english
    assert TR.text(message) == said


def test_within_a_message_only_messages_are_translated() -> None:
    known = Words("tr", {"a {what}": "{what} b", "first": "ilk"})
    assert known.text(_("a {what}", what="first")) == "first b"  # a program's own word
    assert known.text(_("a {what}", what=_("first"))) == "ilk b"
    assert known.text(_("a {what}", what=Code("first"))) == "`first` b"
    assert known.text(Message("of an older version: {what}", {"what": 1})) == "of an older version: 1"
