"""The page's charts: bins and stairs hold every value."""

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.drawing.charts import Series, bins, end_of, inlined, per_bin, stairs
from pipeline.report.words import ENGLISH

LATENCIES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=200)


@given(st.lists(LATENCIES, min_size=1, max_size=2))
def test_every_value_is_in_one_bin(series: list[list[float]]) -> None:
    found = [Series("s", sorted(values)) for values in series]
    highest = end_of(found)
    edges = bins(found, highest)
    assert 2 <= len(edges) <= 60
    assert edges == sorted(set(edges))
    for one in found:
        drawn = [value for value in one.values if value <= edges[-1]]
        assert sum(per_bin(one.values, edges)) == len(drawn)
        assert all(value <= edges[-1] * (1 + 1e-9) for value in one.values if value <= highest)


def test_per_bin_counts_edges_once() -> None:
    assert per_bin([0, 1, 1.5, 2, 3, 9], [0, 1, 2, 3]) == [1, 2, 2]


@given(LATENCIES)
def test_the_stairs_end_with_all_values_and_never_fall(values: list[float]) -> None:
    made = stairs(sorted(values))
    assert made[-1] == (max(values), 1.0)
    assert made == sorted(made)


def test_of_many_values_the_stairs_keep_their_quantiles() -> None:
    source = random.Random(1)
    values = sorted(source.uniform(0, 9) for _ in range(5000))
    made = stairs(values)
    assert len(made) == 300
    assert all(share == (values.index(value) + 1) / 5000 for value, share in made)


def test_a_picture_within_the_page_has_the_pages_style() -> None:
    assert inlined(lambda _words: "<svg><style>x\ny</style>\n<g/></svg>")(ENGLISH) == "<svg><g/></svg>"
