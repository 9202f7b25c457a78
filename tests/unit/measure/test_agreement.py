"""Agreement of repeated answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.agreement import agreement, first_difference

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
