"""Lies on the wire, and answers that are unusual and true; and lies about who answers, and about memory."""

from typing import Any

from pipeline.measure.verdicts import Verdict
from tests.fakes.script import Script
from tests.lies.front import CHUNKED_THEN_CLOSED, UNTIL_CLOSED, Twist
from tests.lies.lie import FAILS, INVALID, UNBELIEVED, Lie, Situation, Twin, gate, gate_on
from tests.lies.servers import (
    CONTINUE,
    EARLY_HINTS,
    HangsUp,
    SaysYes,
    Spoils,
    Swaps,
    Wire,
    abort,
    cut_off,
    kv_gauges,
    new_error,
    no_end,
    old_error,
    only_usage,
    renamed,
)
from tests.lies.speed import ALONE, HONEST_RATE

ANSWERED = gate("endpoint_answers")
EIGHT: dict[str, Any] = {**ALONE, "decode_requests": 5, "output_tokens": 8}


def of_wire(name: str, says: str, twist: Any, twin: Any = Twist, **script: Any) -> Lie:
    """Return a lie whose twin is an answer that is unusual on the wire."""
    server = Situation(lambda: Script(inter_token_s=0.005, **script), twist)
    honest = Twin(Situation(lambda: PACED, twin))
    return Lie(name, says, "bench", ANSWERED, server, FAILS | INVALID, twin=honest, settings=EIGHT)


BROKEN = [
    of_wire("error-event", "puts an error event into a stream with status 200, then ends as if all were well", lambda: Spoils(new_error)),
    of_wire(
        "error-object",
        'puts the older {"object": "error"} into a stream with status 200; its twin ends lines by CR alone',
        lambda: Spoils(old_error),
        lambda: Wire(line_end="\r"),
    ),
    of_wire(
        "aborted",
        "ends with finish_reason abort; its twin ends lines by CR and LF",
        lambda: Spoils(abort),
        lambda: Wire(line_end="\r\n"),
    ),
    of_wire(
        "only-usage",
        "sends a usage chunk without an answer; its twin sends 100 Continue first",
        lambda: Spoils(only_usage),
        lambda: Wire(CONTINUE),
    ),
    of_wire(
        "cut-off",
        "ends in the middle of the answer, well-formed; its twin lacks the last blank line",
        lambda: Spoils(cut_off),
        lambda: Wire(has_last_line=False),
    ),
    of_wire(
        "no-end",
        "ends with neither a finish reason nor [DONE]; its twin sends 103 Early Hints first",
        lambda: Spoils(no_end),
        lambda: Wire(EARLY_HINTS),
    ),
    of_wire(
        "breaks-off",
        "drops the connection in the middle of an answer; its twin ends the body by closing the connection",
        None,
        lambda: Wire(length=UNTIL_CLOSED),
        by_number={str(number): {"break_after": 3} for number in (3, 11)},
    ),
    of_wire(
        "hangs-up",
        "drops every fifth connection in place of an answer; its twin closes the connection after each answer, and says so",
        HangsUp,
        lambda: Wire(length=CHUNKED_THEN_CLOSED),
    ),
    of_wire("all-fail", "answers with status 500 every time", None, status=500),
]


def of_identity(name: str, says: str, server: Situation, allowed: frozenset[Verdict], identity: Any) -> Lie:
    return Lie(name, says, "bench", HONEST_RATE, server, allowed, twin=Twin(Situation(lambda: PACED, identity=identity)), settings=ALONE)


