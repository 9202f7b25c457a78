"""The diagnosis of a server's death from its log: a known cause with its fix, else the most specific error line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.vllm.causes.cause import NO_SAMPLER
from pipeline.vllm.causes.table import CAUSES
from pipeline.vllm.compilers import CPP_COMPILER

# The process and the log level before a line's text; only the text is searched.
PREFIX = re.compile(r"^(\([\w ]*pid=\d+[^)]*\) ?)?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
INFORMATION = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d |^\d{4}-\d\d-\d\d [\d:,]+ - (?:DEBUG|INFO|WARNING) - ")
TRACEBACK = "Traceback (most recent call last):"
# A traceback shows a source line below each frame, which may contain the text of any error.
SHOWN_SOURCE = re.compile(r"(?m)^(  File \"[^\n]*\", line \d+[^\n]*)(?:\n    [^\n]*)+")
NAMED = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b")
RAISED = re.compile(r"[A-Za-z_][\w.]*(?::|$)")
INVALID = re.compile(r"ValidationError: \d+ validation errors? for (\w+)$")
SERVES = "Application startup complete"

# A failed build: BUILD shows that there was one, COMPLAINT how compilers, linkers and shells report the reason.
BUILD = re.compile(
    r"Ninja build failed|Error building extension|CppCompileError|C\+\+ compile error|CalledProcessError: Command '\['([^']+)'"
)
COMPLAINT = re.compile(
    r"\berror\s*:|\berror #?\d+|\bfatal\s*:|undefined (?:reference|symbol)|[Nn]ot found$|Permission denied|No such file or directory"
)
PYTHON_ERROR = re.compile(r"[\w.]*(?:Error|Exception)\b")
EDGE = re.compile(r"(?m)^FAILED: [^\n]*\n(?P<said>(?:(?!\[\d+/\d+\] |ninja: |FAILED: )[^\n]*\n?)*)")
COMPILERS = re.compile(r"(?:cc|gcc|g\+\+|c\+\+|clang(?:\+\+)?|nvcc|ninja)(?:-[\d.]+)?$")
WITHOUT_COMPILE = "--set serve.enforce_eager=true leaves torch.compile out"

# Signs of an end from outside, most specific first, where no error says more; from vLLM 0.32's log after each signal.
KILLED = "was killed (SIGKILL: by hand, or by the kernel for lack of memory)"
ENDINGS = (
    (r"Worker proc \S+ died unexpectedly \(exit code: -9\)", f"its worker {KILLED}"),
    (r"Worker proc \S+ died unexpectedly", "its worker ended unexpectedly"),
    (r"\[shutdown\] API server: shutdown triggered", "it was asked to end (SIGTERM), and not by us"),
    (r"engine core exited unexpectedly", f"its engine {KILLED}"),
    # The parent reads the end of a worker's pipe, and the worker itself has said nothing (multiproc_executor.py, wait_for_ready).
    (r"WorkerProc initialization failed", f"a worker ended while it loaded, as if it {KILLED}"),
)
LONGEST = 300
LAST_LINES = 3
# Lines that say nothing about the cause.
EMPTY_WORDS = re.compile(
    r"\s|Traceback |The above exception|During handling of|Process \w+:|EngineCore failed to start|For further information|Set TORCH"
    r"|CUDA kernel errors might|For debugging consider|Compile with|(?:INFO|DEBUG|WARNING)\b|\[?W\d+|\w*[Ww]arning\b|\S*:\d+: \w*Warning"
)
# Errors that are only consequences of another one.
WRAPPERS = re.compile(
    r"initialization failed|EngineDeadError|cannot schedule new futures after shutdown|Executor failed|RuntimeError: cancelled$"
)


@dataclass(frozen=True)
class Diagnosis:
    """A cause of death: its name, its description and its fix."""

    name: str
    says: str
    fix: str


def diagnose(log: str) -> Diagnosis | None:
    """Return the first known cause in the log, else the reason of a failed build; None where there is neither."""
    text = SHOWN_SOURCE.sub(r"\1", "\n".join(line for _, line in error_lines(log)))
    for cause in CAUSES:
        match = re.search(cause.text, text)
        if match and not (cause.name == "killed" and SERVES in log):
            groups = [(group or "").strip() for group in match.groups()]
            return Diagnosis(cause.name, cause.says.format(*groups), cause.fix.format(*groups))
    return broken_build(text)


def error_lines(log: str) -> list[tuple[str, str]]:
    """Return (process, text) of each line that is not logged as DEBUG, INFO or WARNING."""
    result = []
    for line in COLOUR.sub("", log).splitlines():
        if not INFORMATION.search(line):
            prefix = PREFIX.match(line)
            assert prefix is not None, "it matches the empty text"
            result.append((prefix[1] or "", line[prefix.end() :]))
    return result


def broken_build(text: str) -> Diagnosis | None:
    """Return why a kernel could not be compiled, with the compiler's first complaint; None where no build failed."""
    build = BUILD.search(text)
    if build is None or (build[1] and not COMPILERS.search(build[1])):
        return None
    edge = EDGE.search(text)
    output = edge["said"].splitlines()[1:] if edge else text.splitlines()  # ninja shows the command first
    complaints = [line for line in output if COMPLAINT.search(line) and not PYTHON_ERROR.match(line)]
    words = next(iter(complaints or (line for line in output if edge and line.strip())), "")
    if not words:
        words = f"{build[1]} failed without a word in the log" if build[1] else "the build ended without a word"
    fix = f"mend that, or do without: {NO_SAMPLER if edge else WITHOUT_COMPILE}; a compiler with all it needs: {CPP_COMPILER.install}"
    if "cuda_utils" in text:  # Triton's launcher, which every start on a GPU builds
        fix = f"{CPP_COMPILER.install}; and `ldconfig -p | grep libcuda` must list the driver's library, which it is linked with"
    return Diagnosis("build-failed", f"a kernel could not be compiled: {words.strip()[:LONGEST]}", fix)


