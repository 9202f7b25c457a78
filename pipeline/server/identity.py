"""Prove that what answers is the vLLM that we started."""

import re
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from pipeline.client.control import GENERATED_TOKENS, Control, ModelCard
from pipeline.message import Sentence, _
from pipeline.server import ports, state
from pipeline.server.launch import MODULE
from pipeline.server.readiness import first_completion
from pipeline.server.state import Launch


class Proof(BaseModel):
    """One check of identity: what must hold, whether it does, and what was seen."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    claim: Sentence
    holds: bool
    seen: Sentence


def prove(launch: Launch, control: Control, python: Path, version: str, model_folder: Path, max_model_len: int) -> list[Proof]:
    """Return the proofs that our own process serves this model with this vLLM; raises MeasureError when it is silent."""
    proofs = [owns_port(launch), runs_python(launch, python)]
    seen_version = control.version()
    proofs.append(Proof(claim=_("/version is the installed one"), holds=seen_version == version, seen=seen_version))
    cards = control.models()
    card = next((card for card in cards if card.id == launch.model), None)
    right = card is not None and card.root == str(model_folder) and card.max_model_len == max_model_len and card.owned_by == "vllm"
    seen = described(card) if card else f"models {[c.id for c in cards]}"
    proofs.append(Proof(claim=_("/v1/models names the model, its folder and length"), holds=right, seen=seen))
    proofs.append(counts_tokens(launch.model, control))
    return proofs


def show(model: ModelCard, version: str, control: Control) -> list[Proof]:
    """Return what an endpoint shows of itself, where its process is not ours to look at; raises MeasureError when it is silent."""
    vllm = model.owned_by == "vllm" and model.max_model_len is not None
    return [
        Proof(claim=_("/version answers as vLLM does"), holds=bool(re.match(r"\d+\.\d+", version)), seen=version),
        Proof(claim=_("/v1/models is vLLM's"), holds=vllm, seen=described(model)),
        counts_tokens(model.id, control, alone=False),
    ]


def described(card: ModelCard) -> str:
    """Return what a model card says."""
    return _("{name}, {n} tokens, by {owner}", name=card.id, n=f"{card.max_model_len}", owner=f"{card.owned_by}")


def owns_port(launch: Launch) -> Proof:
    """Return the proof that the listening socket belongs to the session that we started."""
    pid = ports.owner(launch.host, launch.port)
    ours = {process.pid for process in state.members(launch)}
    return Proof(claim=_("our child listens on the port"), holds=pid in ours, seen=f"pid {pid}" if pid else "owner not visible")


def runs_python(launch: Launch, python: Path) -> Proof:
    """Return the proof that the process runs the environment's interpreter on vLLM's command or module."""
    claim = _("it runs the Python of the environment on record")
    try:
        words = psutil.Process(launch.pid).cmdline()
    except psutil.Error as error:
        return Proof(claim=claim, holds=False, seen=str(error))
    program = words[1:3] in ([str(python.with_name("vllm")), "serve"], ["-m", MODULE])
    holds = words[:1] == [str(python)] and program
    return Proof(claim=claim, holds=holds, seen=" ".join(words[1:3]))


def counts_tokens(model: str, control: Control, alone: bool = True) -> Proof:
    """Return the proof that the engine's own token counter rises by what a completion says it generated, or more if not alone."""
    claim = _("its metrics count the tokens of a completion")
    before = control.metrics().get(GENERATED_TOKENS)
    said = first_completion(control, model).usage.completion_tokens
    after = control.metrics().get(GENERATED_TOKENS)
    if before is None or after is None:
        return Proof(claim=claim, holds=False, seen=f"{GENERATED_TOKENS} is not there")
    counted = after - before
    seen = _("{n} counted, {needed} said", n=round(counted), needed=said)
    return Proof(claim=claim, holds=counted == said or (counted > said and not alone), seen=seen)


def is_real(proofs: list[Proof]) -> bool:
    """Tell whether every proof holds."""
    return bool(proofs) and all(proof.holds for proof in proofs)