PACED = Script(inter_token_s=0.005)
SIMULATED: frozenset[Verdict] = frozenset({"SIMULATED"})
IDENTITIES = [
    of_identity(
        "another-version",
        "says another version on /version than the one that is installed",
        Situation(lambda: Script(inter_token_s=0.002, version="0.99.0"), identity="started"),
        SIMULATED,
        "started",
    ),
    of_identity(
        "another-folder",
        "serves another folder than the one it was started with",
        Situation(lambda: Script(inter_token_s=0.002, root="/models/another"), identity="started"),
        SIMULATED,
        "started",
    ),
    of_identity(
        "another-owner",
        "is a mock with good manners: right forms, answers, metrics, but not vLLM's",
        Situation(lambda: Script(inter_token_s=0.002, owned_by="a mock"), identity="attached"),
        SIMULATED,
        "attached",
    ),
    of_identity(
        "tokens-uncounted",
        "is a mock whose metrics do not count what it says",
        Situation(lambda: Script(inter_token_s=0.002, counting=0), identity="attached"),
        SIMULATED,
        "attached",
    ),
    of_identity(
        "tokens-renamed",
        "has renamed the counter of generated tokens",
        Situation(lambda: PACED, lambda: renamed("vllm:generation_tokens_total"), "attached"),
        SIMULATED,
        "attached",
    ),
    of_identity(
        "says-yes",
        "is a mock that says 200 to everything",
        Situation(lambda: PACED, SaysYes, "attached"),
        frozenset({"NOT_MEASURED", "SIMULATED"}),
        "attached",
    ),
    of_identity(
        "model-swapped",
        "serves another model from the middle of the run on; /v1/models names it",
        Situation(lambda: PACED, lambda: Swaps(8, id="another-model"), "attached"),
        frozenset({"INVALID", "NOT_MEASURED", "SIMULATED"}),
        "attached",
    ),
    of_identity(
        "root-swapped",
        "serves another folder under the same name from the middle of the run on",
        Situation(lambda: PACED, lambda: Swaps(8, root="/models/another"), "attached"),
        frozenset({"INVALID", "NOT_MEASURED", "SIMULATED"}),
        "attached",
    ),
]

# Memory. The load of earlier tests is on record, so that nothing waits for it; the samples are the sampler's lines.
STABLE = gate("host_memory_stable")
LONG_S, SHORT_S = 3600.0, 10.0  # long enough to tell a drift over a day
BASE_MIB = 300.0
REQUESTS_PER_S = 2.0


def of_memory(name: str, says: str, host_mib: Any, allowed: frozenset[Verdict], load_s: float = LONG_S, **more: Any) -> Lie:
    server = Situation(host_mib=host_mib, load_s=load_s)
    lie: dict[str, Any] = {"twin": STEADY, "settings": {"load_s": load_s}, **more}
    return Lie(name, says, "measure-vram", STABLE, server, allowed, **lie)


def noise(at_s: float) -> float:
    """Return how far memory moves without a reason: up to 1 MiB, as pages come and go."""
    return int(at_s * 7919) % 11 / 10


STEADY = Twin(Situation(host_mib=lambda at_s: BASE_MIB + noise(at_s), load_s=LONG_S), settings={"load_s": LONG_S})
ONCE = Twin(Situation(host_mib=lambda at_s: BASE_MIB + noise(at_s) + (at_s > LONG_S / 2), load_s=LONG_S))
MEMORY = [
    of_memory(
        "leak",
        "leaks 1 MiB a request; its twin takes 1 MiB more, once",
        lambda at_s: BASE_MIB + REQUESTS_PER_S * at_s,
        FAILS,
        twin=ONCE,
    ),
    of_memory("leak-slow", "leaks 40 MiB an hour, a gigabyte a day", lambda at_s: BASE_MIB + noise(at_s) + 40 * at_s / 3600, FAILS),
    of_memory(
        "leak-short",
        "leaks 1 MiB a request, and is watched for 10 s",
        lambda at_s: BASE_MIB + REQUESTS_PER_S * at_s,
        frozenset({"FAIL", "INCONCLUSIVE", "NOT_MEASURED"}),
        SHORT_S,
    ),
    Lie(
        "preemptions-renamed",
        "has renamed the counter of preemptions: nobody knows whether there were any",
        "measure-vram",
        gate_on("measure-vram.preemptions", "==", 0, ""),
        Situation(twist=lambda: renamed("vllm:num_preemptions_total"), host_mib=STEADY.server.host_mib, load_s=LONG_S),
        UNBELIEVED,
        twin=STEADY,
        settings={"load_s": LONG_S},
    ),
    Lie(
        "four-engines",
        "has four engines whose KV caches are 41 % full each; together they are not 163 % full",
        "measure-vram",
        gate_on("measure-vram.kv_cache_peak", "<", 100),
        Situation(twist=lambda: kv_gauges(0.41, 0.40, 0.42, 0.41)),
        frozenset({"PASS"}),
        (40, 42),
        Twin(Situation(twist=lambda: kv_gauges(0.41))),
    ),
]

LIES = [*BROKEN, *IDENTITIES, *MEMORY]
