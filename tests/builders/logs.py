"""Logs of a vLLM server that died, as vLLM 0.32 and 0.33 write them."""

CORE = "(EngineCore pid=4242) ERROR 11-23 13:40:10 [core.py:936] "
API = "(APIServer pid=4200) "
WRAPPER = "\n(APIServer pid=4200) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


def log_of(line: str) -> str:
    """Return a log with a start, the telling line in a traceback, and the wrapper that hides it."""
    start = f"{API}INFO 11-23 13:40:01 [api_server.py:1987] vLLM API server version 0.32.0\n"
    return f"{start}{CORE}EngineCore failed to start.\n{CORE}Traceback (most recent call last):\n{CORE}{line}\n{API}Traceback{WRAPPER}"
