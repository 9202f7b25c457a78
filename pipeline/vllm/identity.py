"""Proofs that an endpoint is vLLM and serves the model that it should."""

import re
from pathlib import Path

from pipeline.client.control import Control, ModelCard
from pipeline.message import Sentence, _
from pipeline.values import Frozen
from pipeline.vllm.metrics import GENERATED_TOKENS


class Proof(Frozen):
    """One check of identity: what must hold, whether it does, and what was seen."""

    claim: Sentence
    holds: bool
    seen: Sentence


def serves(model: str, folder: Path, max_model_len: int, version: str, control: Control) -> list[Proof]:
    """Return the proofs that an endpoint serves this model with this vLLM; raises MeasureError when it is silent."""
    seen_version = control.version()
    cards = control.models()
    card = next((card for card in cards if card.id == model), None)
    right = card is not None and card.root == str(folder) and card.max_model_len == max_model_len and card.owned_by == "vllm"
    seen = described(card) if card else f"models {[c.id for c in cards]}"
    return [
        Proof(claim=_("/version is the installed one"), holds=seen_version == version, seen=seen_version),
        Proof(claim=_("/v1/models names the model, its folder and length"), holds=right, seen=seen),
        counts_tokens(model, control),
    ]


def shows_vllm(model: ModelCard, version: str, control: Control) -> list[Proof]:
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


def counts_tokens(model: str, control: Control, alone: bool = True) -> Proof:
    """Return the proof that the engine's own token counter rises by what a completion says it generated, or more if not alone."""
    claim = _("its metrics count the tokens of a completion")
    before = control.metrics().get(GENERATED_TOKENS)
    said = control.greet(model).usage.completion_tokens
    after = control.metrics().get(GENERATED_TOKENS)
    if before is None or after is None:
        return Proof(claim=claim, holds=False, seen=f"{GENERATED_TOKENS} is not there")
    counted = after - before
    seen = _("{n} counted, {needed} said", n=round(counted), needed=said)
    return Proof(claim=claim, holds=counted == said or (counted > said and not alone), seen=seen)


def is_real(proofs: list[Proof]) -> bool:
    """Tell whether every proof holds."""
    return bool(proofs) and all(proof.holds for proof in proofs)
