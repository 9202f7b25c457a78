"""The guide's test 2: whether the same request gets the same answer, and what changes it."""

from collections.abc import Sequence

from pipeline.engine.outcomes import Outcomes
from pipeline.message import Code, Message, _, joined, plural
from pipeline.report.cells import Text, glued
from pipeline.report.figures import rows
from pipeline.report.inputs import Inputs
from pipeline.report.parts import Scenario
from pipeline.report.sections.common import reason_of
from pipeline.report.sections.remedy import arm_name, divergence, remedy_table
from pipeline.stages.check_gpu import Machine
from pipeline.stages.serve import Server
from pipeline.stages.test_determinism import Arm, Determinism, PromptAgreement, Remedied
from pipeline.vllm.remedies import NoRemedy, Remedy, remedy_for

BATCH_INVARIANT = Code("VLLM_BATCH_INVARIANT=1")


def labels(runs: int, constrained_runs: int) -> dict[str, Text]:
    """Return the labels of the figures; `runs` are the answers to each prompt in D1, the N of TAR."""
    free, constrained = labels_of_arms(runs), labels_of_arms(constrained_runs)
    return {
        **{name: joined(": ", [arm, label]) for name, (arm, label) in free.items()},
        **{f"constrained_{name}": joined(": ", [_("{arm}, constrained", arm=arm), label]) for name, (arm, label) in constrained.items()},
        "d5_same_seed_identical": _("D5: control, the same seed (must be 100 %)"),
        "d5_other_seed_identical": _("D5: control, another seed (must be under 100 %)"),
    }


def labels_of_arms(runs: int) -> dict[str, tuple[str, Message]]:
    """Return the arm and the label of each figure of D1 to D4."""
    return {
        "identical": ("D1", _("prompts whose answers all have the same tokens")),
        "tarr": ("D1", _("prompts whose raw answers all agree (TARr@{runs})", runs=runs)),
        "tara": ("D1", _("the same as canonical JSON (TARa@{runs})", runs=runs)),
        "d2_identical": ("D2", _("prompts whose answers are the same with a cold and a warm prefix cache")),
        "d3_identical": ("D3", _("prompts whose answers are the same under load")),
        "d4_identical": ("D4", _("prompts whose answers are the same after a restart")),
    }


def determinism(inputs: Inputs) -> Scenario:
    """Return the guide's test 2 with all its arms, and the effect of a remedy on a server with the same model and vLLM."""
    title = _("Test 2: Determinism")
    outcome, server, proof = inputs.outcomes[Determinism], inputs.outcomes[Server].data, inputs.outcomes[Remedied].data
    comparable = proof is not None and server is not None and (proof.model, proof.vllm) == (server.model, server.vllm)
    tables = [remedy_table(proof)] if proof is not None and comparable else []
    data = outcome.data
    if data is None:
        return Scenario(title, reason_of(outcome), tables=tables)
    same = [prompt for prompt in data.prompts if prompt.agreeing == prompt.runs]
    facts: list[Text] = [
        _("D1, the guide's test: temperature 0, seed {seed}, one after the other, compared as token ids.", seed=data.seed),
        _("n counts prompts: one agrees when all its answers do."),
        *([same_words(same, len(data.prompts))] if same else []),
        *(divergent_words(prompt) for prompt in data.prompts if prompt not in same),
        *(arm_fact(arm) for arm in data.arms),
        *(exchanged_words(arm) for arm in data.arms if arm.exchanged),
        *server_facts(inputs.outcomes, divergent=len(same) < len(data.prompts) or any(diverges(arm) for arm in data.arms)),
    ]
    bound = [prompt.runs for arm in data.arms if (arm.arm, arm.constrained) == ("D1", True) for prompt in arm.prompts]
    names = labels(max((prompt.runs for prompt in data.prompts), default=0), max(bound, default=0))
    return Scenario(title, facts=facts, figures=rows(outcome.stage, data.figures, names, inputs.marks), tables=tables)


