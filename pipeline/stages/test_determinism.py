"""test-determinism: Repeat the same requests alone, cached, under load and after a restart, and compare the answers token by token."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.client.control import Control
from pipeline.client.tokens import Asker, TokenAnswer, TokenRequest, commonest, is_exchanged, store_doubt
from pipeline.config.schema import DeterminismConfig, RouterConfig
from pipeline.engine.record import Artifact, Failure, Measurement
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.load.background import LOADED_SHARE, amid_load
from pipeline.measure.agreement import Agreement, against, agreement, control_doubt, prompts_share
from pipeline.measure.answers import canonical
from pipeline.measure.figures import Figure, invalidated, not_measured
from pipeline.measure.statistics import share_figure
from pipeline.message import Digits, Sentence, _, plural
from pipeline.server.watch import watched
from pipeline.stages.serve import Server, insist_on_answers, restart
from pipeline.suite import BOUND, load_prompts, suite_for
from pipeline.values import Frozen
from pipeline.vllm.ladder import Attempt
from pipeline.vllm.metrics import REQUESTS_RUNNING

REMEDY_NOTE = "determinism-remedy"
ALONE = _("one after the other")
CONTROLS = 8  # prompts
OTHER_SEEDS = 3  # so many must give the first seed's answer before it counts as the same
ARM_OF = {"d2_identical": "D2", "d3_identical": "D3", "d4_identical": "D4"}


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
    """One way to ask again: what was done, the evidence that it was, and per prompt what came back; or why nothing did.

    `constrained`: with the router suite's requests, by the cases' ids. `exchanged` counts answers that were another prompt's.
    """

    arm: str
    what: Sentence
    constrained: bool = False
    evidence: Sentence = ""
    reason: Sentence = ""
    prompts: list[PromptAgreement] = []
    exchanged: int = 0

    @property
    def runs(self) -> int:
        return sum(prompt.runs for prompt in self.prompts)

    @property
    def agreeing(self) -> int:
        return sum(prompt.agreeing for prompt in self.prompts)

    @property
    def by_prompt(self) -> dict[str, bool]:
        """Return for each prompt whether all its answers agree."""
        return {prompt.prompt: prompt.agreeing == prompt.runs for prompt in self.prompts}


class Determinism(Measurement):
    """Arm D1 per prompt, and the arms that vary one thing each (D2 cache, D3 load, D4 restart, D5 controls); D1 constrained is an arm."""

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


@dataclass(frozen=True)
class Series:
    """The prompts of one kind, D1's answers to each, and the commonest of them, which the other arms' answers are compared with."""

    asker: Asker
    answers: Mapping[str, list[TokenAnswer]]
    constrained: bool = False

    @cached_property
    def references(self) -> dict[str, TokenAnswer]:
        return {prompt: commonest(answers) for prompt, answers in self.answers.items()}

    def compared(self, answers: Mapping[str, list[TokenAnswer]]) -> list[PromptAgreement]:
        """Return how the answers to each prompt agree with the reference; a prompt without answers is left out."""
        found = [(prompt, self.references[prompt], each) for prompt, each in answers.items() if each]
        return [
            compare(self.asker, prompt, first, against(first.ids, [answer.ids for answer in each]), each) for prompt, first, each in found
        ]


def test_determinism(settings: DeterminismConfig, router: RouterConfig, server: Server, workspace: Workspace) -> Determinism:
    """Send each prompt repeatedly at temperature 0 and compare the answers as token ids."""
    return all_arms(settings, router, server, workspace, restart)


def all_arms(
    settings: DeterminismConfig,
    router: RouterConfig,
    server: Server,
    workspace: Workspace,
    restart: Callable[[Server, Workspace], Server],
) -> Determinism:
    """Run every arm and return the record; `restart` restarts the server for arm D4."""
    insist_on_answers(server)
    questions = load_prompts(workspace.root / settings.prompts)[: settings.count]
    cases = constrained_requests(settings, router, server, workspace)
    handle = server.handle
    with watched(handle, workspace, "test-determinism") as target:
        asker = Asker(target, server.model, settings, cases)
        free = repeat(asker, questions, workspace)
        bound = repeat(asker, list(cases), workspace, constrained=True)
        both = [free, bound] if cases else [free]
        like_first = f"{questions[0]} {asker.salt}"  # one word more, so that its token ids differ
        asked = [{**free.answers, like_first: [asker.ask(like_first)]}, bound.answers]
        arms = [arm for series in both for arm in arms_beside(series, workspace)]
        same_seed, other_seed = control_arms(free, workspace)
        prompts, bound_prompts = alone(free), alone(bound)
    arms += [*restart_arms(both, server, workspace, restart), same_seed, other_seed]
    if cases:
        arms.append(Arm(arm="D1", what=ALONE, constrained=True, prompts=bound_prompts))
    doubt = next(filter(None, map(store_doubt, asked)), "") or control_doubt(other_seed.by_prompt)
    figures = {**series_figures(free, prompts, arms), **series_figures(bound, bound_prompts, arms)}
    return Determinism(
        launch_id=handle.launch_id,
        simulated=not server.real,
        figures={**invalidated(figures, doubt), **control_figures(same_seed, other_seed)},
        seed=settings.seed,
        prompts=prompts,
        arms=sorted(arms, key=lambda arm: (arm.constrained, arm.arm)),
    )


def constrained_requests(
    settings: DeterminismConfig, router: RouterConfig, server: Server, workspace: Workspace
) -> dict[str, TokenRequest]:
    """Return the suite's first cases by id, as test-router sends them, constrained and streamed."""
    if not settings.constrained:
        return {}
    suite = suite_for(router, server.takes_system, workspace.root)
    form = suite.request_fields[BOUND]
    cases = list({case.text.strip(): case for case in suite.cases}.values())[: settings.constrained]  # what is asked twice counts once
    return {case.id: TokenRequest(suite.messages(case), router.max_tokens, form, True) for case in cases}


