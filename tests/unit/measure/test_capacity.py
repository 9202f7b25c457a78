"""The search for the highest rate that meets the limits, against servers whose limit is known."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.capacity import highest


@given(st.floats(0, 20), st.floats(0.1, 10), st.integers(1, 12))
def test_the_true_limit_lies_between_what_met_and_what_did_not(limit: float, top: float, steps: int) -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    good, bad = highest(meets, top, steps)
    assert len(tried) <= steps
    assert tried[0] == top
    assert good <= limit
    if bad is None:
        assert good == top, "the top of the search met the condition"
    else:
        assert limit < bad
        assert bad - good <= top / 2 ** (steps - 1) + 1e-9, "each further trial halves what is left"
