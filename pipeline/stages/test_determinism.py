"""test-determinism: Repeat the same requests alone, cached, under load and after a restart, and compare the answers token by token."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from pipeline.client.control import Control
from pipeline.client.tokens import Asker, TokenAnswer
from pipeline.config.schema import DeterminismConfig
from pipeline.engine.record import Artifact, Failure, Measurement
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.load.background import MOST_AT_ONCE, amid_others, await_running, under_load
from pipeline.measure.agreement import Agreement, against, agreement
from pipeline.measure.answers import canonical
from pipeline.measure.figures import Figure, not_measured
from pipeline.measure.statistics import share_figure
from pipeline.message import Digits, Sentence, _, plural
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, insist_on_answers, restart
from pipeline.suite import load_prompts
from pipeline.values import Frozen
from pipeline.vllm.ladder import Attempt
from pipeline.vllm.metrics import REQUESTS_RUNNING

REMEDY_NOTE = "determinism-remedy"


class PromptAgreement(Frozen):
    """The agreement of N answers to one prompt.

    `first_divergence` is a token position, counted from 0. `gap` is the logprob of the best token there minus that of the
    second best.
    """

    prompt: str
    runs: int
    agreeing: int
    distinct: int
    first_divergence: int | None
    gap: float | None
    tokens: int


class Arm(Frozen):
    """One arm of the test: what it varies, the evidence that it did, and the agreement per prompt; or the reason why it has none."""

    arm: str
    what: Sentence
    evidence: Sentence = ""
    reason: Sentence = ""
    prompts: list[PromptAgreement] = []

    @property
    def runs(self) -> int:
        return sum(prompt.runs for prompt in self.prompts)

    @property
    def agreeing(self) -> int:
        return sum(prompt.agreeing for prompt in self.prompts)


class Determinism(Measurement):
    """Arm D1 per prompt, and the arms that each vary one condition (MEASUREMENT.md: D2 cache, D3 load, D4 restart, D5 controls)."""

    seed: int
    prompts: list[PromptAgreement]
    arms: list[Arm]


class Side(Frozen):
    """A server without or with the remedy: its environment, the results of its launches, and its failure if there was one.

    `errors` has one entry per failed request of the speed measurement.
    """

    environment: dict[str, str]
    launch_ids: list[str] = []
    simulated: bool = False
    attempts: list[Attempt] = []
    arms: list[Arm] = []
    decode_tok_s: Figure
    system_tok_s: Figure
    errors: list[str] = []
    failure: Failure | None = None


class Remedied(Artifact):
    """The same measurements on a server without and one with the remedy; `in_settings` where the settings already had it."""

    variable: str
    value: str
    why: Sentence
    in_settings: bool
    model: str
    vllm: str
    distribution: str
    device: str
    seed: int
    concurrency: int
    without: Side
    remedied: Side


def test_determinism(settings: DeterminismConfig, server: Server, workspace: Workspace) -> Determinism:
    """Send each prompt repeatedly at temperature 0 and compare the answers as token ids."""
    return all_arms(settings, server, workspace, restart)


def all_arms(
    settings: DeterminismConfig, server: Server, workspace: Workspace, restart: Callable[[Server, Workspace], Server]
) -> Determinism:
    """Run every arm and return the record; `restart` restarts the server for arm D4."""
    insist_on_answers(server)
    questions = load_prompts(workspace.root / settings.prompts)[: settings.count]
    handle = server.handle
    with watched(handle, workspace, "test-determinism") as target:
        asker = Asker(target, server.model, settings)
        answers_by_prompt = repeat(asker, questions, settings, workspace)
        references = {prompt: most_common(answers) for prompt, answers in answers_by_prompt.items()}
        arms = [
            cache_arm(asker, references, settings, workspace),
            *(load_arm(asker, references, others, settings, workspace) for others in settings.load),
            *control_arms(asker, references, settings, workspace),
        ]
        prompts = [
            compare(asker, prompt, references[prompt], agreement([answer.ids for answer in answers]), answers)
            for prompt, answers in answers_by_prompt.items()
        ]
    arms.append(restart_arm(references, settings, server, workspace, restart))
    return Determinism(
        launch_id=handle.launch_id,
        simulated=not server.real,
        figures={**prompt_figures(prompts, answers_by_prompt), **arm_figures(arms)},
        seed=settings.seed,
        prompts=prompts,
        arms=sorted(arms, key=lambda arm: arm.arm),
    )


def repeat(asker: Asker, questions: list[str], settings: DeterminismConfig, workspace: Workspace) -> dict[str, list[TokenAnswer]]:
    """Return the answers of arm D1 by prompt: the guide's test, one request at a time."""
    workspace.say(f"determinism: {settings.runs} × each of {len(questions)} prompts, one after the other")
    return {prompt: [asker.ask(prompt) for _ in range(settings.runs)] for prompt in with_progress(questions, "D1", workspace)}


