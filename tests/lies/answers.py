"""Lies about answers: routers that do not route, and answers that only look deterministic."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.measure.verdicts import Verdict
from tests.fakes.script import Script
from tests.lies.front import Twist
from tests.lies.lie import FAILS, INVALID, UNBELIEVED, Lie, Situation, Twin, gate, gate_on
from tests.lies.servers import Drops, Exchanges, Remembers, Samples, Thinks, at_random, renamed
from tests.lies.speakers import CASES, ROUTES, Speaker, knows_what_it_saw, lucky, prose, right, routed, wrong

ACCURACY, GAIN, PARSES = gate("router_accuracy"), gate("router_gain"), gate("json_parses")
COMMONEST = max(ROUTES, key=ROUTES.count)


def router(speak: Callable[[str], str], twist: Callable[[], Twist] | None = None) -> Situation:
    return Situation(lambda: Speaker(speak=speak, tokens_per_chunk=4), twist)


GOOD_ROUTER = Twin(router(right))


def of_router(
    name: str, says: str, judged: Any, server: Situation, allowed: frozenset[Verdict], twin: Twin = GOOD_ROUTER, **more: Any
) -> Lie:
    return Lie(name, says, "test-router", judged, server, allowed, twin=twin, **more)


def drafts(of: Callable[[str], str]) -> Callable[[str], str]:
    """Return thoughts that hold a draft of the answer."""
    return lambda prompt: f"Perhaps {of(prompt)}? The user may mean something else."


def spoilt(prompt: str) -> str:
    """Return a right answer that the schema does not allow."""
    return json.dumps({**json.loads(right(prompt)), "mood": "good"})


def first_sight() -> Situation:
    return Situation(lambda: Speaker(speak=knows_what_it_saw(), tokens_per_chunk=4))


ROUTERS = [
    of_router(
        "constant-route", "answers every utterance with the commonest route", GAIN, router(lambda _: routed(COMMONEST)), FAILS, truth=(0, 0)
    ),
    of_router("constant-json", "answers everything with one fixed valid JSON", ACCURACY, router(lambda _: routed("music")), FAILS),
    of_router(
        "right-when-cached",
        "is right only where it sees a prompt for the second time, as the arm is that goes last",
        ACCURACY,
        first_sight(),
        frozenset({"FAIL", "INVALID"}),
    ),
    of_router(
        "right-by-chance",
        "is right in 78 of 100 cases, and in 85 of these 100",
        ACCURACY,
        router(lucky),
        frozenset({"INCONCLUSIVE"}),
    ),
    of_router(
        "right-on-few",
        "is right in the 16 cases that were asked, and in no other",
        ACCURACY,
        router(right),
        frozenset({"INCONCLUSIVE"}),
        Twin(router(right), settings={"cases": CASES}),
        settings={"cases": 16},
    ),
    of_router("schema-ignored", "adds a key that the schema forbids, though the answer is constrained", PARSES, router(spoilt), FAILS),
    of_router(
        "json-in-a-fence",
        "puts the constrained answer into a fence",
        PARSES,
        router(lambda prompt: f"```json\n{right(prompt)}\n```"),
        FAILS,
    ),
    *(
        of_router(
            f"draft-in-{where}",
            f"names the right route in a draft in its thoughts ({how}), and another one in its answer",
            ACCURACY,
            router(wrong, partial(Thinks, drafts(right), parser)),
            FAILS,
            # The twin drafts the wrong route, and answers with the right one.
            Twin(router(right, partial(Thinks, drafts(wrong), parser))),
        )
        for where, how, parser in (
            ("reasoning-content", "a parser puts them into `reasoning_content`", "reasoning_content"),
            ("reasoning", "a parser puts them into `reasoning`", "reasoning"),
            ("think", "no parser: `<think>` in the text", None),
        )
    ),
]

SAME, EACH = gate("determinism"), gate("deterministic_output")
TWENTY: dict[str, Any] = {"count": 20, "runs": 2}
FOUR: dict[str, Any] = {"count": 4, "runs": 2}


def model(twist: Callable[[], Twist] = Samples, **script: Any) -> Situation:
    """Return a model whose answer follows from the prompt, and from the seed where there is a temperature."""
    return Situation(lambda: Speaker(speak=prose, **script), twist)


GOOD_MODEL = Twin(model())
LASTING: dict[str, Any] = {"first_token_s": 0.3}  # so that requests overlap
SLOW_MODEL = Twin(model(**LASTING))
CACHING_MODEL = Twin(model(cached_tokens=None))


def of_model(
    name: str, says: str, judged: Any, server: Situation, allowed: frozenset[Verdict], twin: Twin = GOOD_MODEL, **more: Any
) -> Lie:
    return Lie(name, says, "test-determinism", judged, server, allowed, twin=twin, **{"settings": TWENTY, **more})


ANSWERS = [
    of_model("temperature-raised", "samples though the temperature is 0", SAME, model(lambda: Samples(at_random)), FAILS),
    of_model(
        "temperature-ignored",
        "is greedy whatever the temperature, so equal answers prove nothing",
        SAME,
        model(lambda: Drops(temperature=0)),
        INVALID,
    ),
    of_model(
        "constrained-at-random",
        "answers the same every time, except where the answer is streamed and constrained, as the router's is",
        gate("determinism_constrained"),
        model(lambda: Samples(lambda payload: at_random(payload) if "response_format" in payload else Samples.true_marks(payload))),
        FAILS,
        settings={"count": 4, "runs": 2, "constrained": 20, "constrained_runs": 2},
    ),
    of_model(
        "seed-ignored",
        "samples without the seed",
        gate_on("test-determinism.d5_same_seed_identical", "==", 100),
        model(lambda: Samples(lambda payload: at_random(payload) if payload.get("temperature") else "")),
        FAILS | INVALID,
    ),
    of_model(
        "memory-by-prompt",
        "answers from memory by the prompt alone: sampled answers are the same for another seed, too",
        SAME,
        model(lambda: Remembers(by_prompt=True)),
        INVALID,
    ),
    of_model(
        "memory-by-request",
        "answers at random, and from memory where a request is the same as before",
        EACH,
        model(lambda: Remembers(by_prompt=False)),
        FAILS | INVALID,
    ),
    of_model(
        "answers-exchanged",
        "gives concurrent requests each other's answers",
        gate_on("test-determinism.d3_identical", "==", 100),
        model(Exchanges, **LASTING),
        FAILS | INVALID,
        SLOW_MODEL,
        settings={**FOUR, "load": (3,), "load_runs": 1},
    ),
    of_model(
        "other-under-load",
        "answers otherwise in company",
        gate_on("test-determinism.d3_identical", "==", 100),
        Situation(lambda: Script(texts=("a" * 400,), loaded_texts=("b" * 400,), **LASTING), Samples),
        FAILS | INVALID,
        SLOW_MODEL,
        settings={**FOUR, "load": (3,), "load_runs": 1},
    ),
    of_model(
        "load-unseen",
        "has renamed the gauge that shows the load, so there may have been none",
        gate_on("test-determinism.d3_identical", "==", 100),
        model(lambda: renamed("vllm:num_requests_running"), **LASTING),
        UNBELIEVED,
        SLOW_MODEL,
        settings={**FOUR, "load": (3,), "load_runs": 1},
    ),
    of_model(
        "cold-arm-warm",
        "has a prefix cache that ignores the salt: D2's cold answers are warm",
        gate_on("test-determinism.d2_identical", "==", 100),
        model(lambda: Drops("cache_salt"), cached_tokens=None),
        UNBELIEVED,
        CACHING_MODEL,
        settings={**FOUR, "cache_runs": 2},
    ),
]

LIES = [*ROUTERS, *ANSWERS]
