"""All lies: those that a report must catch, and those that nobody can see over HTTP."""

from tests.lies import answers, speed, wire
from tests.lies.lie import Lie, Unseen

LIES: list[Lie] = [*speed.LIES, *answers.LIES, *wire.LIES]

UNSEEN: list[Unseen] = [
    Unseen(
        "same-answers",
        "another model, or a more coarsely quantized one, that gives the same answers",
        "what is the same in every answer cannot be told apart by answers; the name and the folder are what the server says they are",
    ),
    Unseen(
        "recording",
        "a recording that is played back with the right timing",
        "an answer that comes when it should, with the tokens it should have, is the same bytes whoever computed it, and when",
    ),
    Unseen(
        "delayed",
        "a faster or larger machine behind a proxy that delays by the right amount",
        "the time of an answer is an upper bound of the time it takes; the device is what the server says it is",
    ),
    Unseen(
        "knows-the-test",
        "a server that knows the requests of this test and does its best for them alone",
        "the suites are public; your own prompts, in a suite of your own, are not",
    ),
    Unseen(
        "knows-the-client",
        "a server that gives this client a machine of its own, or keeps other customers away while it is measured",
        "one client sees its own answers; measure again at another hour, from another address",
    ),
    Unseen(
        "later",
        "a server that slows down, leaks or changes after the measurement has ended",
        "a measurement covers its own duration; a soak covers hours",
    ),
    Unseen(
        "consistent-books",
        "metrics that were made up to fit the answers",
        "counters, histograms and answers are cross-checked with each other, and with nothing that the server does not tell",
    ),
    Unseen(
        "memory-elsewhere",
        "memory and processors of a server that someone else runs",
        "they are read from the driver and the kernel, which HTTP does not show; so they are not measured there",
    ),
]
