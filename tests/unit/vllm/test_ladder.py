"""What is tried next when memory is short: less each time, never more, and not for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schema import ServeConfig
from pipeline.vllm.causes.table import CAUSES
from pipeline.vllm.ladder import CPU_CACHE, FEWEST_SEQUENCES, HOPELESS, MEMORY_CAUSES, PLANNED, smaller
from pipeline.vllm.plan import SHORTEST_CONTEXT

FREE = "ValueError: Free memory on device cuda:0 ({free}/5.77 GiB) on startup is less than desired GPU memory utilization (0.75, 4.33 GiB)."
LENGTH = "To serve at least one request with the model's max seq len (4096), ... the estimated maximum model length is 2050."
FULL = ServeConfig(gpu_memory_utilization=0.75, max_model_len=4096, max_num_seqs=16)


def changes(settings: ServeConfig, cause: str, log: str = "") -> list[str]:
    """Return what is changed, start after start, while every one fails for the same cause."""
    found = []
    while rung := smaller(settings, cause, log):
        settings, changed = rung
        found.append(changed)
    return found


def test_the_causes_are_those_of_the_diagnosis() -> None:
    assert set(MEMORY_CAUSES) <= {cause.name for cause in CAUSES}


def test_others_on_the_gpu_first_cost_a_share_of_it() -> None:
    log = FREE.format(free="3.21")
    assert changes(FULL, "free-vram", log) == ["gpu_memory_utilization 0.75 → 0.55"], "and no other setting changes what is free"


@pytest.mark.parametrize("log", [FREE.format(free="0.31"), FREE.format(free="5.70")])
def test_a_share_that_is_useless_or_no_smaller_is_not_tried(log: str) -> None:
    assert changes(FULL, "free-vram", log) == []


def test_a_log_without_the_free_share_leads_to_the_next_step() -> None:
    assert changes(FULL, "free-vram", "Free memory, somehow")[0] == "max_model_len 4096 → 2048"


def test_the_context_that_vllm_names_is_taken() -> None:
    assert changes(FULL, "kv-below-context", LENGTH)[0] == "max_model_len 4096 → 2048"
    assert changes(FULL, "kv-below-context", LENGTH.replace("2050", "3333"))[0] == "max_model_len 4096 → 3328"


def test_our_own_words_for_the_free_memory_leave_room_for_the_context() -> None:
    words = "not started: 4100 of 5800 MiB are free on GPU 0 (RTX), and serve.gpu_memory_utilization 0.75 asks for 4350"
    assert changes(FULL, "free-vram", words) == ["gpu_memory_utilization 0.75 → 0.62"]
    assert changes(FULL, "free-vram", words.replace("4100", "700")) == [], "and no other setting helps"


def test_the_older_words_for_the_free_memory_are_read_too() -> None:
    log = "ValueError: Free memory on device (3.21/5.77 GiB) on startup is less than desired GPU memory utilization (0.75, 4.33 GiB)."
    assert changes(FULL, "free-vram", log)[0] == "gpu_memory_utilization 0.75 → 0.55"


def test_a_warm_up_of_many_requests_first_costs_requests() -> None:
    assert changes(FULL, "warm-up-oom")[:3] == ["max_num_seqs 16 → 8", "max_num_seqs 8 → 4", "max_model_len 4096 → 2048"]


def test_what_the_plan_refuses_is_made_smaller_unless_that_is_no_use() -> None:
    assert changes(FULL, PLANNED)[0] == "max_model_len 4096 → 2048"
    assert changes(FULL, HOPELESS) == []


def test_then_shorter_contexts_and_fewer_sequences() -> None:
    assert changes(FULL, "gpu-oom") == [
        "max_model_len 4096 → 2048",
        "max_model_len 2048 → 1024",
        "max_num_seqs 16 → 8",
        "max_num_seqs 8 → 4",
    ]


@pytest.mark.parametrize("cause", ["free-ram", "killed"])
def test_a_processor_has_less_cache_first(cause: str) -> None:
    settings = FULL.model_copy(update={"env": {CPU_CACHE: "4", "OTHER": "x"}})
    assert changes(settings, cause)[:3] == [f"{CPU_CACHE} 4 → 2", f"{CPU_CACHE} 2 → 1", "max_model_len 4096 → 2048"]


@given(
    st.floats(0.05, 1) | st.none(),
    st.integers(1, 200_000),
    st.integers(1, 1024),
    st.integers(0, 64),
    st.lists(st.tuples(st.sampled_from(MEMORY_CAUSES), st.sampled_from([LENGTH, FREE.format(free="2.00"), ""])), min_size=60, max_size=60),
)
def test_each_step_takes_less_and_there_is_an_end(
    share: float | None, length: int, sequences: int, cache: int, failures: list[tuple[str, str]]
) -> None:
    settings = ServeConfig(gpu_memory_utilization=share, max_model_len=length, max_num_seqs=sequences, env={CPU_CACHE: str(cache)})
    steps = 0
    for cause, log in failures:
        rung = smaller(settings, cause, log)
        if rung is None:
            continue
        less, _ = rung
        before = (settings.gpu_memory_utilization or 1, settings.max_model_len, settings.max_num_seqs, int(settings.env[CPU_CACHE]))
        after = (less.gpu_memory_utilization or 1, less.max_model_len, less.max_num_seqs, int(less.env[CPU_CACHE]))
        assert sum(now < then for now, then in zip(after, before, strict=True)) == 1
        assert sum(now == then for now, then in zip(after, before, strict=True)) == 3
        assert less.max_model_len >= min(length, SHORTEST_CONTEXT)
        assert less.max_num_seqs >= min(sequences, FEWEST_SEQUENCES)
        settings, steps = less, steps + 1
    assert steps < 40
