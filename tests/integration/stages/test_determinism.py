"""test-determinism against the fake server: its arms, and what counts as evidence."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.client.tokens import Asker
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, MeaninglessError, MeasureError
from pipeline.load import background
from pipeline.stages import test_determinism as determinism
from pipeline.stages.serve import Server
from tests.builders.stages import ARMS, DETERMINISM, ROUTER, STAGES, forgive_the_machine
from tests.fakes.environment import until
from tests.fakes.fake_vllm import FakeVllm
from tests.fakes.script import Script


@pytest.fixture(autouse=True)
def _loaded_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    forgive_the_machine(monkeypatch)


def test_equal_answers_are_identical(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    result = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
    assert (result.figures["identical"].value, result.figures["identical"].n) == (100, 2), "n counts prompts"
    assert (result.figures["tarr"].value, result.figures["tarr"].n) == (100, 2)
    assert [prompt.first_divergence for prompt in result.prompts] == [None, None]
    assert result.simulated
    for request in fake.ledger.requests[:8]:
        assert (request["temperature"], request["seed"], request["return_token_ids"]) == (0, 42, True)


def test_one_token_that_differs_is_noticed_and_placed(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    same, other = "aaaabbbbccccdddd", "aaaabbbbcXccdddd"
    # Requests 4 to 7 are the shaky prompt's.
    fake.script = Script(texts=(same,), by_number={"6": {"texts": [other]}})
    result = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
    steady, shaky = result.prompts
    assert (steady.agreeing, steady.distinct, steady.first_divergence) == (4, 1, None)
    assert (shaky.agreeing, shaky.distinct, shaky.first_divergence, shaky.tokens) == (3, 2, 2, 4)
    assert (result.figures["identical"].value, result.figures["identical"].n) == (50, 2)
    assert result.figures["tarr"].value == 50


def test_an_answer_that_goes_on_differs_where_the_other_ends(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(texts=("aaaabbbb", "aaaabbbbcccc"))
    result = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
    assert [(prompt.agreeing, prompt.first_divergence) for prompt in result.prompts] == [(2, 2), (2, 2)]


def of_arm(result: determinism.Determinism, arm: str) -> list[determinism.Arm]:
    return [entry for entry in result.arms if entry.arm == arm]


def test_each_arm_names_its_evidence(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(cached_tokens=None, first_token_s=0.3)
    result = determinism.test_determinism(ARMS, ROUTER, server, workspace)
    assert [(arm.arm, arm.what, arm.runs, arm.agreeing) for arm in result.arms if not arm.reason] == [
        ("D2", "prefix cache cold, then warm", 8, 8),
        ("D3", "amid 2 others", 2, 2),
        ("D3", "amid 3 others", 2, 2),
        ("D5", "temperature 0.8, same seed", 2, 2),
        ("D5", "temperature 0.8, another seed", 2, 0),
    ]
    assert of_arm(result, "D2")[0].evidence == "no hit in 4 of 4 cold, a hit in 4 of 4 warm; only these count"
    assert of_arm(result, "D3")[0].evidence.startswith("2 of 2 requests had the load beside them for 1 % of their life by vllm:num_req")
    assert of_arm(result, "D4")[0].reason == "determinism.restart is false"
    assert result.figures["d2_identical"].value == result.figures["d3_identical"].value == 100
    assert (result.figures["d4_identical"].value, result.figures["d4_identical"].reason) == (None, "determinism.restart is false")


def test_an_answer_that_changes_under_load_is_noticed_with_its_gap(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    alone = Script(texts=("aaaabbbbccccdddd",), first_token_s=0.08, top_gap=0.25)

    class WhileLoaded(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            if "subject number" in prompt:  # the load, long enough that it does not end just when a prompt is asked
                return dataclasses.replace(alone, first_token_s=0.4)
            return dataclasses.replace(alone, texts=("aaaabbbbcXccdddd",)) if fake.ledger.in_flight > 1 else alone

    fake.script = WhileLoaded()
    result = determinism.test_determinism(ARMS.model_copy(update={"cache_runs": 0, "load": (2,)}), ROUTER, server, workspace)
    assert result.figures["identical"].value == 100
    assert result.figures["d3_identical"].value == 0
    (arm,) = of_arm(result, "D3")
    assert [prompt.first_divergence for prompt in arm.prompts] == [2, 2]
    assert [prompt.gap for prompt in arm.prompts] == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(("others", "at_once"), [(1, 1), (3, 1), (4, 2), (5, 2), (16, 8), (20, 8)])
def test_each_tested_request_runs_amid_so_many_others_of_which_half_are_random(
    others: int, at_once: int, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tested request is answered once all are in flight, which never happens to one that runs amid fewer."""
    seen: list[int] = []
    tested: list[str] = []

    def all_there() -> bool:
        running = fake.ledger.in_flight
        if running > others:
            seen.append(running)
        return running > others

    class Watching(Script):
        def for_request(self, number: int, prompt: str) -> Script:
            if "subject number" in prompt:  # it stays until one more tested request is answered amid it
                before = len(seen)
                until(lambda: len(seen) > before or len(seen) == 2 * len(prompts), "an answer to a tested request")
                return dataclasses.replace(self, first_token_s=0.02)
            tested.append(prompt)
            until(all_there, "all the others")
            return dataclasses.replace(self, first_token_s=0.2)

    settings = ARMS.model_copy(update={"load_runs": 2})
    asker = Asker(Endpoint(fake.base_url), server.model, settings)
    prompts = {prompt: [asker.ask(prompt)] for prompt in (f"prompt {number}" for number in range(5))}
    fake.script = Watching()
    random: list[int] = []

    @contextmanager
    def counted(asker: Asker, others: int) -> Iterator[None]:
        random.append(others)
        with under_load(asker, others):
            yield

    under_load = background.under_load
    monkeypatch.setattr(background, "under_load", counted)
    monkeypatch.setattr(determinism, "LOADED_SHARE", 0)  # the fake itself watches how many there are
    arm = determinism.load_arm(determinism.Series(asker, prompts), others, workspace)
    assert random == [others + 1 - at_once]
    assert sorted(tested) == sorted([*prompts, *prompts]), "the same n"
    assert set(seen) == {others + 1}
    assert len(seen) == len(tested)
    assert arm.evidence.startswith("10 of 10 requests had the load beside them")
    assert [prompt.prompt for prompt in arm.prompts] == list(prompts)
    assert fake.ledger.in_flight == 0, "what comes next is asked alone"


