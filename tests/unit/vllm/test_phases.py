"""Start-up phases from the server's log."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vllm.phases import BEGINNINGS, FIRST_PHASE, Phases

# Lines as vLLM 0.32 and 0.33 write them: its first model runner, with every phase.
GRAPHS = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):   0%|          | 0/35 [00:00<?, ?it/s]"
LOG = [
    ("(APIServer pid=7) INFO 11-23 13:40:01 [utils.py:233] non-default args: {'model': 'm', 'port': 8000}", "configuration"),
    ("(EngineCore pid=9) INFO 11-23 13:40:05 [core.py:77] Initializing a V1 LLM engine (v0.32.0) with config: ...", "engine"),
    ("(EngineCore pid=9) INFO 11-23 13:40:09 [cpu_model_runner.py:55] Starting to load model m...", "weights"),
    ("(EngineCore pid=9) INFO 11-23 13:40:10 [default_loader.py:267] Loading weights took 0.41 seconds", "compile"),
    ("(EngineCore pid=9) INFO 11-23 13:40:25 [gpu_model_runner.py:6304] Profiling CUDA graph memory: PIECEWISE=35", "graph memory"),
    ("(EngineCore pid=9) INFO 11-23 13:40:31 [kv_cache_utils.py:864] GPU KV cache size: 46,592 tokens", "KV cache"),
    (GRAPHS, "graphs"),
    ("(EngineCore pid=9) INFO 11-23 13:40:40 [core.py:217] init engine (profile, create kv cache, warmup model) took 29.6 s", "HTTP"),
]


def seen(times: list[float]) -> Phases:
    phases = Phases()
    for (line, _), at in zip(LOG, times, strict=True):
        phases.see(line, at)
    return phases


def test_each_line_begins_its_phase() -> None:
    phases = Phases()
    assert [phases.see(line, 1.0) for line, _ in LOG] == [name for _, name in LOG]


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
    assert list(seen([1, 2, 3, 4, 5, 6, 7, 8]).durations(9.0)) == [FIRST_PHASE, *(name for _, name in LOG)]


def test_second_line_of_the_same_phase_begins_nothing() -> None:
    phases = seen([1, 2, 3, 4, 5, 6, 7, 8])
    before = phases.durations(9.0)
    assert phases.see(GRAPHS, 8.5) is None
    assert phases.see("(EngineCore pid=10) INFO 11-23 13:40:31 [kv_cache_utils.py:1147] GPU KV cache size: 46,592 tokens", 8.6) is None
    assert phases.durations(9.0) == before


# Lines of real starts, with the seconds since the first; a bar of tqdm is a line for each step.
BAR = "Capturing CUDA graphs ({mode}): {done:3d}%|          | {done}/51 [00:00<00:11,  4.48it/s]"
V2_RUNNER = [
    (5.1, "(APIServer pid=65) INFO 11-27 10:00:05 [startup.py:96] non-default args: {'max_model_len': 2048}"),
    (20.0, "(EngineCore pid=66) INFO 11-27 10:00:20 [core.py:139] Initializing a V1 LLM engine (v0.33.0) with config: model='m'"),
    (23.0, "(EngineCore pid=66) INFO 11-27 10:00:23 [gpu_worker.py:513] Using V2 Model Runner"),
    (24.0, "(EngineCore pid=66) INFO 11-27 10:00:24 [model_runner.py:399] Loading model from scratch..."),
    (26.0, "(EngineCore pid=66) INFO 11-27 10:00:26 [default_loader.py:506] Loading weights took 0.12 seconds"),
    (29.0, "(EngineCore pid=66) INFO 11-27 10:00:29 [model_runner.py:428] Model loading took 0.28 GiB memory and 4.901234 seconds"),
    (30.0, "(EngineCore pid=66) INFO 11-27 10:00:30 [monitor.py:40] [backbone] Starting torch.compile"),
    (58.0, "(EngineCore pid=66) INFO 11-27 10:00:58 [monitor.py:91] [backbone] Initial profiling/warmup run took 0.05 s"),
    (70.0, BAR.format(mode="PIECEWISE", done=0)),
    (72.0, BAR.format(mode="PIECEWISE", done=40)),
    (74.0, BAR.format(mode="FULL", done=0)),
    (76.0, "(EngineCore pid=66) INFO 11-27 10:01:16 [model_runner.py:1163] Graph capturing finished in 6 secs, took 0.24 GiB"),
    (77.0, "(EngineCore pid=66) INFO 11-27 10:01:17 [gpu_worker.py:772] Available KV cache memory: 6.91 GiB"),
    (77.1, "(EngineCore pid=66) INFO 11-27 10:01:17 [kv_cache_utils.py:1147] GPU KV cache size: 311,040 tokens"),
    (77.5, "(EngineCore pid=66) INFO 11-27 10:01:17 [kernel_warmup.py:179] JIT kernel warmup starting."),
    (80.0, BAR.format(mode="PIECEWISE", done=0)),
    (90.0, BAR.format(mode="FULL", done=0)),
    (95.0, "(EngineCore pid=66) INFO 11-27 10:01:35 [core.py:405] init engine (profile, create kv cache, warmup model) took 66.1 s"),
]
# Two workers, random weights: nothing is read, and each says when its own are there.
TWO_WORKERS = [
    (44.0, "(EngineCore pid=50) INFO 11-27 10:10:44 [core.py:139] Initializing a V1 LLM engine (v0.33.0) with config: model='m'"),
    (64.0, "(Worker_TP0 pid=52) INFO 11-27 10:11:04 [model_runner.py:399] Loading model from scratch..."),
    (67.2, "(Worker_TP1 pid=53) INFO 11-27 10:11:07 [model_runner.py:428] Model loading took 3.1 GiB memory and 3.711111 seconds"),
    (67.9, "(Worker_TP0 pid=52) INFO 11-27 10:11:07 [model_runner.py:428] Model loading took 3.1 GiB memory and 3.901111 seconds"),
]
PROCESSOR = [
    (4.0, "(APIServer pid=7) INFO 11-24 21:00:04 [utils.py:233] non-default args: {'model': 'm'}"),
    (11.0, "(EngineCore pid=7) INFO 11-24 21:00:11 [core.py:105] Initializing a V1 LLM engine (v0.32.0) with config: model='m'"),
    (11.5, "(EngineCore pid=7) INFO 11-24 21:00:11 [cpu_model_runner.py:68] Starting to load model models/m..."),
    (12.0, "(EngineCore pid=7) INFO 11-24 21:00:12 [default_loader.py:430] Loading weights took 0.31 seconds"),
    (12.4, "(EngineCore pid=7) INFO 11-24 21:00:12 [cpu_model_runner.py:88] Warming up model for the compilation..."),
    (58.0, "(EngineCore pid=7) INFO 11-24 21:00:58 [cpu_model_runner.py:92] Warming up done."),
    (58.5, "(EngineCore pid=7) INFO 11-24 21:00:58 [kv_cache_utils.py:1100] CPU KV cache size: 23,296 tokens"),
    (60.0, "(EngineCore pid=7) INFO 11-24 21:01:00 [core.py:300] init engine (profile, create kv cache, warmup model) took 48.1 s"),
]


def phases_of(log: list[tuple[float, str]]) -> dict[str, float]:
    phases = Phases()
    for at, line in log:
        phases.see(line, at)
    return {name: round(seconds, 1) for name, seconds in phases.durations(log[-1][0] + 1).items()}


def test_the_second_model_runner_shows_its_weights_and_both_captures() -> None:
    assert phases_of(V2_RUNNER) == {
        FIRST_PHASE: 5.1,
        "configuration": 14.9,
        "engine": 4.0,
        "weights": 5.0,  # until they are laid out on the device, not only read
        "compile": 41.0,
        "graph memory": 7.1,
        "KV cache": 2.9,
        "graphs": 15.0,
        "HTTP": 1.0,
    }


def test_weights_last_until_the_last_worker_has_them() -> None:
    assert phases_of(TWO_WORKERS) == {FIRST_PHASE: 44.0, "engine": 20.0, "weights": 3.9, "compile": 1.0}


def test_a_processor_compiles_before_it_has_a_cache_and_captures_nothing() -> None:
    assert phases_of(PROCESSOR) == {
        FIRST_PHASE: 4.0,
        "configuration": 7.0,
        "engine": 0.5,
        "weights": 0.5,
        "compile": 46.5,
        "KV cache": 1.5,
        "HTTP": 1.0,
    }


@pytest.mark.parametrize("runner", [V2_RUNNER, TWO_WORKERS, PROCESSOR])
def test_weights_are_never_missing_even_where_no_line_tells_their_beginning(runner: list[tuple[float, str]]) -> None:
    unknown = [(at, line) for at, line in runner if "model from scratch" not in line and "to load model" not in line]
    named = phases_of(unknown)
    assert 0 < named["weights"] < 5
    assert list(named) == list(phases_of(runner))


def test_a_phase_is_never_negative_where_loading_says_more_than_the_clock() -> None:
    phases = Phases()
    phases.see("Initializing a V1 LLM engine", 10.0)
    phases.see("Model loading took 0.3 GiB memory and 30.5 seconds", 12.0)
    assert phases.durations(13.0) == {FIRST_PHASE: 10.0, "engine": 0.0, "weights": 2.0, "compile": 1.0}


def test_the_bars_of_a_log_file_are_lines_of_their_own(tmp_path: Path) -> None:
    """As wait_until_ready reads it: tqdm ends its lines with carriage returns."""
    log = tmp_path / "server.log"
    bars = "\r".join(["", *(BAR.format(mode="PIECEWISE", done=done) for done in range(0, 52, 3))])
    log.write_bytes(f"KV cache size: 4 tokens\n{bars}".encode())
    with log.open(encoding="utf-8", errors="replace") as lines:
        *whole, _ = lines.read().split("\n")
    phases = Phases()
    assert [name for line in whole if (name := phases.see(line, 1.0))] == ["KV cache", "graphs"]


@given(st.lists(st.floats(0, 1000), min_size=len(LOG), max_size=len(LOG)), st.floats(0, 100))
def test_durations_add_up_to_the_total(times: list[float], rest: float) -> None:
    ordered = sorted(times)
    total = ordered[-1] + rest
    durations = seen(ordered).durations(total)
    assert sum(durations.values()) == pytest.approx(total)
    assert min(durations.values()) >= 0
