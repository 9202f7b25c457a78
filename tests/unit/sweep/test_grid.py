"""The sweep's matrix: what --grid says, and which cells follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sweep.grid import Cell, cells, parse_axes, split


def test_axes_and_values() -> None:
    assert parse_axes("profile=cpu,quick; serve.max_num_seqs=16,32") == {"profile": ("cpu", "quick"), "serve.max_num_seqs": (16, 32)}


def test_marks_inside_brackets_and_quotes_belong_to_the_value() -> None:
    assert parse_axes("bench.concurrency=[1,2],[4];serve.dtype='a,b;c',auto") == {
        "bench.concurrency": ([1, 2], [4]),
        "serve.dtype": ("a,b;c", "auto"),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("profile", "--grid profile: expected key=value,value"),
        ("", "--grid '': expected key=value,value"),
        ("profile=cpu;", "--grid 'profile=cpu;': expected key=value,value"),
        ("profile=", "--grid profile: an empty value"),
        ("profile=cpu,", "--grid profile: an empty value"),
        ("profile=cpu;profile=quick", "--grid: profile is given twice"),
        ("bench.concurrency=[1", "--grid bench.concurrency: '[1' is not a YAML value"),
    ],
)
def test_what_is_no_axis_is_told(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axes(text)
    assert caught.value.message == told
    assert caught.value.hint


def test_every_combination_is_a_cell_the_last_axis_first() -> None:
    made = cells({"profile": ("cpu", "quick"), "serve.max_num_seqs": (16, 32)}, "--grid", 4)
    assert [cell.name for cell in made] == [
        "profile=cpu serve.max_num_seqs=16",
        "profile=cpu serve.max_num_seqs=32",
        "profile=quick serve.max_num_seqs=16",
        "profile=quick serve.max_num_seqs=32",
    ]
    assert (made[3].profile, made[3].sets) == ("quick", ("serve.max_num_seqs=32",))


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({}, "no axis"),
        ({"profile": ()}, "profile: an empty value"),
        ({"profile": ("",)}, "profile: an empty value"),
        ({"profiles": ("cpu",)}, "profiles: neither `profile` nor a setting with its section; did you mean 'profile'?"),
        ({"serve.port": (1,)}, "serve.port cannot be an axis: each cell gets a free port of its own"),
        ({"report.title": ("a",)}, "report.title cannot be an axis: it changes nothing that is measured"),
        ({"serve.seed": (1, 1)}, "serve.seed: 1 is given twice"),
        ({"serve.seed": (1, 2, 3), "profile": ("cpu", "quick")}, "6 cells, at most 5 are run"),
    ],
)
def test_what_can_be_no_matrix_is_told_in_a_line(axes: dict[str, tuple[object, ...]], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells(axes, "--grid", 5)
    assert caught.value.message == f"--grid: {told}"


@given(st.lists(st.text(max_size=12), min_size=2, max_size=2, unique=True))
def test_unlike_cells_have_unlike_folders_that_any_file_system_takes(values: list[str]) -> None:
    folders = {Cell((("serve.dtype", value),)).folder for value in values}
    assert len(folders) == 2
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for folder in folders)
    assert all(len(folder) < 80 for folder in folders)


@given(st.text(alphabet="ab,'[]{}\"", max_size=20))
def test_split_loses_nothing(text: str) -> None:
    assert ",".join(split(text, ",")) == text
