"""Reasoning models, models without a system role, adapters and proxies: served, attached to, proven and measured, on the fake."""

import json
from pathlib import Path

import pytest

from pipeline.client.endpoint import Endpoint
from pipeline.client.payloads import streamed
from pipeline.client.tokens import Asker
from pipeline.config.attach import AttachConfig
from pipeline.config.requests import RequestsConfig
from pipeline.config.schema import DeterminismConfig, ModelConfig, RouterConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import ServerError
from pipeline.load.background import amid_load
from pipeline.load.generator import closed_loop
from pipeline.load.spread import Processes, loop
from pipeline.stages.serve import Server, attach_server
from pipeline.stages.test_determinism import test_determinism as determine
from pipeline.stages.test_router import test_router as route
from pipeline.vllm.kv_fill import Room, fill_kv_cache
from pipeline.vllm.warm_up import warm_up
from tests.builders.stages import GOLD
from tests.fakes.environment import FakeProject
from tests.fakes.fake_vllm import FakeVllm, Script

THINKS = Script(thought="Okay, the user greets me. ", texts=("Hello.",))
ANSWER = json.dumps(GOLD)
FIELDS = RequestsConfig(chat_template_kwargs={"enable_thinking": False}, extra_body={"reasoning_effort": "low"})


def attach(workspace: Workspace, fake: FakeVllm, name: str = "fake-model", requests: RequestsConfig | None = None) -> Server:
    url = fake.base_url + fake.script.prefix
    return attach_server(AttachConfig(url=url), requests or RequestsConfig(), ModelConfig(name=name), workspace)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "content"])
def test_a_server_whose_first_words_are_thoughts_is_ready_and_real(project: FakeProject, field: str) -> None:
    project.play(Script(thought=THINKS.thought * 9, thought_as=field))
    assert project.serve(project.settings()).real


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "content"])
def test_a_server_whose_first_words_are_thoughts_can_be_attached_to(workspace: Workspace, field: str) -> None:
    with FakeVllm(Script(thought=THINKS.thought * 9, thought_as=field)) as fake:
        assert attach(workspace, fake).real


def test_a_parser_that_shows_nothing_of_the_first_tokens_gets_more_of_them(workspace: Workspace) -> None:
    with FakeVllm(Script(texts=("...." * 8 + "Hello.",))) as fake:
        assert attach(workspace, fake).real


def test_what_only_repeats_one_sign_is_no_thought(workspace: Workspace) -> None:
    with FakeVllm(Script(thought="!!!!" * 40, texts=("!!!!" * 40,))) as fake, pytest.raises(ServerError, match="says nothing"):
        attach(workspace, fake)


def test_every_request_carries_the_fields_of_the_settings(workspace: Workspace) -> None:
    with FakeVllm(Script(texts=(ANSWER,))) as fake:
        server = attach(workspace, fake, requests=FIELDS)
        route(RouterConfig(suite="suite", cases=2, unary_cases=1), server, workspace)
        settings = DeterminismConfig(prompts="prompts.txt", count=1, runs=2, constrained=1, load=(2,))
        determine(settings, RouterConfig(suite="suite"), server, workspace)
        assert len(fake.ledger.requests) > 20
        for request in fake.ledger.requests:
            assert request["chat_template_kwargs"] == {"enable_thinking": False}
            assert request["reasoning_effort"] == "low"


def test_a_started_server_gets_the_fields_too_and_they_belong_to_its_identity(project: FakeProject) -> None:
    project.play(THINKS)
    server = project.serve(project.settings(), FIELDS)
    assert server.handle.request_fields == FIELDS.fields
    assert server.identity()["request_fields"] == FIELDS.fields
    assert project.launch().request_fields == FIELDS.fields


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "stream", "response_format", "n"])
def test_a_field_that_the_tests_set_themselves_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"the tests set {name} themselves"):
        RequestsConfig(extra_body={name: 1})


def test_chat_template_kwargs_have_one_place() -> None:
    with pytest.raises(ValueError, match=r"requests\.chat_template_kwargs"):
        RequestsConfig(extra_body={"chat_template_kwargs": {}})


@pytest.mark.parametrize("text", ["{draft}</think>\n\n{answer}", "<think>{draft}</think>{answer}", "Hm: {draft} no.\n</think>{answer}"])
def test_a_draft_in_thoughts_decides_no_route(workspace: Workspace, text: str) -> None:
    draft, answer = json.dumps({**GOLD, "route": "smalltalk"}), ANSWER
    with FakeVllm(Script(texts=(text.replace("{draft}", draft).replace("{answer}", answer),))) as fake:
        result = route(RouterConfig(suite="suite", cases=4, unary_cases=4, max_tokens=500), attach(workspace, fake), workspace)
    raw = (workspace.root / result.raw).read_text(encoding="utf-8")
    assert all(json.loads(json.loads(line)["text"])["route"] == "calendar" for line in raw.splitlines())


def test_a_draft_that_is_cut_off_within_the_thoughts_decides_no_route(workspace: Workspace) -> None:
    draft = json.dumps({**GOLD, "route": "smalltalk"})
    with FakeVllm(Script(texts=(f"<think>{draft} or rather " + "hm " * 300,))) as fake:
        result = route(RouterConfig(suite="suite", cases=2, unary_cases=0), attach(workspace, fake), workspace)
    assert result.figures["prompt_only_route_accuracy"].value == 0
    assert {route for counts in result.confusion["prompt_only"].values() for route in counts} == {"(no valid JSON)"}