def repeat(asker: Asker, prompts: Sequence[str], workspace: Workspace, constrained: bool = False) -> Series:
    """Return arm D1's answers: the guide's test, one request at a time, every other one such as no store of answers can serve."""
    runs = asker.settings.constrained_runs if constrained else asker.settings.runs
    arm = "D1, constrained" if constrained else "D1"
    if prompts:
        workspace.say(f"determinism: {arm}, {runs} × each of {len(prompts)} prompts, one after the other")
    asks = [asker.ask_anew if run % 2 else asker.ask for run in range(runs)]
    return Series(asker, {prompt: [ask(prompt) for ask in asks] for prompt in with_progress(prompts, arm, workspace)}, constrained)


def alone(series: Series) -> list[PromptAgreement]:
    """Return how D1's answers agree with each other."""
    references = series.references
    return [
        compare(series.asker, prompt, references[prompt], agreement([answer.ids for answer in answers]), answers)
        for prompt, answers in series.answers.items()
    ]


def arms_beside(series: Series, workspace: Workspace) -> list[Arm]:
    """Return arm D2, and D3 with each load."""
    return [cache_arm(series, workspace), *(load_arm(series, others, workspace) for others in series.asker.settings.load)]


def with_progress(prompts: Collection[str], arm: str, workspace: Workspace) -> Iterator[str]:
    """Yield the prompts and report how many are done."""
    on_progress = workspace.progress(f"determinism, prompts of {arm}", len(prompts))
    for done, prompt in enumerate(prompts, 1):
        yield prompt
        on_progress(done)


