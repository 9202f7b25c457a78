"""The server that someone else runs, measured in place of one of ours."""

from pipeline.client.control import ModelCard
from pipeline.config.schema import AttachConfig, ModelConfig
from pipeline.engine.workspace import Workspace
from pipeline.errors import MeasureError, ServerError
from pipeline.message import _
from pipeline.server.keys import control_of, key_of
from pipeline.server.state import Handle
from pipeline.stages.serve import Server
from pipeline.vllm.environment import API_KEY
from pipeline.vllm.identity import Proof, is_real, show


def attach_server(settings: AttachConfig, model: ModelConfig, workspace: Workspace) -> Server:
    """Use the server that someone else runs at `attach.url`: nothing is started, and its endpoint is all that is known of it."""
    url = settings.url or ""
    card, version, proofs = look_at(url, model.name, workspace)
    for replica in settings.replicas:
        other, its_version, more = look_at(replica, card.id, workspace)
        if (other.id, its_version) != (card.id, version):
            raise ServerError(
                f"{replica} is no replica of {url}: it serves {other.id} with vLLM {its_version}, not {card.id} with {version}",
                "name servers of the same model and version in attach.replicas",
            )
        proofs += [proof.model_copy(update={"claim": _("{claim} ({address})", claim=proof.claim, address=replica)}) for proof in more]
    workspace.say(f"attached to {', '.join((url, *settings.replicas))}: {card.id}, vLLM {version}")
    return Server(
        model=card.id,
        vllm=version,
        distribution="not known",
        device=f"the server at {url}{and_replicas(len(settings.replicas))}",
        max_model_len=card.max_model_len or 0,
        command=[],
        environment={},
        random_weights=False,
        attached=url,
        replicas=settings.replicas,
        plan=None,
        real=is_real(proofs),
        proofs=proofs,
        handle=handle_of(url),
    )


def look_at(url: str, model: str, workspace: Workspace) -> tuple[ModelCard, str, list[Proof]]:
    """Return (model card, vLLM's version, proofs) of what answers at `url`; ServerError where that is no vLLM that says something."""
    handle = handle_of(url)
    control = control_of(handle, workspace)
    try:
        card = card_named(control.models(), model)
        version = control.version()
        if not control.greet(card.id).says_something:
            raise ServerError(f"the completion of the server at {url} says nothing", "ask whoever runs it")
        return card, version, show(card, version, control)
    except MeasureError as error:
        key = "" if key_of(handle, workspace) else f"; a server that wants an API key takes it from {API_KEY}"
        raise ServerError(error.message, f"is it a vLLM server, and up?{key}") from error


def and_replicas(count: int) -> str:
    """Return the words for so many servers more."""
    return f" and {count} replica{'s' if count > 1 else ''}" if count else ""


def handle_of(url: str) -> Handle:
    """Return how to reach a server that someone else runs."""
    return Handle(launch_id=url, base_url=url, pid=None, created=None, log="", samples="", ready_s=0, phases_s={})


def card_named(cards: list[ModelCard], name: str) -> ModelCard:
    """Return the served model of that name, or the only one there is; ServerError names what there is."""
    found = [card for card in cards if card.id == name] or (cards if len(cards) == 1 else [])
    if not found:
        raise ServerError(f"the server serves {', '.join(card.id for card in cards) or 'no model'}", "choose one: --set model.name=NAME")
    return found[0]