def test_ctrl_c_under_load_waits_for_no_answer(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    fake.script = Script(first_token_s=20)
    asker = Asker(Endpoint(fake.base_url), server.model, ARMS)

    def interrupted() -> None:
        with background.under_load(asker, 2):
            background.in_background(asker.ask, "steady")
            until(lambda: fake.ledger.in_flight == 3, "three requests in flight")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fake.ledger.in_flight == 3


@pytest.mark.parametrize(
    ("script", "arm", "says"),
    [
        (Script(cached_tokens=0), "D2", "no cold and warm cache: no hit in 4 of 4 cold, a hit in 0 of 4 warm"),
        (Script(cached_tokens=7), "D2", "no cold and warm cache: no hit in 0 of 4 cold, a hit in 4 of 4 warm"),
        (Script(in_flight_gauge=False, first_token_s=0.01), "D3", "no proof that any request ran amid the others"),
    ],
)
def test_an_arm_without_evidence_is_not_measured(
    script: Script, arm: str, says: str, fake: FakeVllm, server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LOAD_STARTS_S", 0.2)
    fake.script = script
    result = determinism.test_determinism(ARMS, ROUTER, server, workspace)
    assert all(says in entry.reason and not entry.prompts for entry in of_arm(result, arm))
    figure = result.figures[f"{arm.lower()}_identical"]
    assert figure.value is None
    assert says in figure.reason


def test_answers_that_are_equal_as_json_count_in_tara_alone(fake: FakeVllm, server: Server, workspace: Workspace) -> None:
    texts = ('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    fake.script = Script(texts=texts)
    result = determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
    assert (result.figures["tarr"].value, result.figures["tara"].value) == (0, 100)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), ("\n", "no prompts"), ("a\nb\na\n", ":3: the prompt is there twice")]
)
def test_a_file_of_prompts_is_checked(content: str | None, says: str, server: Server, workspace: Workspace) -> None:
    path = workspace.root / "prompts.txt"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)


@pytest.mark.parametrize("stage", ["test-router", "test-determinism"])
def test_noise_is_not_judged(stage: str, server: Server, workspace: Workspace) -> None:
    with pytest.raises(MeaninglessError, match="weights are random"):
        STAGES[stage](server.model_copy(update={"random_weights": True}), workspace)


@pytest.mark.parametrize(("script", "says"), [(Script(token_ids=False), "token ids"), (Script(status=500), "HTTP 500")])
def test_determinism_without_token_ids_or_answers_is_not_measured(
    script: Script, says: str, fake: FakeVllm, server: Server, workspace: Workspace
) -> None:
    fake.script = script
    with pytest.raises(MeasureError, match=says):
        determinism.test_determinism(DETERMINISM, ROUTER, server, workspace)