def with_progress(prompts: Collection[str], arm: str, workspace: Workspace) -> Iterator[str]:
    """Yield the prompts and report how many are done."""
    on_progress = workspace.progress(f"determinism, prompts of {arm}", len(prompts))
    for done, prompt in enumerate(prompts, 1):
        yield prompt
        on_progress(done)


def cache_arm(asker: Asker, references: dict[str, TokenAnswer], settings: DeterminismConfig, workspace: Workspace) -> Arm:
    """Run D2: send each prompt with a cold prefix cache, then with a warm one; each pair has its own cache salt."""
    what = _("prefix cache cold, then warm")
    if not settings.cache_runs:
        return Arm(arm="D2", what=what, reason=_("determinism.cache_runs is 0"))
    workspace.say(f"determinism: {what}, {settings.cache_runs} × each prompt")
    prompts, cold_cached, warm_cached = [], 0, []
    for number, prompt in enumerate(with_progress(references, "D2", workspace)):
        answers = []
        for run in range(settings.cache_runs):
            salt = f"{asker.salt}-{number}-{run}"
            cold, warm = asker.ask(prompt, cache_salt=salt), asker.ask(prompt, cache_salt=salt)
            answers += [cold, warm]
            cold_cached += cold.cached
            warm_cached.append(warm.cached)
        reference = references[prompt]
        prompts.append(compare(asker, prompt, reference, against(reference.ids, [answer.ids for answer in answers]), answers))
    if cold_cached or not any(warm_cached):
        counts = _("{n} cached tokens cold, {needed} warm", n=cold_cached, needed=sum(warm_cached))
        return Arm(arm="D2", what=what, reason=_("the server's own count shows no cold and warm cache: {reason}", reason=counts))
    hits = sum(cached > 0 for cached in warm_cached)
    evidence = _("0 cached prompt tokens cold; a hit in {n} of {needed} warm", n=hits, needed=len(warm_cached))
    return Arm(arm="D2", what=what, evidence=evidence, prompts=prompts)


