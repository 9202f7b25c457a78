"""vLLM's own words about its memory, as its log has them."""

import pytest

from pipeline.vllm.breakdown import Breakdown, breakdown

LOG = """
(EngineCore pid=7) INFO [gpu_model_runner.py] Model loading took 5.7900 GiB memory and 2.1 seconds
(EngineCore pid=7) INFO [gpu_worker.py:440] Available KV cache memory: 30.12 GiB
(EngineCore pid=7) INFO [kv_cache_utils.py] GPU KV cache size: 877,312 tokens
(EngineCore pid=7) INFO [gpu_model_runner.py] Graph capturing finished in 3 secs, took 0.63 GiB
"""
ACTUAL = (
    "Actual usage is 6.10 GiB for consumed memory (weights + non-torch), 1.31 GiB for peak activation, and 0.63 GiB for CUDAGraph memory"
)


def test_each_part_is_read_in_mib() -> None:
    found = breakdown(LOG + ACTUAL)
    assert found.weights_mib == pytest.approx(5929, abs=0.1)
    assert found.kv_cache_mib == pytest.approx(30842.9, abs=0.1)
    assert found.graphs_mib == pytest.approx(645.1, abs=0.1)
    assert found.consumed_mib == pytest.approx(6246.4, abs=0.1)
    assert found.activations_mib == pytest.approx(1341.4, abs=0.1)
    assert found.kv_tokens == 877312


def test_the_second_model_runners_words_are_read_too() -> None:
    assert breakdown("INFO [model_runner.py:302] Model loading took 0.26 GiB and 1.448447 seconds").weights_mib == pytest.approx(
        266.2, abs=0.1
    )


def test_the_last_word_counts_and_silence_is_none() -> None:
    assert breakdown(LOG + "Available KV cache memory: -0.50 GiB").kv_cache_mib == -512
    assert breakdown("(Worker pid=7) INFO Explicitly set (1.0/9.84) GiB for KV cache on node 0.") == Breakdown()