def last_error(log: str) -> str:
    """Return the log's last specific exception, else its sign of an end from outside, else its last lines; empty without any."""
    errors = list(exceptions(log))
    specific = [line for line in errors if not WRAPPERS.search(line)]
    if not specific:
        ending = next((says for text, says in ENDINGS if re.search(text, log)), "")
        return ending or last_words(log) or (errors[-1][:LONGEST] if errors else "")
    return specific[-1][:LONGEST]


def last_words(log: str) -> str:
    """Return the last lines that are neither information nor wrappers, with a dot between them; empty without any."""
    telling = [line.strip() for _, line in error_lines(log) if line and not EMPTY_WORDS.match(line) and not WRAPPERS.search(line)]
    return " · ".join(dict.fromkeys(telling[-LAST_LINES:]))[:LONGEST]


def exceptions(log: str) -> Iterator[str]:
    """Yield each exception in the log, in order: the last lines of tracebacks, and other lines that name an exception."""
    lines = error_lines(log)
    source: dict[str, str] = {}  # the source line shown last, by process with an open traceback
    for number, (process, line) in enumerate(lines):
        if line.startswith(TRACEBACK):
            source[process] = ""
        elif process in source and line[:1].isspace():
            text = line.strip()
            source[process] = text if line.startswith("    ") and set(text) - set("^~ ") else source[process]
        elif process in source and RAISED.match(line):
            yield completed_line(line, source.pop(process), [words for other, words in lines[number + 1 :] if other == process])
        elif NAMED.search(line) and not re.search(r"\braise \w", line):
            yield completed_line(line.strip(), "", [words for other, words in lines[number + 1 :] if other == process])


def completed_line(line: str, source: str, following: list[str]) -> str:
    """Return an exception's line; where it says nothing by itself, with the line below it or the source line that raised it."""
    validation = INVALID.search(line)
    if validation:
        detail = next((words.strip() for words in following if "[type=" in words or "Value error, " in words), "")
        field = next(
            (words.strip() for words in following[:1] if words.strip() and words.strip() not in detail and " " not in words.strip()), ""
        )
        message = re.sub(r"^Value error, | \[type=.*$", "", detail)
        return f"{validation[1]}{f'.{field}' if field else ''}: {message}" if message else line
    if line.endswith(":"):
        return f"{line} {next((words.strip() for words in following if words.strip()), '')}".strip()
    return f"{line} ({source})" if source and ":" not in line else line
