"""From figures to verdicts and exit codes."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.statistics import percentile_figure, share_figure
from pipeline.measure.verdicts import COMPARE, START_NOISE, UNKNOWN, Judgement, Verdict, exit_code, judge

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
FIGURES = st.builds(
    Figure,
    value=st.none() | FLOATS,
    unit=st.just("ms"),
    n=st.integers(0, 200),
    low=st.none() | FLOATS,
    high=st.none() | FLOATS,
)
COMPARATORS = st.sampled_from(sorted(COMPARE))


def figure(value: float | None, low: float | None = None, high: float | None = None, n: int = 100) -> Figure:
    return Figure(value=value, unit="ms", n=n, low=low, high=high, starts=3)


def verdict(made: Figure | None, comparator: str = "<", target: float = 500, *, min_n: int = 59, by_bound: bool = True) -> str:
    return judge(made, comparator, target, min_n, by_bound, False).verdict


def test_pass_when_value_bound_and_n_meet_the_target() -> None:
    assert judge(figure(400, 380, 450), "<", 500, 59, True, False) == Judgement("PASS", "")


def test_fail_when_the_value_misses() -> None:
    assert judge(figure(600, 380, 700), "<", 500, 59, True, False) == Judgement("FAIL", "600 is not < 500")


def test_fail_even_with_too_small_n() -> None:
    assert verdict(figure(600, n=3)) == "FAIL"


def test_inconclusive_when_only_the_bound_misses() -> None:
    judged = judge(figure(480, 400, 510), "<", 500, 59, True, False)
    assert (judged.verdict, judged.reason) == ("INCONCLUSIVE", "the 95 % bound 510 is not < 500")


def test_inconclusive_when_n_is_too_small() -> None:
    judged = judge(figure(400, 380, 450, n=58), "<", 500, 59, True, False)
    assert (judged.verdict, judged.reason) == ("INCONCLUSIVE", "n = 58, at least 59 needed")


def test_inconclusive_without_a_bound() -> None:
    assert verdict(figure(400, 380, None)) == "INCONCLUSIVE"


@pytest.mark.parametrize(("comparator", "low", "high"), [("<", None, 450), ("<=", None, 450), (">", 450, None), (">=", 450, None)])
def test_bound_on_the_unfavourable_side_counts(comparator: str, low: float | None, high: float | None) -> None:
    target = 500 if comparator in ("<", "<=") else 400
    assert verdict(figure(450, low, high), comparator, target) == "PASS"
    assert verdict(figure(450, high, low), comparator, target) == "INCONCLUSIVE"


def test_point_leaves_the_bound_out() -> None:
    assert verdict(figure(480, 400, 510), by_bound=False) == "PASS"


@pytest.mark.parametrize(("comparator", "at_target"), [("<", "FAIL"), ("<=", "PASS"), (">", "FAIL"), (">=", "PASS"), ("==", "PASS")])
def test_value_at_the_target(comparator: str, at_target: str) -> None:
    assert verdict(figure(500), comparator, by_bound=False) == at_target


def test_missing_figure_is_not_measured() -> None:
    assert judge(None, "<", 500, 1, True, False) == Judgement("NOT_MEASURED", "no such figure on record")


def test_figure_without_value_is_not_measured_with_its_reason() -> None:
    assert judge(not_measured("ms", "no GPU"), "<", 500, 1, True, False) == Judgement("NOT_MEASURED", "no GPU")


@pytest.mark.parametrize("comparator", sorted(COMPARE))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_no_number_is_not_measured(comparator: str, value: float) -> None:
    assert verdict(figure(value), comparator, value, by_bound=False) == "NOT_MEASURED"
    assert judge(figure(value), comparator, 0, 1, False, False).reason == f"{value} is no measured value"


@pytest.mark.parametrize("comparator", sorted(COMPARE))
@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_bound_that_is_no_number_is_inconclusive(comparator: str, bound: float) -> None:
    assert verdict(figure(500, bound, bound), comparator, {"<": 501, ">": 499}.get(comparator, 500)) == "INCONCLUSIVE"


def test_simulated_is_no_pass() -> None:
    assert judge(figure(400, 380, 450), "<", 500, 59, True, True).verdict == "SIMULATED"


@pytest.mark.parametrize("comparator", sorted(COMPARE))
def test_zero_successes_never_pass(comparator: str) -> None:
    assert verdict(percentile_figure([], 0.95, "ms"), comparator, 0, min_n=1) == "NOT_MEASURED"


def test_a_contradiction_is_invalid_and_never_a_verdict_on_the_server() -> None:
    (marked,) = invalidated({"ttft": figure(400, 380, 450)}, "the client counted 8 output tokens, the server 9").values()
    judged = judge(marked, "<", 500, 59, True, False)
    assert judged == Judgement("INVALID", "the client counted 8 output tokens, the server 9")
    assert exit_code([(judged, True)]) == 2
    assert invalidated({"ttft": marked}, "a second reason")["ttft"].invalid == judged.reason, "the first reason stays"
    assert invalidated({"ttft": not_measured("ms", "why")}, "a reason")["ttft"].invalid == "", "nothing was measured that could be wrong"
    assert judge(marked, "<", 500, 59, True, True).verdict == "SIMULATED"


@pytest.mark.parametrize(("failed", "word"), [(1, "PASS"), (2, "INCONCLUSIVE")])
def test_a_percentile_of_survivors_is_inconclusive(failed: int, word: str) -> None:
    few = figure(400, 380, 450).model_copy(update={"failed": failed})
    judged = judge(few, "<", 500, 59, True, False)
    assert judged.verdict == word
    assert judged.reason == ("" if word == "PASS" else "2 of 102 requests failed, so this is a figure of survivors")


@pytest.mark.parametrize(("value", "starts", "word"), [(460, 1, "INCONCLUSIVE"), (440, 1, "PASS"), (460, 3, "PASS")])
def test_one_start_cannot_tell_what_starts_differ_by(value: float, starts: int, word: str) -> None:
    judged = judge(figure(value, value, value).model_copy(update={"starts": starts}), "<", 500, 59, True, False)
    assert judged.verdict == word
    assert judged.reason == (
        "" if word == "PASS" else "within 10 % of the target, by which starts of a server differ: set bench.starts to 3"
    )


def test_zero_successes_fail_a_share() -> None:
    assert verdict(share_figure(0, 10), "==", 100, min_n=1, by_bound=False) == "FAIL"


def test_value_of_zero_from_no_request_never_passes() -> None:
    assert verdict(figure(0, 0, 0, n=0), min_n=1) == "INCONCLUSIVE"


@given(FIGURES, COMPARATORS, FLOATS, st.integers(1, 100), st.booleans())
def test_simulated_can_never_pass(made: Figure, comparator: str, target: float, min_n: int, by_bound: bool) -> None:
    assert judge(made, comparator, target, min_n, by_bound, True).verdict in ("SIMULATED", "NOT_MEASURED")


@given(COMPARATORS, FLOATS, st.integers(1, 100), st.booleans(), st.booleans())
def test_missing_can_never_pass(comparator: str, target: float, min_n: int, by_bound: bool, simulated: bool) -> None:
    for made in (None, not_measured("ms", "why"), figure(math.nan), figure(math.inf), figure(-math.inf)):
        assert judge(made, comparator, target, min_n, by_bound, simulated).verdict == "NOT_MEASURED"


@st.composite
def cases(draw: st.DrawFn) -> tuple[Figure, str, float]:
    """Return a figure, a comparator and a target that are often close, so that every verdict comes up."""
    near = st.integers(-3, 3).map(float) | FLOATS
    made = Figure(
        value=draw(st.none() | near),
        unit=draw(st.sampled_from(("ms", "MiB"))),
        n=draw(st.integers(0, 4)),
        low=draw(near),
        high=draw(st.none() | near),
        failed=draw(st.integers(0, 1)),
        starts=draw(st.integers(1, 2)),
        invalid=draw(st.sampled_from(("", "", "the ledger disagrees"))),
    )
    return made, draw(COMPARATORS), draw(near)


@given(cases(), st.integers(1, 4), st.booleans(), st.booleans())
@example((figure(1, 1, 1, n=4), "==", 1.0), 4, True, False)
def test_pass_is_exactly_when_everything_holds(case: tuple[Figure, str, float], min_n: int, by_bound: bool, simulated: bool) -> None:
    made, comparator, target = case
    meets = COMPARE[comparator]
    bound = made.high if comparator.startswith("<") else made.low
    holds = (
        made.value is not None
        and math.isfinite(made.value)
        and meets(made.value, target)
        and made.n >= min_n
        and not simulated
        and not made.invalid
        and not made.failed
        and (comparator == "==" or made.unit == "MiB" or made.starts > 1 or abs(made.value - target) >= START_NOISE * abs(target))
        and (not by_bound or (bound is not None and math.isfinite(bound) and meets(bound, target)))
    )
    judged = judge(made, comparator, target, min_n, by_bound, simulated)
    assert (judged.verdict == "PASS") == holds
    assert (judged.reason == "") == holds


EASIER = {"<": 1, "<=": 1, ">": -1, ">=": -1}
RANK = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}


@given(cases(), st.floats(0, 10), st.integers(1, 4), st.booleans())
def test_an_easier_target_never_makes_a_verdict_worse(case: tuple[Figure, str, float], ease: float, min_n: int, by_bound: bool) -> None:
    made, comparator, target = case
    assume(comparator in EASIER and not math.isnan(target))
    hard, easy = (judge(made, comparator, each, min_n, by_bound, False).verdict for each in (target, target + EASIER[comparator] * ease))
    assert (hard == easy) if hard in UNKNOWN else RANK[easy] >= RANK[hard]


@given(FIGURES, COMPARATORS, FLOATS, st.booleans())
def test_more_requests_demanded_never_help(made: Figure, comparator: str, target: float, by_bound: bool) -> None:
    if judge(made, comparator, target, made.n + 1, by_bound, False).verdict == "PASS":
        pytest.fail("passed with fewer requests than demanded")


def code(*verdicts: Verdict, required: bool = True) -> int:
    return exit_code((Judgement(name, ""), required) for name in verdicts)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("PASS",), 0),
        (("PASS", "PASS"), 0),
        (("PASS", "FAIL"), 1),
        (("PASS", "INCONCLUSIVE"), 1),
        (("PASS", "NOT_MEASURED"), 2),
        (("PASS", "SIMULATED"), 2),
        (("FAIL", "NOT_MEASURED"), 2),
    ],
)
def test_exit_code(verdicts: tuple[Verdict, ...], expected: int) -> None:
    assert code(*verdicts) == expected


def test_gates_that_are_not_required_do_not_count() -> None:
    assert exit_code([(Judgement("PASS", ""), True), (Judgement("FAIL", ""), False), (Judgement("NOT_MEASURED", ""), False)]) == 0


def test_no_required_gate_is_no_pass() -> None:
    assert code("PASS", required=False) == 2


def test_large_values_are_written_out() -> None:
    assert judge(figure(41508, 41508, 41508), "<", 4768, 1, False, False).reason == "41508 is not < 4768"
