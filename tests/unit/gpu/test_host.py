"""What /proc/cpuinfo tells of the cores."""

import pytest

from pipeline.gpu.host import threads_per_core


@pytest.mark.parametrize(
    ("info", "threads"),
    [
        ({"siblings": "8", "cpu cores": "4"}, 2),
        ({"siblings": "4", "cpu cores": "4"}, 1),
        ({"siblings": "1", "cpu cores": "2"}, 1),  # a virtual machine that tells nonsense
        ({"siblings": "4", "cpu cores": "0"}, 1),
        ({}, 1),
    ],
)
def test_hyperthreads_are_counted(info: dict[str, str], threads: int) -> None:
    assert threads_per_core(info) == threads
