"""Agreement of repeated answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.agreement import agreement, control_doubt, first_difference, prompts_share

ANSWERS = st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=8)


def test_equal_answers_all_agree() -> None:
    agreed = agreement([[1, 2, 3]] * 10)
    assert (agreed.runs, agreed.agreeing, agreed.distinct, agreed.first_divergence) == (10, 10, 1, None)
    assert agreed.all_agree


def test_one_other_answer_is_seen_with_its_place() -> None:
    agreed = agreement([[1, 2, 3], [1, 2, 3], [1, 2, 9]])
    assert (agreed.runs, agreed.agreeing, agreed.distinct, agreed.first_divergence) == (3, 2, 2, 2)
    assert not agreed.all_agree


def test_earliest_divergence_of_several_counts() -> None:
    assert agreement([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 9], [1, 9, 3, 4]]).first_divergence == 1


def test_answer_that_goes_on_diverges_where_the_shorter_ends() -> None:
    assert agreement([[1, 2], [1, 2], [1, 2, 3]]).first_divergence == 2


def test_single_answer_agrees_with_itself() -> None:
    assert agreement([[5]]).all_agree


def test_no_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="no answers"):
        agreement([])


@given(ANSWERS)
def test_counts_match_brute_force(answers: list[list[int]]) -> None:
    agreed = agreement(answers)
    assert agreed.agreeing == max(sum(one == other for other in answers) for one in answers)
    assert agreed.distinct == len({tuple(answer) for answer in answers})
    assert agreed.all_agree == all(answer == answers[0] for answer in answers) == (agreed.first_divergence is None)


@given(ANSWERS)
def test_everything_before_the_first_divergence_is_common_to_all(answers: list[list[int]]) -> None:
    place = agreement(answers).first_divergence
    if place is not None:
        assert len({tuple(answer[:place]) for answer in answers}) == 1
        assert len({tuple(answer[: place + 1]) for answer in answers}) > 1


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_first_difference_is_symmetric_and_splits_there(a: list[int], b: list[int]) -> None:
    place = first_difference(a, b)
    assert place == first_difference(b, a)
    assert a[:place] == b[:place]
    assert a == b or a[place : place + 1] != b[place : place + 1]


def test_n_counts_prompts_and_one_that_differs_in_any_arm_differs() -> None:
    figure = prompts_share([{"a": True, "b": True, "c": False}, {"a": True, "b": False, "c": True}])
    assert figure.n == 3
    assert figure.value == pytest.approx(100 / 3)


def test_a_prompt_counts_where_it_is_in_every_arm_or_differs() -> None:
    figure = prompts_share([{"a": True, "b": True}, {"a": True, "c": False}])
    assert (figure.value, figure.n) == (50, 2)
    assert prompts_share([{"a": True}, {"b": True}]).reason == "no prompt was answered in every arm"
    assert prompts_share([]).value is None


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=4))
def test_no_difference_is_lost(arms: list[dict[str, bool]]) -> None:
    figure = prompts_share(arms)
    differing = {prompt for arm in arms for prompt, agrees in arm.items() if not agrees}
    assert figure.n >= len(differing)
    assert (figure.value == 100) is (figure.n > 0 and not differing)


@pytest.mark.parametrize(
    ("same", "of", "doubted"), [(0, 1, False), (1, 1, True), (29, 32, True), (28, 32, False), (32, 32, True), (0, 0, True)]
)
def test_other_seeds_must_change_a_tenth_of_the_answers(same: int, of: int, doubted: bool) -> None:
    assert bool(control_doubt({str(number): number < same for number in range(of)})) is doubted
