"""Start-up phases from the server's log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.server.phases import BEGINNINGS, FIRST_PHASE, Phases

# Lines as vLLM 0.32 writes them.
LOG = [
    ("(APIServer pid=7) INFO 11-23 13:40:01 [utils.py:233] non-default args: {'model': 'm', 'port': 8000}", "configuration"),
    ("(EngineCore pid=9) INFO 11-23 13:40:05 [core.py:77] Initializing a V1 LLM engine (v0.32.0) with config: ...", "engine"),
    ("(EngineCore pid=9) INFO 11-23 13:40:09 [cpu_model_runner.py:55] Starting to load model m...", "weights"),
    ("(EngineCore pid=9) INFO 11-23 13:40:10 [default_loader.py:267] Loading weights took 0.41 seconds", "compile"),
    ("(EngineCore pid=9) INFO 11-23 13:40:31 [kv_cache_utils.py:864] GPU KV cache size: 46,592 tokens", "KV cache"),
    ("(EngineCore pid=9) INFO 11-23 13:40:32 [gpu_model_runner.py:3] Capturing CUDA graphs (mixed prefill-decode, PIECEWISE)", "graphs"),
    ("(EngineCore pid=9) INFO 11-23 13:40:40 [core.py:217] init engine (profile, create kv cache, warmup model) took 29.6 s", "HTTP"),
]


def seen(times: list[float]) -> Phases:
    phases = Phases()
    for (line, _), at in zip(LOG, times, strict=True):
        phases.see(line, at)
    return phases


@pytest.mark.parametrize(("line", "name"), LOG)
def test_each_line_begins_its_phase(line: str, name: str) -> None:
    assert Phases().see(line, 1.0) == name


def test_every_phase_has_a_line_here() -> None:
    assert [name for _, name in LOG] == [name for name, _ in BEGINNINGS]


@pytest.mark.parametrize("line", ["", "INFO Loading model weights", "INFO: 127.0.0.1 GET /health 200"])
def test_other_lines_begin_nothing(line: str) -> None:
    phases = Phases()
    assert phases.see(line, 1.0) is None
    assert phases.durations(5.0) == {FIRST_PHASE: 5.0}


def test_phase_ends_where_the_next_begins() -> None:
    phases = Phases()
    phases.see(LOG[0][0], 2.0)
    phases.see(LOG[2][0], 5.0)
    assert phases.durations(11.0) == {FIRST_PHASE: 2.0, "configuration": 3.0, "weights": 6.0}


def test_phases_come_in_the_order_of_the_log() -> None:
    assert list(seen([1, 2, 3, 4, 5, 6, 7]).durations(8.0)) == [FIRST_PHASE, *(name for _, name in LOG)]


def test_second_line_of_the_same_phase_begins_nothing() -> None:
    phases = Phases()
    phases.see("Loading weights took 0.4 seconds", 1.0)
    assert phases.see("Model loading took 0.3 GiB memory and 1.1 seconds", 2.0) is None
    assert phases.durations(3.0) == {FIRST_PHASE: 1.0, "compile": 2.0}


@given(st.lists(st.floats(0, 1000), min_size=len(LOG), max_size=len(LOG)), st.floats(0, 100))
def test_durations_add_up_to_the_total(times: list[float], rest: float) -> None:
    ordered = sorted(times)
    total = ordered[-1] + rest
    durations = seen(ordered).durations(total)
    assert sum(durations.values()) == pytest.approx(total)
    assert min(durations.values()) >= 0
