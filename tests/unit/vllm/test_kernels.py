"""The kernels that vLLM's log names as compiled while it served."""

from pipeline.vllm.kernels import compiled, is_monitored

ACTIVE = "(EngineCore pid=7) INFO 11-27 15:20:31 [jit_monitor.py:84] Kernel JIT monitor activated; monitored JIT compilations follow.\n"


def warning(what: str, kernel: str, worker: str = "EngineCore pid=7") -> str:
    advice = "This causes a latency spike; consider extending warmup to cover this shape/config."
    return f"({worker}) WARNING 11-27 15:21:00 [jit_monitor.py:141] {what} during inference: {kernel}. {advice}\n"


def test_each_kernel_is_named_once_in_the_order_of_the_log() -> None:
    log = (
        ACTIVE
        + warning("Triton kernel JIT compilation", "_topk_log_softmax_kernel", "Worker_TP0 pid=8")
        + warning("Triton kernel JIT compilation", "_topk_log_softmax_kernel", "Worker_TP1 pid=9")
        + "INFO: 127.0.0.1 - POST /v1/chat/completions 200 OK\n"
        + warning("CuTeDSL JIT compilation", "Attention")
        + warning("Triton kernel JIT compilation", "pkg._gumbel_sample_kernel (constexprs={BLOCK=64. x}; key='a')")
    )
    assert is_monitored(log)
    assert compiled(log) == ["_topk_log_softmax_kernel", "Attention", "pkg._gumbel_sample_kernel"]


def test_what_is_no_plain_name_is_counted_and_made_harmless() -> None:
    log = ACTIVE + warning("Triton kernel JIT compilation", "a`<img src=x>" + "k" * 200)
    (name,) = compiled(log)
    assert name.startswith("a??img?src?x?kk")
    assert len(name) == 100


def test_a_log_without_such_lines_names_none() -> None:
    assert compiled(ACTIVE) == []
    assert is_monitored(ACTIVE)
    assert not is_monitored("INFO: Application startup complete.\n")
