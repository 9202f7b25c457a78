"""The effect of a remedy against differing answers: a server without it and one with it, side by side. Pure."""

from collections.abc import Sequence

from pipeline.measure.figures import Figure
from pipeline.message import Code, Digits, Message, _, joined
from pipeline.report.cells import Cell, Text, comma_separated, glued, measured
from pipeline.report.parts import Table
from pipeline.stages.test_determinism import REMEDY_NOTE, Arm, PromptAgreement, Remedied, Side


def remedy_table(proof: Remedied) -> Table:
    """Return the table of answers and speed, without and with the remedy."""
    sides = (proof.without, proof.remedied)
    arms = dict.fromkeys((arm_name(arm), arm.what) for side in sides for arm in side.arms if arm.arm != "D5")
    remedy = Code(f"{proof.variable}={proof.value}")
    speeds = _("system throughput at concurrency {concurrency}", concurrency=proof.concurrency)
    answers: list[list[Cell]] = [[glued(arm, ", ", what), *(arm_words(side.arms, arm, what) for side in sides)] for arm, what in arms]
    return Table(
        _(
            "Answers equal to the sequential ones, and speed, without and with {remedy} ({distribution} {vllm} on {device}; {record})",
            remedy=remedy,
            distribution=proof.distribution,
            vllm=proof.vllm,
            device=proof.device,
            record=Code(f"artifacts/{REMEDY_NOTE}.json"),
        ),
        ["", _("without {variable}", variable=Code(proof.variable)), _("with {remedy}", remedy=remedy)],
        [
            *answers,
            [_("decode at concurrency 1, median"), *(speed(side.decode_tok_s) for side in sides)],
            [speeds, *(speed(side.system_tok_s) for side in sides)],
            [_("launches"), *(comma_separated(side.launch_ids) if side.launch_ids else _("none") for side in sides)],
            *troubles(sides),
        ],
    )


def troubles(sides: Sequence[Side]) -> list[list[Cell]]:
    """Return a row for each kind of trouble on either side."""
    kinds: list[tuple[Text, list[Text]]] = [
        (
            _("failed requests for speed"),
            [glued(len(side.errors), ": ", side.errors[0]) if side.errors else "" for side in sides],
        ),
        (_("a failed start was repeated with"), [joined("; ", [attempt.changed for attempt in side.attempts]) for side in sides]),
        (_("failed"), [side.failure.message if side.failure else "" for side in sides]),
        (_("SIMULATED, not a real vLLM"), [_("yes") if side.simulated else "" for side in sides]),
    ]
    return [[name, *(cell or _("no") for cell in cells)] for name, cells in kinds if any(cells)]


def arm_name(arm: Arm) -> Text:
    """Return the arm's name, with the suite's requests apart from the free ones."""
    return _("{arm}, constrained", arm=arm.arm) if arm.constrained else arm.arm


def arm_words(arms: Sequence[Arm], name: Text, what: Text) -> Message:
    """Return how many answers of that arm agree, or why it was not measured."""
    arm = next((arm for arm in arms if (arm_name(arm), arm.what) == (name, what)), None)
    if arm is None:
        return _("not measured")
    if arm.reason:
        return _("not measured: {reason}", reason=arm.reason)
    return glued(_("{agreeing} of {runs}", agreeing=arm.agreeing, runs=arm.runs), divergence(arm.prompts))


def speed(figure: Figure) -> Cell:
    """Return the figure, or why it was not measured or is INVALID."""
    return _("not measured: {reason}", reason=figure.reason) if figure.value is None else measured(figure, reason=figure.invalid)


def divergence(prompts: Sequence[PromptAgreement]) -> Text:
    """Return the first token at which answers differ, and the logprob gap between the two best tokens there; empty if none differ."""
    divergences = [(prompt.first_divergence, prompt.gap) for prompt in prompts if prompt.first_divergence is not None]
    if not divergences:
        return ""
    token, gap = min(divergences, key=lambda at: at[0])
    at = _(", first difference at token {token}", token=token)
    return at if gap is None else glued(at, _(" (logprob gap of the two best there {gap})", gap=Digits(f"{gap:.3g}")))
