"""What a server's log says about why it died: a known cause with its fix, else the line that tells most."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.vllm.causes.cause import NO_SAMPLER
from pipeline.vllm.causes.table import CAUSES
from pipeline.vllm.compilers import CPP_COMPILER

# Which process wrote a line, and as what; only the words behind are looked at.
PREFIX = re.compile(r"^(\([\w ]*pid=\d+[^)]*\) ?)?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
INFORMATION = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d |^\d{4}-\d\d-\d\d [\d:,]+ - (?:DEBUG|INFO|WARNING) - ")
TRACEBACK = "Traceback (most recent call last):"
# A traceback shows source below each of its places, which may hold the text of any error.
SHOWN_SOURCE = re.compile(r"(?m)^(  File \"[^\n]*\", line \d+[^\n]*)(?:\n    [^\n]*)+")
NAMED = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b")
RAISED = re.compile(r"[A-Za-z_][\w.]*(?::|$)")
INVALID = re.compile(r"ValidationError: \d+ validation errors? for (\w+)$")
SERVES = "Application startup complete"

# A build that failed: what tells that one did, and how compilers, linkers and shells begin to say why.
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

# How an end from outside looks, most telling first, where no error tells more; seen in vLLM 0.32's log after each signal.
KILLED = "was killed (SIGKILL: by hand, or by the kernel for lack of memory)"
ENDINGS = (
    (r"Worker proc \S+ died unexpectedly \(exit code: -9\)", f"its worker {KILLED}"),
    (r"Worker proc \S+ died unexpectedly", "its worker ended unexpectedly"),
    (r"\[shutdown\] API server: shutdown triggered", "it was asked to end (SIGTERM), and not by us"),
    (r"engine core exited unexpectedly", f"its engine {KILLED}"),
)
LONGEST = 300
# Errors that only follow from another one.
WRAPPERS = re.compile(
    r"initialization failed|EngineDeadError|cannot schedule new futures after shutdown|Executor failed|RuntimeError: cancelled$"
)


@dataclass(frozen=True)
class Diagnosis:
    """The cause by name, in words, and the fix."""

    name: str
    says: str
    fix: str


def diagnose(log: str) -> Diagnosis | None:
    """Return the first cause whose text stands in the log, or that of a build that failed; None where neither is there."""
    text = SHOWN_SOURCE.sub(r"\1", "\n".join(line for _, line in loud(log)))
    for cause in CAUSES:
        match = re.search(cause.text, text)
        if match and not (cause.name == "killed" and SERVES in log):
            groups = [(group or "").strip() for group in match.groups()]
            return Diagnosis(cause.name, cause.says.format(*groups), cause.fix.format(*groups))
    return broken_build(text)


def loud(log: str) -> list[tuple[str, str]]:
    """Return (process, words) of each line that is no mere information."""
    found = []
    for line in COLOUR.sub("", log).splitlines():
        if not INFORMATION.search(line):
            prefix = PREFIX.match(line)
            assert prefix is not None, "it matches the empty text"
            found.append((prefix[1] or "", line[prefix.end() :]))
    return found


def broken_build(text: str) -> Diagnosis | None:
    """Return why kernels could not be compiled, in the compiler's own first words; None where no build failed."""
    failed = BUILD.search(text)
    if failed is None or (failed[1] and not COMPILERS.search(failed[1])):
        return None
    edge = EDGE.search(text)
    said = edge["said"].splitlines()[1:] if edge else text.splitlines()  # ninja shows the command first
    complaints = [line for line in said if COMPLAINT.search(line) and not PYTHON_ERROR.match(line)]
    words = next(iter(complaints or (line for line in said if edge and line.strip())), "")
    if not words:
        words = f"{failed[1]} failed without a word in the log" if failed[1] else "the build ended without a word"
    fix = f"mend that, or do without: {NO_SAMPLER if edge else WITHOUT_COMPILE}; a compiler with all it needs: {CPP_COMPILER.install}"
    return Diagnosis("build-failed", f"a kernel could not be compiled: {words.strip()[:LONGEST]}", fix)


def last_error(log: str) -> str:
    """Return the log's last line that names an exception, for a cause that the table does not know; else how it was ended."""
    errors = list(exceptions(log))
    telling = [line for line in errors if not WRAPPERS.search(line)]
    if not telling:
        ending = next((says for text, says in ENDINGS if re.search(text, log)), "")
        if ending or not errors:
            return ending
    return (telling or errors)[-1][:LONGEST]


def exceptions(log: str) -> Iterator[str]:
    """Yield each exception that the log names, in its order: by the tracebacks' ends, or by its name in any other line."""
    lines = loud(log)
    source: dict[str, str] = {}  # of each process whose traceback is not at its end: the line of source shown last
    for number, (process, line) in enumerate(lines):
        if line.startswith(TRACEBACK):
            source[process] = ""
        elif process in source and line[:1].isspace():
            shown = line.strip()
            source[process] = shown if line.startswith("    ") and set(shown) - set("^~ ") else source[process]
        elif process in source and RAISED.match(line):
            yield telling_line(line, source.pop(process), [words for other, words in lines[number + 1 :] if other == process])
        elif NAMED.search(line) and not re.search(r"\braise \w", line):
            yield telling_line(line.strip(), "", [words for other, words in lines[number + 1 :] if other == process])


def telling_line(line: str, source: str, after: list[str]) -> str:
    """Return an exception's line with what makes it telling where it alone says nothing: what comes below, or the source."""
    invalid = INVALID.search(line)
    if invalid:
        below = next((words.strip() for words in after if "[type=" in words or "Value error, " in words), "")
        field = next(
            (words.strip() for words in after[:1] if words.strip() and words.strip() not in below and " " not in words.strip()), ""
        )
        said = re.sub(r"^Value error, | \[type=.*$", "", below)
        return f"{invalid[1]}{f'.{field}' if field else ''}: {said}" if said else line
    if line.endswith(":"):
        return f"{line} {next((words.strip() for words in after if words.strip()), '')}".strip()
    return f"{line} ({source})" if source and ":" not in line else line
