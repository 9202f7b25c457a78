"""Labels told against golden ones, by brute force."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.classification import confusion, macro_f1, majority_share, mcnemar_p

labels = st.sampled_from(["calendar", "smalltalk", "unknown"])
pairs = st.lists(st.tuples(labels, st.one_of(labels, st.just("(no valid JSON)"))), min_size=1, max_size=30)


@given(pairs)
def test_confusion_counts_every_pair_once(told: list[tuple[str, str]]) -> None:
    made = confusion([golden for golden, _ in told], [guess for _, guess in told])
    assert {(golden, guess): count for golden, row in made.items() for guess, count in row.items()} == {
        pair: told.count(pair) for pair in told
    }


@given(pairs)
def test_macro_f1_is_the_mean_of_precision_and_recall_joined(told: list[tuple[str, str]]) -> None:
    scores = []
    for label in {golden for golden, _ in told}:
        right = sum(golden == guess == label for golden, guess in told)
        said = sum(guess == label for _, guess in told)
        meant = sum(golden == label for golden, _ in told)
        precision, recall = right / said if said else 0, right / meant
        scores.append(2 * precision * recall / (precision + recall) if right else 0)
    assert macro_f1(*map(list, zip(*told, strict=True))) == pytest.approx(sum(scores) / len(scores))


@given(pairs)
def test_macro_f1_is_between_none_and_all_right(told: list[tuple[str, str]]) -> None:
    golden = [label for label, _ in told]
    assert macro_f1(golden, golden) == 1
    assert macro_f1(golden, ["(no valid JSON)"] * len(golden)) == 0
    assert 0 <= macro_f1(golden, [guess for _, guess in told]) <= 1


@given(pairs)
def test_no_constant_answer_beats_the_majority(told: list[tuple[str, str]]) -> None:
    golden = [label for label, _ in told]
    label, count = majority_share(golden)
    assert golden.count(label) == count == max(golden.count(other) for other in golden)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="no labels"):
        macro_f1([], [])
    with pytest.raises(ValueError, match="no labels"):
        majority_share([])


@given(st.integers(0, 10), st.integers(0, 10))
def test_mcnemar_is_the_share_of_coin_throws_at_least_as_uneven(first: int, second: int) -> None:
    n = first + second
    heads = [sum(throws) for throws in product((0, 1), repeat=n)] if n <= 12 else None
    if heads is not None:
        as_uneven = sum(abs(2 * number - n) >= abs(first - second) for number in heads) / len(heads)
        assert mcnemar_p(first, second) == pytest.approx(as_uneven)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)
    assert 0 < mcnemar_p(first, second) <= 1


def test_mcnemar_of_a_published_example() -> None:
    assert mcnemar_p(0, 5) == pytest.approx(0.0625)  # 2 / 2^5
    assert mcnemar_p(7, 7) == 1