def test_thoughts_that_differ_are_different_answers(workspace: Workspace) -> None:
    """The answers are the same after the thoughts; the tokens and the raw answers are not."""
    odd = {str(number): {"thought": f"Thought {number}."} for number in range(0, 200, 2)}
    with FakeVllm(Script(thought="A thought.", texts=("Yes.",), by_number=odd)) as fake:
        server = attach(workspace, fake)
        (workspace.root / "one.txt").write_text("Hello?\n", encoding="utf-8")
        settings = DeterminismConfig(prompts="one.txt", count=1, runs=4, constrained=0, load=(), cache_runs=0, restart=False)
        result = determine(settings, RouterConfig(suite="suite"), server, workspace)
    figures = result.figures
    assert (figures["identical"].value, figures["tarr"].value, figures["tara"].value) == (0, 0, 100)


def test_where_the_model_takes_no_system_message_its_text_is_in_front_of_the_users(workspace: Workspace) -> None:
    with FakeVllm(Script(texts=(ANSWER,), takes_system=False)) as fake:
        server = attach(workspace, fake)
        assert (server.real, server.takes_system) == (True, False)
        result = route(RouterConfig(suite="suite", cases=2, unary_cases=1), server, workspace)
        assert result.system == "user"
        assert result.figures["constrained_answered"].value == 100


def test_a_served_model_without_a_system_role_is_found_at_its_start(project: FakeProject) -> None:
    project.play(Script(takes_system=False))
    server = project.serve(project.settings())
    assert (server.real, server.takes_system) == (True, False)


def test_an_attached_model_without_a_chat_template_is_told_in_one_line(workspace: Workspace) -> None:
    with FakeVllm(Script(has_template=False)) as fake, pytest.raises(ServerError) as caught:
        attach(workspace, fake)
    assert "HTTP 400" in caught.value.message
    assert "--chat-template FILE" in caught.value.hint


def test_an_adapter_is_measured_by_its_name_and_is_real(workspace: Workspace) -> None:
    with FakeVllm(Script(adapters=("sql", "poems"))) as fake:
        server = attach(workspace, fake, name="sql")
        assert (server.model, server.max_model_len, server.real) == ("sql", 4096, True)


def test_beside_adapters_the_only_model_is_taken(workspace: Workspace) -> None:
    with FakeVllm(Script(adapters=("sql", "poems"))) as fake:
        assert attach(workspace, fake, name="SmolLM2-135M-Instruct").model == "fake-model"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_server_below_a_prefix_is_attached_to_and_measured(workspace: Workspace, end: str) -> None:
    with FakeVllm(Script(texts=(ANSWER,), prefix="/team/llm")) as fake:
        url = f"{fake.base_url}/team/llm{end}"
        server = attach_server(AttachConfig(url=url), RequestsConfig(), ModelConfig(name="fake-model"), workspace)
        assert server.real
        result = route(RouterConfig(suite="suite", cases=1, unary_cases=1), server, workspace)
        assert result.figures["constrained_answered"].value == 100


@pytest.mark.parametrize("path", ["/version", "/metrics", "/health"])
def test_a_proxy_that_hides_a_page_is_told_what_to_let_through(workspace: Workspace, path: str) -> None:
    with FakeVllm(Script(prefix="/llm", hidden=(path,))) as fake, pytest.raises(ServerError) as caught:
        attach(workspace, fake)
    assert f"/llm{path}" in caught.value.message
    assert "/v1, /version, /metrics and /health" in caught.value.hint


def test_a_started_server_without_metrics_is_not_real_and_says_what_to_change(project: FakeProject) -> None:
    project.play(Script(metrics=False))
    server = project.serve(project.settings())
    assert not server.real
    assert any("--disable-log-stats" in proof.fix for proof in server.proofs)


def test_an_attached_server_without_metrics_is_not_real(workspace: Workspace) -> None:
    with FakeVllm(Script(metrics=False)) as fake:
        assert not attach(workspace, fake).real


def test_a_model_without_a_chat_template_is_served_with_a_plain_one(project: FakeProject) -> None:
    folder = project.workspace.root / project.model.folder
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"chat_template": null}', encoding="utf-8")
    server = project.serve(project.settings())
    assert "{% for message in messages %}" in server.command[server.command.index("--chat-template") + 1]


def test_a_chat_template_of_ones_own_must_be_there(project: FakeProject) -> None:
    settings = project.settings().model_copy(update={"chat_template": "mine.jinja"})
    with pytest.raises(ServerError, match=r"serve\.chat_template: mine\.jinja is not a file"):
        project.serve(settings)
    Path(project.workspace.root, "mine.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert "mine.jinja" in project.serve(settings).command


def test_load_and_warm_up_carry_the_fields_of_the_settings() -> None:
    with FakeVllm() as fake:
        target = Endpoint(fake.base_url, fields=FIELDS.fields)
        payloads = [streamed(fake.model, [{"role": "user", "content": "Hello."}], 4) for _ in range(4)]
        closed_loop(target, payloads, 2, 30)
        loop(target, payloads, 2, 30, Processes(2), lambda _: None)
        warm_up(target, fake.model, 2, 4096)
        asker = Asker(target, fake.model, DeterminismConfig(max_tokens=4, timeout_s=30))
        amid_load(asker, ["Hello?"], 2, lambda: 2, lambda _: None)
        fill_kv_cache(target, fake.model, Room(1000, 1, 500, 500), 5)
        assert len(fake.ledger.requests) > 8
        assert all(FIELDS.fields.items() <= request.items() for request in fake.ledger.requests)