def same_words(same: Sequence[PromptAgreement], prompts: int) -> Message:
    """Return for how many prompts all answers are identical."""
    shortest, longest = min(prompt.tokens for prompt in same), max(prompt.tokens for prompt in same)
    return _(
        "D1, {same} of {prompts} prompts: all {runs} answers identical, {span} tokens.",
        same=len(same),
        prompts=prompts,
        runs=same[0].runs,
        span=shortest if shortest == longest else _("{low} to {high}", low=shortest, high=longest),
    )


def divergent_words(prompt: PromptAgreement) -> Message:
    """Return how far the answers to a prompt agree, and where they diverge."""
    agree = _("{agreeing} of {runs} identical", agreeing=prompt.agreeing, runs=prompt.runs)
    return glued("D1, ", repr(prompt.prompt), ": ", agree, divergence([prompt]), ".")


def diverges(arm: Arm) -> bool:
    """Tell whether answers differ in the arm; the D5 controls do not count."""
    return arm.arm != "D5" and arm.agreeing < arm.runs


def arm_fact(arm: Arm) -> Message:
    """Return how many answers of the arm agree, or why the arm was not measured."""
    name = arm_name(arm)
    if arm.reason:
        return glued(name, ", ", arm.what, ": NOT_MEASURED, ", arm.reason, ".")
    counts = {"agreeing": sum(arm.by_prompt.values()), "prompts": len(arm.by_prompt), "runs": arm.runs}
    if arm.arm == "D5":
        agree = _("{agreeing} of {prompts} prompts: all answers equal the first ({runs} answers)", **counts)
    elif arm.arm == "D1":
        agree = _("{agreeing} of {prompts} prompts: all answers identical ({runs} answers)", **counts)
    else:
        agree = _("{agreeing} of {prompts} prompts: all answers equal the sequential one ({runs} answers)", **counts)
    evidence = [" (", arm.evidence, ")"] if arm.evidence else []
    return glued(name, ", ", arm.what, ": ", agree, divergence(arm.prompts), *evidence, ".")


def exchanged_words(arm: Arm) -> Message:
    """Return how many answers of the arm were those to another prompt."""
    return glued(
        arm_name(arm),
        ", ",
        arm.what,
        ": ",
        plural(
            "answers were exchanged: {count} is that to another prompt",
            "answers were exchanged: {count} are those to another prompt",
            arm.exchanged,
        ),
        ".",
    )


def server_facts(outcomes: Outcomes, divergent: bool) -> list[Text]:
    """Return what the server promises, and the remedy if answers differ."""
    server, machine = outcomes[Server].data, outcomes[Machine].data
    if server is None:
        return []
    needs_remedy = divergent and machine is not None
    remedy = remedy_for(server.distribution, machine.gpus, server.attached) if needs_remedy and machine is not None else None
    return [batch_invariance(server), *([remedy_words(remedy, server)] if remedy is not None else [])]


def batch_invariance(server: Server) -> Message:
    """Return whether vLLM promises answers that do not depend on the load."""
    if server.environment.get("VLLM_BATCH_INVARIANT") == "1":
        return _("{setting}: vLLM promises answers that do not depend on what else it computes.", setting=BATCH_INVARIANT)
    return _("Without {setting} vLLM does not promise the same answer under another load.", setting=BATCH_INVARIANT)


def remedy_words(result: Remedy | NoRemedy, server: Server) -> Message:
    """Return the remedy against differing answers, or why none is known."""
    if isinstance(result, NoRemedy):
        return _("No remedy is known here: {reason}.", reason=result.reason)
    proof, remedy = _("{command} measures without and with it", command=Code("./inv determinism-remedy")), Code(str(result))
    if result.in_force(server.environment):
        return _("The remedy for this device, {remedy}, is in force already and so does not help; {proof}.", remedy=remedy, proof=proof)
    setting = Code("serve.env")
    return _("Remedy for this device: {remedy} in {setting} ({why}); {proof}.", remedy=remedy, setting=setting, why=result.why, proof=proof)
