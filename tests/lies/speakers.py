"""What the fake server says where its answer follows from the prompt: prose, and routers that are right or not."""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.fakes.script import Script


@dataclass(frozen=True)
class Speaker(Script):
    """A script whose answer follows from the prompt."""

    speak: Callable[[str], str] = str

    def for_request(self, number: int, prompt: str) -> Script:
        return dataclasses.replace(super().for_request(number, prompt), texts=(self.speak(prompt),))


def prose(prompt: str) -> str:
    """Return 100 tokens that follow from the prompt."""
    return "".join(random.Random(prompt).choices("abcdefghijklmnopqrstuvwxyz", k=400))


# Routers. The golden route of an utterance follows from its number.
ROUTES = ("calendar", "calendar", "smalltalk", "unknown", "music")
CASES = 100


def utterance(number: int) -> str:
    return f"Utterance {number:03d}."


def number_of(prompt: str) -> int:
    found = re.search(r"Utterance (\d{3})", prompt)
    return int(found[1]) if found else 0


def routed(route: str) -> str:
    """Return a valid answer with that route."""
    return json.dumps({"route": route, "calendar_intent": "none", "slots": {}})


def right(prompt: str) -> str:
    return routed(ROUTES[number_of(prompt) % len(ROUTES)])


def wrong(prompt: str) -> str:
    return routed(ROUTES[(number_of(prompt) + 2) % len(ROUTES)])


def lucky(prompt: str) -> str:
    """Return the right answer in 85 of 100 cases."""
    return wrong(prompt) if number_of(prompt) % 20 in (0, 7, 13) else right(prompt)


def knows_what_it_saw() -> Callable[[str], str]:
    """Return a router that is right where it sees a prompt again."""
    seen: set[str] = set()

    def answer(prompt: str) -> str:
        again = prompt in seen
        seen.add(prompt)
        return right(prompt) if again else wrong(prompt)

    return answer