def load_arm(asker: Asker, references: dict[str, TokenAnswer], others: int, settings: DeterminismConfig, workspace: Workspace) -> Arm:
    """Run D3: send each prompt amid `others` requests, at least half of them random.

    Only answers that overlapped with another request by the engine's own gauge count.
    """
    what = plural("amid {count} other", "amid {count} others", others)
    workspace.say(f"determinism: {what}, {settings.load_runs} × each prompt")
    at_once = max(1, min(others // 2, MOST_AT_ONCE))
    questions = [prompt for _ in range(settings.load_runs) for prompt in references]
    answers: dict[str, list[TokenAnswer]] = {prompt: [] for prompt in references}
    peak = 0
    control = Control(asker.target.base_url, asker.target.api_key)  # not the asker's, which is in use

    def running() -> int:
        return int(control.metrics().get(REQUESTS_RUNNING, 0))

    on_progress = workspace.progress("determinism, requests of D3", len(questions))
    with under_load(asker, others + 1 - at_once):
        await_running(running, others + 1 - at_once)
        for prompt, answer, running_count in amid_others(asker, questions, at_once, running, on_progress):
            peak = max(peak, running_count)
            if running_count > 1:
                answers[prompt].append(answer)
    prompts = [
        compare(asker, prompt, references[prompt], against(references[prompt].ids, [answer.ids for answer in batch]), batch)
        for prompt, batch in answers.items()
        if batch
    ]
    overlaps, requests = sum(prompt.runs for prompt in prompts), len(questions)
    evidence = _(
        "{name} above 1 beside {n} of {needed} requests, at most {value}; only these count",
        name=REQUESTS_RUNNING,
        n=overlaps,
        needed=requests,
        value=peak,
    )
    if not overlaps:
        return Arm(arm="D3", what=what, reason=_("no proof that any two requests overlapped: {reason}", reason=evidence))
    return Arm(arm="D3", what=what, evidence=evidence, prompts=prompts)


def restart_arm(
    references: dict[str, TokenAnswer],
    settings: DeterminismConfig,
    server: Server,
    workspace: Workspace,
    restart: Callable[[Server, Workspace], Server] = restart,
) -> Arm:
    """Run D4: send each prompt once more after a restart; it counts only where the prompts' own token ids stayed the same."""
    what = _("after a restart of the server")
    if not settings.restart:
        return Arm(arm="D4", what=what, reason=_("determinism.restart is false"))
    if server.attached:
        return Arm(arm="D4", what=what, reason=_("the server at {address} is not ours to restart", address=server.attached))
    try:
        new_server = restart(server, workspace)
    except ServerError as error:
        return Arm(arm="D4", what=what, reason=_("the server did not come back: {reason}", reason=error.message))
    handle = new_server.handle
    with watched(handle, workspace, "test-determinism") as target:
        asker = Asker(target, server.model, settings)
        answers = {prompt: asker.ask(prompt) for prompt in references}
        mismatches = [prompt for prompt, answer in answers.items() if answer.prompt_ids != references[prompt].prompt_ids]
        if mismatches:
            return Arm(arm="D4", what=what, reason=_("the prompt's own token ids changed: {name}", name=repr(mismatches[0])))
        prompts = [
            compare(asker, prompt, reference, against(reference.ids, [answers[prompt].ids]), [answers[prompt]])
            for prompt, reference in references.items()
        ]
    evidence = _("launch {name}, then {reason}", name=server.handle.launch_id, reason=handle.launch_id)
    return Arm(arm="D4", what=what, evidence=evidence, prompts=prompts)


def control_arms(asker: Asker, references: dict[str, TokenAnswer], settings: DeterminismConfig, workspace: Workspace) -> list[Arm]:
    """Run D5, the controls: above temperature 0 the same seed must agree and another must differ, or the test proves nothing."""
    sampling = {"temperature": settings.control_temperature}
    workspace.say(f"determinism: controls at temperature {settings.control_temperature:g}")
    same, other = [], []
    for prompt in with_progress(references, "D5", workspace):
        first, second, third = (asker.ask(prompt, **sampling, seed=settings.seed + step) for step in (0, 0, 1))
        same.append(compare(asker, prompt, first, against(first.ids, [second.ids]), [second], **sampling))
        other.append(compare(None, prompt, first, against(first.ids, [third.ids]), [third]))  # no gap, because these should differ
    temperature = Digits(f"{settings.control_temperature:g}")
    same_label, other_label = (
        _("temperature {value}, same seed", value=temperature),
        _("temperature {value}, another seed", value=temperature),
    )
    return [Arm(arm="D5", what=same_label, prompts=same), Arm(arm="D5", what=other_label, prompts=other)]


def most_common(answers: Sequence[TokenAnswer]) -> TokenAnswer:
    """Return the first answer with the most common token ids."""
    counts = {answer.ids: sum(other.ids == answer.ids for other in answers) for answer in answers}
    return max(answers, key=lambda answer: counts[answer.ids])


def compare(
    asker: Asker | None, prompt: str, reference: TokenAnswer, result: Agreement, answers: Iterable[TokenAnswer], **options: Any
) -> PromptAgreement:
    """Return the record of one prompt's comparison; `asker` measures the gap at the divergence with the reference's `options`."""
    divergence = result.first_divergence
    return PromptAgreement(
        prompt=prompt,
        runs=result.runs,
        agreeing=result.agreeing,
        distinct=result.distinct,
        first_divergence=result.first_divergence,
        gap=asker.gap_at(divergence, prompt, reference, **options) if asker is not None and divergence is not None else None,
        tokens=max(len(answer.ids) for answer in (reference, *answers)),
    )


def prompt_figures(prompts: list[PromptAgreement], answers_by_prompt: dict[str, list[TokenAnswer]]) -> dict[str, Figure]:
    """Return D1's shares: of answers that agree with their prompt's most common one, and of prompts whose answers all agree.

    TARr compares the raw answers, TARa the canonical JSON where an answer is JSON (arXiv 2408.04667).
    """
    return {
        "identical": share_figure(sum(prompt.agreeing for prompt in prompts), sum(prompt.runs for prompt in prompts)),
        "tarr": share_figure(sum(prompt.agreeing == prompt.runs for prompt in prompts), len(prompts)),
        "tara": share_figure(
            sum(len({canonical(answer.text) for answer in answers}) == 1 for answers in answers_by_prompt.values()), len(answers_by_prompt)
        ),
    }


def arm_figures(arms: Iterable[Arm]) -> dict[str, Figure]:
    """Return each arm's share of answers that equal the reference: D3 over all its loads, D5 for each control."""
    all_parts = list(arms)
    names: dict[str, Callable[[Arm], bool]] = {
        "d2_identical": lambda arm: arm.arm == "D2",
        "d3_identical": lambda arm: arm.arm == "D3",
        "d4_identical": lambda arm: arm.arm == "D4",
        "d5_same_seed_identical": lambda arm: arm.arm == "D5" and arm.what.endswith("same seed"),
        "d5_other_seed_identical": lambda arm: arm.arm == "D5" and arm.what.endswith("another seed"),
    }
    figures = {}
    for name, belongs in names.items():
        selection = [arm for arm in all_parts if belongs(arm)]
        reason = next((arm.reason for arm in selection if arm.reason), "" if selection else _("determinism.load is empty"))
        runs = sum(arm.runs for arm in selection)
        figures[name] = not_measured("%", reason) if reason else share_figure(sum(arm.agreeing for arm in selection), runs)
    return figures