def cache_arm(series: Series, workspace: Workspace) -> Arm:
    """D2: each prompt with an empty prefix cache, by a salt of its own, and with a full one, as D1 has already asked it.

    An answer counts where its own count of cached tokens says the same; a prompt where answers of both kinds do, or one differs.
    """
    asker, runs = series.asker, series.asker.settings.cache_runs
    outcome: dict[str, Any] = {"arm": "D2", "what": _("prefix cache cold, then warm"), "constrained": series.constrained}
    if not runs:
        return Arm(**outcome, reason=_("determinism.cache_runs is 0"))
    workspace.say(f"determinism: {outcome['what']}, {runs} × each prompt")
    colds, warms = defaultdict[str, list[TokenAnswer]](list), defaultdict[str, list[TokenAnswer]](list)
    for number, prompt in enumerate(with_progress(series.answers, "D2", workspace)):
        for run in range(runs):
            salt = f"{asker.salt}-{'constrained' if series.constrained else 'free'}-{number}-{run}"
            colds[prompt].append(asker.ask_anew(prompt, cache_salt=salt))
        warms[prompt] = [answer for answer in series.answers[prompt][1::2] if answer.cached][:runs]  # those that no store can serve
        warms[prompt] += [asker.ask_anew(prompt) for _ in range(runs - len(warms[prompt]))]
    cold = {prompt: [answer for answer in answers if not answer.cached] for prompt, answers in colds.items()}
    warm = {prompt: [answer for answer in answers if answer.cached] for prompt, answers in warms.items()}
    compared = series.compared({prompt: [*cold[prompt], *warm[prompt]] for prompt in series.answers})
    prompts = [entry for entry in compared if (cold[entry.prompt] and warm[entry.prompt]) or entry.agreeing < entry.runs]
    misses, hits, asked = (sum(map(len, found.values())) for found in (cold, warm, colds))
    evidence = _("no hit in {n} of {needed} cold, a hit in {value} of {needed} warm; only these count", n=misses, needed=asked, value=hits)
    if not prompts:
        return Arm(**outcome, reason=_("the server's own count shows no cold and warm cache: {reason}", reason=evidence))
    return Arm(**outcome, evidence=evidence, prompts=prompts)


def load_arm(series: Series, others: int, workspace: Workspace) -> Arm:
    """D3: each prompt amid `others` requests; an answer counts where the engine's own gauge shows them for most of its life."""
    asker, runs = series.asker, series.asker.settings.load_runs
    what = plural("amid {count} other", "amid {count} others", others)
    workspace.say(f"determinism: {what}, {runs} × each prompt")
    questions = [prompt for _run in range(runs) for prompt in series.answers]
    control = Control.of(asker.target)  # beside the asker's, which is at work

    def running() -> int:
        return int(control.metrics(REQUESTS_RUNNING).get(REQUESTS_RUNNING, 0))

    amid, most = amid_load(asker, questions, others, running, workspace.progress("determinism, requests of D3", len(questions)))
    exchanged = [each for each in amid if is_exchanged(each.prompt, each.answer, series.references, by_text=not series.constrained)]
    counted = [each for each in amid if (each.loaded or 0) >= LOADED_SHARE or each in exchanged]
    answers = {prompt: [each.answer for each in counted if each.prompt == prompt] for prompt in series.answers}
    evidence = _(
        "{n} of {needed} requests had the load beside them for {share} % of their life by {name}, which showed {most} at most; only "
        "these count, and {unread} lived for too few readings",
        n=len(counted),
        needed=len(questions),
        share=round(100 * LOADED_SHARE),
        name=REQUESTS_RUNNING,
        most=most,
        unread=sum(each.loaded is None for each in amid),
    )
    outcome: dict[str, Any] = {"arm": "D3", "what": what, "constrained": series.constrained, "exchanged": len(exchanged)}
    if not counted:
        return Arm(**outcome, reason=_("no proof that any request ran amid the others: {reason}", reason=evidence))
    return Arm(**outcome, evidence=evidence, prompts=series.compared(answers))


def restart_arms(
    both: Sequence[Series], server: Server, workspace: Workspace, restart: Callable[[Server, Workspace], Server] = restart
) -> list[Arm]:
    """D4: each prompt once more after a real restart; counts only where the prompt's token ids are the same."""
    what = _("after a restart of the server")

    def none(reason: Sentence, left_out: Sequence[Series] = both) -> list[Arm]:
        return [Arm(arm="D4", what=what, constrained=series.constrained, reason=reason) for series in left_out]

    if not both[0].asker.settings.restart:
        return none(_("determinism.restart is false"))
    if server.attached:
        return none(_("the server at {address} is not ours to restart", address=server.attached))
    try:
        again = restart(server, workspace)
    except ServerError as error:
        return none(_("the server did not come back: {reason}", reason=error.message))
    handle = again.handle
    evidence = _("launch {name}, then {reason}", name=server.handle.launch_id, reason=handle.launch_id)
    arms = []
    with watched(handle, workspace, "test-determinism") as target:
        for series in both:
            asker, references = series.asker.at(target), series.references
            answers = {prompt: [asker.ask_anew(prompt)] for prompt in references}
            changed = [prompt for prompt, (answer,) in answers.items() if answer.prompt_ids != references[prompt].prompt_ids]
            if changed:
                arms += none(_("the prompt's own token ids changed: {name}", name=repr(changed[0])), [series])
                continue
            prompts = Series(asker, series.answers, series.constrained).compared(answers)
            arms.append(Arm(arm="D4", what=what, constrained=series.constrained, evidence=evidence, prompts=prompts))
    return arms


