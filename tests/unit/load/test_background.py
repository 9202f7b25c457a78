"""The random load: how long its requests are."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.load.background import load_tokens


@given(st.integers(0, 10**7), st.integers(1, 4096))
def test_a_request_of_the_load_is_between_half_the_mean_and_one_and_a_half(number: int, mean: int) -> None:
    assert max(1, mean // 2) <= load_tokens(number, mean) <= mean * 1.5 + 1


@given(st.integers(0, 10**6), st.integers(48, 512))
def test_requests_that_begin_together_do_not_end_together(first: int, mean: int) -> None:
    lengths = [load_tokens(first + number, mean) for number in range(16)]
    assert len(set(lengths)) >= 12
    assert abs(sum(lengths) / 16 - mean) <= mean / 8
