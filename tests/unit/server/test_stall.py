"""Progress of a start, and where a process stood by what its fault handler wrote."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.server.stall import Progress, innermost_frames

# As Python 3.11 writes it on SIGABRT: other threads first, the main thread last, extension modules after it.
DUMP = """INFO still here
Fatal Python error: Aborted

Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/usr/lib/python3.11/threading.py", line 622 in wait

Current thread 0x00007f2 (most recent call first):
  File "/x/site-packages/vllm/v1/engine/core_client.py", line 588 in wait_for_engine
  File "/x/site-packages/vllm/entrypoints/openai/api_server.py", line 100 in main

Extension modules: numpy._core, torch._C (total: 2)
Fatal Python error: Aborted

Current thread 0x00007f4 (most recent call first):
  File "/usr/lib/python3.11/multiprocessing/resource_tracker.py", line 227 in main
Fatal Python error: Aborted

Thread 0x00007f3 (most recent call first):
  File "/x/site-packages/torch/nn/linear.py", line 9 in forward
"""


def test_each_process_stands_where_its_main_thread_is() -> None:
    assert innermost_frames(DUMP) == ["wait_for_engine (v1/engine/core_client.py:588)", "forward (torch/nn/linear.py:9)"]


def test_a_dump_without_frames_tells_no_place() -> None:
    assert innermost_frames("Fatal Python error: Aborted\n<no Python frame>\n") == []
    assert innermost_frames("nothing") == []


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3), st.integers(0, 1)), max_size=30))
def test_idle_time_grows_until_something_moves(steps: list[tuple[int, float, int]]) -> None:
    progress, log, cpu, read, idle = Progress(), 0, 0.0, 0, 0.0
    for at, (more_log, more_cpu, more_read) in enumerate(steps, start=1):
        log, cpu, read = log + more_log, cpu + more_cpu, read + more_read
        before, idle = idle, progress.idle_s(at, log, cpu, read)
        assert idle in (0, before + 1)
        if more_log or more_read:
            assert idle == 0


def test_polling_is_no_progress_and_work_is() -> None:
    progress = Progress()
    assert [progress.idle_s(at, 0, 0.01 * at, 0) for at in (10, 100)] == [10, 100]
    assert progress.idle_s(110, 0, 9.0, 0) == 0