def control_arms(series: Series, workspace: Workspace) -> tuple[Arm, Arm]:
    """Run D5, the controls: above temperature 0 the same seed must agree and another must differ, or the test proves nothing.

    A few prompts are enough: what they prove holds for the server and for this test, not for a prompt.
    """
    asker, settings = series.asker, series.asker.settings
    warm: dict[str, Any] = {"temperature": settings.control_temperature}
    workspace.say(f"determinism: controls at temperature {settings.control_temperature:g}")
    same, other = [], []
    for prompt in with_progress(list(series.answers)[:CONTROLS], "D5", workspace):
        first = asker.ask(prompt, **warm, seed=settings.seed)
        second = asker.ask_anew(prompt, **warm, seed=settings.seed)
        same.append(compare(asker, prompt, first, against(first.ids, [second.ids]), [second], **warm))
        others: list[TokenAnswer] = []
        while len(others) < OTHER_SEEDS and all(answer.ids == first.ids for answer in others):
            others.append(asker.ask_anew(prompt, **warm, seed=settings.seed + 1 + len(others)))
        other.append(compare(None, prompt, first, against(first.ids, [answer.ids for answer in others]), others))  # these are to differ
    at = Digits(f"{settings.control_temperature:g}")
    alike, unlike = _("temperature {value}, same seed", value=at), _("temperature {value}, another seed", value=at)
    return Arm(arm="D5", what=alike, prompts=same), Arm(arm="D5", what=unlike, prompts=other)


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


def series_figures(series: Series, prompts: Sequence[PromptAgreement], arms: Iterable[Arm]) -> dict[str, Figure]:
    """Return the shares of the prompts whose answers all agree, in D1 and in each arm beside it.

    TARr compares the raw answers, TARa the canonical JSON where an answer is JSON (arXiv 2408.04667). What a model thinks first belongs
    to the raw answer, and to the other where it is all there is.
    """
    distinct = [list({answer.ids: answer for answer in reversed(answers)}.values()) for answers in series.answers.values()]
    figures = {
        "identical": share_figure(sum(prompt.agreeing == prompt.runs for prompt in prompts), len(prompts)),
        "tarr": share_figure(sum(len({(one.reasoning, one.text) for one in each}) == 1 for each in distinct), len(distinct)),
        "tara": share_figure(sum(len({canonical(one.text or one.reasoning) for one in each}) == 1 for each in distinct), len(distinct)),
    }
    own = [arm for arm in arms if arm.constrained == series.constrained]
    figures |= {figure: arm_figure([arm for arm in own if arm.arm == name]) for figure, name in ARM_OF.items()}
    if not series.constrained:
        return figures
    left_out = not_measured("%", _("determinism.constrained is 0"))
    return {f"constrained_{name}": figure if series.answers else left_out for name, figure in figures.items()}


def arm_figure(arms: Sequence[Arm]) -> Figure:
    """Return the share of the prompts whose answers equal the reference in each of the arms.

    A prompt counts where it counts in all of them, or differs in one; where an arm was not measured only a difference counts.
    """
    missing = next((arm.reason for arm in arms if arm.reason), "" if arms else _("determinism.load is empty"))
    if missing and all(all(arm.by_prompt.values()) for arm in arms):
        return not_measured("%", missing)
    return prompts_share([arm.by_prompt for arm in arms])


def control_figures(same_seed: Arm, other_seed: Arm) -> dict[str, Figure]:
    """Return the controls' shares; where the same seed mostly gives other answers, a difference between seeds says nothing of seeds."""
    same, other = prompts_share([same_seed.by_prompt]), prompts_share([other_seed.by_prompt])
    ignored = _("the same seed gives other answers too") if same.value is not None and same.value < 50 else ""
    return {"d5_same_seed_identical": same, **invalidated({"d5_other_seed_identical": other}, ignored)}
